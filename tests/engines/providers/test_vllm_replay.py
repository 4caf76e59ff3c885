"""vLLM as a real server answered (0.32.0 on CPU, float32), replayed, and held against the model run here."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from common import DATA
from engine_models import engine_model
from engine_record import CANDIDATES, QUESTION, SINGLE, picture
from PIL import Image
from scipy.special import log_softmax
from wire_recordings import routes
from wire_server import WireServer, event_stream, json_reply, refusal

import vlmprobe
from vlmprobe.errors import CapabilityError, EngineResponseError, GenerationOptionError, MessageError, VlmprobeWarning
from vlmprobe.results.files import load_result

RECORDING = DATA / "wire/vllm/recorded-0.32.0-qwen2_vl.jsonl"
SHOWN = {"max_new_tokens": 4, "alternatives": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return engine_model("qwen2_vl", tmp_path_factory.mktemp("engine") / "m_qwen2_vl")


@pytest.fixture(scope="module")
def local(model):
    return vlmprobe.load(model, check=False)


@pytest.fixture
def server():
    with WireServer(routes(RECORDING)) as server:
        yield server


@pytest.fixture
def served(server, model):
    return vlmprobe.connect(server.url, processor=model)


def assert_close(one, other, *columns):
    for name in columns or ("logprobs", "top_logprobs"):
        a, b = getattr(one, name), getattr(other, name)
        assert np.array_equal(np.isnan(a), np.isnan(b)), name
        assert np.nanmax(np.abs(a - b), initial=0) < 1e-4, name


def test_an_answer_is_that_of_the_model_run_here(served, local):
    there = served.generate(QUESTION, image=picture(), **SHOWN)
    here = local.generate(QUESTION, image=picture(), do_sample=False, **SHOWN)
    assert there.text == here.text
    assert there.input_ids.tolist() == here.input_ids.tolist()
    for name in ("prompt", "output"):
        one, other = getattr(there, name), getattr(here, name)
        assert_close(one, other)
        for column in ("ids", "positions", "offsets", "top_ids"):
            assert getattr(one, column).tolist() == getattr(other, column).tolist(), column
        assert (one.tokens, one.kinds, one.top_tokens) == (other.tokens, other.kinds, other.top_tokens)
        assert one.image_spans == other.image_spans
    assert there.output.ranks.tolist() == here.output.ranks.tolist()
    logits = local.generate(QUESTION, image=picture(), do_sample=False, max_new_tokens=1, keep="logits").prompt.logits
    own = np.take_along_axis(logits, here.prompt.ids[:, None], axis=1)
    ties = (np.abs(logits - own) < 1e-4).sum(axis=1) - 1  # vLLM counts tokens of the same logit too
    more = there.prompt.ranks - here.prompt.ranks
    assert ((more >= 0) & (more <= np.maximum(ties, 0))).all()
    assert there.finish_reason == here.finish_reason == "length"


def test_what_a_server_does_not_tell_is_absent_and_bounded(served, local):
    there = served.generate(QUESTION, image=picture(), **SHOWN)
    here = local.generate(QUESTION, image=picture(), do_sample=False, **SHOWN)
    for one, other in ((there.output, here.output), (there.prompt, here.prompt)):
        assert np.isnan(one.entropy).all()
        assert np.isnan(one.logsumexp).all()
        known = ~np.isnan(one.entropy_at_least)
        assert known.tolist() == other.scored.tolist()
        assert (one.entropy_at_least[known] <= other.entropy[known] + 1e-5).all()
        assert (one.entropy_at_least[known] > 0).all()


def test_an_image_is_one_row_of_nan(served):
    prompt = served.generate(QUESTION, image=picture(), **SHOWN).prompt
    image = prompt.kinds.index("image")
    assert prompt.kinds.count("image") == 1
    assert prompt.image_spans[0].stop - prompt.image_spans[0].start == 6
    assert np.isnan(prompt.logprobs[image])
    assert prompt.ranks[image] == -1
    assert np.isfinite(prompt.perplexity)


def test_what_is_said_of_the_numbers(served, server):
    meta = served.generate(QUESTION, image=picture(), **SHOWN).meta
    assert meta["value_kind"] == "raw"
    assert meta["logprobs_mode"] == "raw_logprobs"
    assert meta["engine"] == "vllm"
    assert meta["engine_version"] == "0.32.0"
    assert meta["url"] == server.url
    assert meta["generation_config"] == {"max_new_tokens": 4, "do_sample": False}


def test_sampling_leaves_the_numbers_raw(served):
    options = {"do_sample": True, "temperature": 0.5, "top_k": 5, "seed": 3}
    result = served.generate(QUESTION, image=picture(), **SHOWN, **options, prompt=False)
    assert result.prompt is None
    assert result.meta["value_kind"] == "raw"
    assert result.output.scores is None
    assert (result.output.ranks < 5).all()


def test_candidates_by_ids_are_scored_as_here(served, local):
    there = served.score(QUESTION, CANDIDATES, image=picture(), alternatives=1)
    here = local.score(QUESTION, CANDIDATES, image=picture(), alternatives=1)
    assert np.abs(there.logprobs - here.logprobs).max() < 1e-4
    assert there.best == here.best
    assert there.boundaries == here.boundaries == [None] * 3
    assert there.meta["candidates"] == "ids"
    for one, other in zip(there.tables, here.tables, strict=True):
        assert (one.ids.tolist(), one.tokens) == (other.ids.tolist(), other.tokens)
        assert one.positions.tolist() == other.positions.tolist()


def test_candidates_by_text_are_scored_as_here(served, local):
    served.engine.tokens_in = False
    there = served.score(QUESTION, CANDIDATES, image=picture(), alternatives=1)
    here = local.score(QUESTION, CANDIDATES, image=picture(), alternatives=1)
    assert np.abs(there.logprobs - here.logprobs).max() < 1e-4
    assert there.meta["candidates"] == "continue_final_message"


def test_without_a_processor(server, local):
    probe = vlmprobe.connect(server.url)
    result = probe.generate(QUESTION, image=picture(), **SHOWN)
    here = local.generate(QUESTION, image=picture(), do_sample=False, **SHOWN)
    assert result.prompt is None
    assert "processor=" in result.meta["absent"]["prompt"]
    assert result.output.ids.tolist() == here.output.ids.tolist()
    assert_close(result.output, here.output)
    text = probe.generate("Hi", max_new_tokens=3, alternatives=1)
    assert "".join(text.prompt.tokens).endswith("assistant\n")
    scores = probe.score("Is it?", ["yes", "no"], alternatives=1)
    assert np.abs(scores.logprobs - local.score("Is it?", ["yes", "no"]).logprobs).max() < 1e-4


def test_a_result_is_saved_shown_and_read_again(served, tmp_path):
    result = served.generate(QUESTION, image=picture(), **SHOWN)
    again = load_result(result.save(tmp_path / "r"))
    assert again.text == result.text
    assert np.array_equal(again.output.entropy_at_least, result.output.entropy_at_least)
    assert "entropy_at_least" in result.output.to_pandas().columns
    assert "<" in result.to_html()
    result.show()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"keep": "logits"}, "raw_logits --max-logprobs -1"),
        ({"keep": "hidden"}, r"vlmprobe\.load"),
        ({"alternatives": 21}, "at most 20"),
        ({"logits_processor": [lambda ids, scores: scores]}, "logits processors"),
    ],
)
def test_what_it_cannot_do_is_said_before_anything_is_sent(served, server, asked, said):
    served.generate(QUESTION, image=picture(), **SHOWN)
    before = len(server.requests)
    with pytest.raises(CapabilityError, match=said):
        served.generate("Hi", **asked)
    assert len(server.requests) == before


@pytest.mark.parametrize("asked", [{"num_beams": 2}, {"temprature": 1}, {"max_new_tokens": 0}, {"do_sample": 1}])
def test_options_that_are_none(served, asked):
    with pytest.raises(GenerationOptionError):
        served.generate("Hi", **asked)


def test_many_requests_one_of_which_is_bad(served, tmp_path):
    asked = [
        {"prompt": QUESTION, "image": picture(), "id": "a"},
        {"prompt": QUESTION, "image": tmp_path / "none.png", "id": "b"},
        {"prompt": "never recorded", "id": "c"},
        {"prompt": QUESTION, "image": picture(), "id": "d"},
    ]
    found = list(served.generate_many(asked, **SHOWN, on_error="keep"))
    assert [each.meta["id"] for each in found] == ["a", "b", "c", "d"]
    assert [type(each).__name__ for each in found] == ["Result", "Failure", "Failure", "Result"]
    assert "none.png" in str(found[1].error)
    assert found[2].error.status == 418
    running = served.generate_many(asked, **SHOWN)
    assert next(running).meta["id"] == "a"
    with pytest.raises(FileNotFoundError):
        next(running)


def test_the_picture_is_sent_once_and_whole(served, server, tmp_path):
    file = tmp_path / "p.jpg"
    picture().save(file, quality=90)
    with pytest.raises(vlmprobe.VlmprobeError, match="not recorded"):
        served.generate(QUESTION, image=file, **SHOWN)
    sent = server.requests[-1].body
    assert sent.count(base64.b64encode(file.read_bytes())) == 1
    served.generate(QUESTION, image=picture(), **SHOWN)
    url = server.requests[-1].json["messages"][0]["content"][0]["image_url"]["url"]
    decoded = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert np.array_equal(np.asarray(decoded), np.asarray(picture()))


def test_a_turned_jpeg_is_sent_upright(served, server, tmp_path):
    file = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(file, exif=exif)
    served.generate(QUESTION, image=file, **SHOWN)
    url = server.requests[-1].json["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png")
    assert Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).size == (56, 84)


def test_a_reranker():
    def score(request):
        documents = request.json["documents"]
        return json_reply({"data": [{"index": n, "score": -1.5 * n} for n in reversed(range(len(documents)))]})

    chat = refusal(404, "The model does not support Chat Completions API")
    found = {"data": [{"id": "tiny", "owned_by": "vllm", "max_model_len": 512}]}
    with WireServer(
        {"/v1/models": found, "/version": {"version": "0.32.0"}, "/score": score, "/v1/chat/completions": chat}
    ) as server:
        probe = vlmprobe.connect(server.url)
        ranking = probe.rank("a cat", ["a cat", "a dog", "a car"])
        assert server.requests[-1].json["use_activation"] is False
        assert server.requests[-1].json["queries"] == "a cat"
        assert np.allclose(ranking.scores, 1 / (1 + np.exp(1.5 * np.arange(3))))


def test_engines_by_name(server, model):
    with pytest.raises(MessageError, match="Did you mean vllm"):
        vlmprobe.connect(server.url, engine="vlm")
    with pytest.raises(vlmprobe.VlmprobeError, match=r"no model 'tin'.*tiny"):
        vlmprobe.connect(server.url, model="tin")
    with pytest.raises(vlmprobe.VlmprobeError, match="not recognised"):
        vlmprobe.connect(server.url, engine="ollama")
    assert vlmprobe.connect(server.url, engine="openai").meta["engine"] == "openai"


def test_a_prompt_without_the_picture(model):
    """A processor of another model, or a server that ignored the picture."""
    replies = routes(RECORDING)

    def without(request):
        reply = replies["/v1/chat/completions"](request)
        document = json.loads(reply.body)
        ids = document.get("prompt_token_ids")
        if ids and "prompt_logprobs" in document and document["prompt_logprobs"]:
            keep = [place for place, each in enumerate(ids) if ids.count(each) < 6]
            document["prompt_token_ids"] = [ids[place] for place in keep]
            document["prompt_logprobs"] = [document["prompt_logprobs"][place] for place in keep]
        return json_reply(document, reply.status)

    with WireServer({**replies, "/v1/chat/completions": without}) as server:
        probe = vlmprobe.connect(server.url, processor=model)
        with pytest.raises(EngineResponseError, match="image"):
            probe.generate(QUESTION, image=picture(), **SHOWN)


def first_token(local, *, tail=()):
    """What vLLM says of the first token of the answer, in the form seen on a real server, with this model's numbers."""
    result = local.generate(QUESTION, image=picture(), max_new_tokens=1, do_sample=False, keep="logits")
    logprobs = log_softmax(result.output.logits[0].astype(np.float64))
    best = np.argsort(-logprobs)

    def entry(each):
        return {"token": f"token_id:{each}", "logprob": float(logprobs[each]), "bytes": None}

    def reply(request):
        asked = request.json
        named = asked.get("logprob_token_ids") or best[: asked["top_logprobs"]].tolist()
        top = [entry(each) for each in dict.fromkeys([int(best[0]), *named])]
        content = [{**entry(best[0]), "top_logprobs": top}]
        choice = {"message": {"content": "x"}, "finish_reason": "length", "logprobs": {"content": content}}
        ids = [*result.input_ids.tolist(), *tail]
        return json_reply({"choices": [{**choice, "token_ids": [int(best[0])]}], "prompt_token_ids": ids})

    return reply


def shown_first_tokens(local, **how):
    recorded, first = routes(RECORDING), first_token(local, **how)
    path = "/v1/chat/completions"

    def reply(request):
        of_first = request.json["max_tokens"] == 1 and b"image_url" in request.body
        return (first if of_first else recorded[path])(request)

    return WireServer({**recorded, path: reply})


def test_candidates_of_one_token_take_two_requests(local, model):
    with shown_first_tokens(local) as server:
        probe = vlmprobe.connect(server.url, processor=model)
        probe.engine.know()
        before = len(server.requests)
        there = probe.score(QUESTION, SINGLE, image=picture())
        assert len(server.requests) - before == 2
    here = local.score(QUESTION, SINGLE, image=picture())
    assert there.meta["candidates"] == "chosen ids"
    assert np.abs(there.logprobs - here.logprobs).max() < 1e-5
    for one, other in zip(there.tables, here.tables, strict=True):
        assert (one.ids.tolist(), one.tokens, one.positions.tolist()) == (
            other.ids.tolist(),
            other.tokens,
            other.positions.tolist(),
        )
        assert one.top_ids.tolist() == other.top_ids.tolist()


def test_candidates_of_one_token_after_another_prompt(local, model):
    with shown_first_tokens(local, tail=[7]) as server:
        probe = vlmprobe.connect(server.url, processor=model)
        with pytest.raises(EngineResponseError, match="ends differently"):
            probe.score(QUESTION, SINGLE, image=picture())


# -- behind LiteLLM (1.108.7), as it answered before a real vLLM of the same model -----------------------------------

LITELLM = json.loads((DATA / "wire/vllm/litellm-1.108.7.json").read_text(encoding="utf-8"))
CHINESE = "请用中文写一句话，并加上一个表情符号。"
PIECE, END = 143, 380  # of a character that no other token completes; and the end token
PROXIED = {"max_new_tokens": 12, "alternatives": 1}


@pytest.fixture
def proxy():
    def chat(request):
        if not 0 <= request.json["top_logprobs"] <= 20:
            status, said = LITELLM["too_many"]
            return json_reply(said, status)
        return event_stream(LITELLM["stream"]) if request.json.get("stream") else json_reply(LITELLM["whole"])

    with WireServer({"/v1/models": LITELLM["models"], "/v1/chat/completions": chat}) as server:
        yield server


@pytest.fixture
def proxied(proxy, model):
    with pytest.warns(VlmprobeWarning, match="owned by 'openai'") as told:
        probe = vlmprobe.connect(proxy.url, engine="vllm", processor=model, value_kind="raw")
    assert told[0].filename == __file__
    return probe


def test_behind_litellm_an_answer_has_its_ids(proxied, local):
    there = proxied.generate(CHINESE, prompt=False, **PROXIED)
    here = local.generate(CHINESE, do_sample=False, **PROXIED)
    assert there.input_ids.tolist() == here.input_ids.tolist()
    assert there.output.ids.tolist() == here.output.ids.tolist() == [32, 287, 86, PIECE, END]
    assert_close(there.output, here.output)
    assert proxied.engine.abilities.alternatives == 20  # as its refusal quotes vLLM's


def test_behind_litellm_a_stream_loses_a_piece_of_a_character_and_says_so(proxied, local):
    """LiteLLM leaves out chunks without text: the end token's row must not let the lost piece pass for it."""
    result = proxied.stream(CHINESE, **PROXIED).result
    here = local.generate(CHINESE, do_sample=False, **PROXIED).output
    assert result.output.ids.tolist() == [32, 287, 86, END]
    assert np.abs(result.output.logprobs - here.logprobs[[0, 1, 2, 4]]).max() < 1e-4
    assert result.output.lost == 1
    assert np.isnan(result.confidence)
    assert "5 tokens were generated, and 1 of them sent without a row" in result.meta["absent"]["rows"]
    assert "end" not in result.meta["absent"]
    assert result.input_ids is None
    assert "a proxy before vLLM drops them" in result.meta["absent"]["input_ids"]


def test_without_ids_where_names_do_not_tell_them(proxy, model, monkeypatch):
    """A proxy that drops ``token_ids``: the names that were asked for tell them, words do not."""
    choice = LITELLM["whole"]["choices"][0]
    monkeypatch.delitem(choice, "provider_specific_fields")
    with pytest.warns(VlmprobeWarning):
        probe = vlmprobe.connect(proxy.url, engine="vllm", processor=model, value_kind="raw")
    assert probe.generate(CHINESE, prompt=False, **PROXIED).output.ids.tolist() == [32, 287, 86, PIECE, END]
    for entry in choice["logprobs"]["content"]:
        for each in (entry, *entry["top_logprobs"]):
            monkeypatch.setitem(each, "token", "w")
    with pytest.warns(VlmprobeWarning):
        probe = vlmprobe.connect(proxy.url, engine="vllm", value_kind="raw")
    found = probe.generate(CHINESE, prompt=False, **PROXIED)
    assert found.output.ids is None
    assert found.output.tokens == ["w"] * 5
