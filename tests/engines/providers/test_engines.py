"""Engines behind servers that answer as their sources say: every number against the same model, opened here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import wire_engines as wire
from wire_server import WireServer

import vlmprobe
from vlmprobe.engines.providers.vllm.server import decoding_fields
from vlmprobe.engines.serving import Decoding
from vlmprobe.errors import (
    CapabilityError,
    EngineResponseError,
    GenerationOptionError,
    MessageError,
    VlmprobeWarning,
)

PICTURES = sorted((Path(vlmprobe.__file__).parent / "demo" / "pictures").glob("*.png"))
QUESTION = "Describe the picture."
GREEDY = {"max_new_tokens": 32, "do_sample": False}


@pytest.fixture(scope="module")
def local():
    return vlmprobe.load("demo", dtype="float32", device="cpu")


@pytest.fixture
def model(local):
    return wire.Model(local, QUESTION)


def routes(engine: str, model: wire.Model, **more) -> dict:
    paths = {"sglang": "/generate", "lightllm": "/generate", "ollama": "/api/chat"}
    name = more.pop("facts", "facts")
    return {
        **wire.facts(engine, name),
        paths.get(engine, "/v1/chat/completions"): getattr(wire, engine)(model, **more),
    }


def require_same(served, here, *, ids: bool = True, tolerance: float = 1e-4):
    """The chosen tokens, their log-probabilities, and the alternatives that the engine gives."""
    assert served.text == here.text
    count = len(served.output)
    assert count >= len(here.output) - 1  # some engines leave out the end token
    if ids:
        np.testing.assert_array_equal(served.output.ids, here.output.ids[:count])
    else:
        assert served.output.ids is None
    np.testing.assert_allclose(served.output.logprobs, here.output.logprobs[:count], atol=tolerance)
    wide = served.output.top_logprobs.shape[1]
    np.testing.assert_allclose(served.output.top_logprobs, here.output.top_logprobs[:count, :wide], atol=tolerance)
    assert np.isnan(served.output.entropy).all()  # only a part of the vocabulary is known


@pytest.mark.parametrize("engine", ["sglang", "lightllm", "lmdeploy", "llamacpp", "ollama"])
def test_each_server_is_recognised_and_gives_the_numbers_of_its_model(local, model, engine):
    here = local.generate(QUESTION, PICTURES[4], alternatives=4, **GREEDY)
    with WireServer(routes(engine, model)) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        assert probe.meta["engine"] == engine
        more = {} if engine == "lightllm" else {"alternatives": 4}
        result = probe.generate(QUESTION, PICTURES[4], **more, **GREEDY)
    require_same(result, here, ids=engine != "ollama")
    assert result.meta["value_kind"] == "raw"
    assert result.output.top_logprobs.shape[1] == (0 if engine == "lightllm" else 4)
    if engine in ("lmdeploy", "llamacpp", "ollama"):
        assert result.prompt is None
        assert "prompt" in result.meta["absent"]


@pytest.mark.parametrize("engine", ["lmdeploy", "llamacpp", "ollama"])
def test_without_a_processor_tokens_are_texts(local, model, engine):
    here = local.generate(QUESTION, PICTURES[0], **GREEDY)
    with WireServer(routes(engine, model)) as server:
        result = vlmprobe.connect(server.url).generate(QUESTION, PICTURES[0], alternatives=3, **GREEDY)
    count = len(result.output)
    np.testing.assert_allclose(result.output.logprobs, here.output.logprobs[:count], atol=1e-4)
    assert result.text == here.text
    assert result.output.ranks.tolist() == here.output.ranks[:count].tolist()
    np.testing.assert_allclose(result.output.top_logprobs, here.output.top_logprobs[:count, :3], atol=1e-4)


# -- prompts -------------------------------------------------------------------------------------------


def test_sglang_prompt_is_masked_where_the_picture_is(local, model):
    here = local.generate(QUESTION, PICTURES[1], **GREEDY)
    with WireServer(routes("sglang", model)) as server:
        served = vlmprobe.connect(server.url, processor=local).generate(QUESTION, PICTURES[1], prompt=True, **GREEDY)
        sent = server.of("/generate")[-1].json
    assert served.prompt.kinds == here.prompt.kinds
    assert served.prompt.image_spans == here.prompt.image_spans
    np.testing.assert_array_equal(served.input_ids, here.input_ids)
    # A genuine id 0, or the last one, cannot be told from what stands for a picture.
    told = served.prompt.scored
    assert told.sum() >= here.prompt.scored.sum() - 1
    np.testing.assert_allclose(served.prompt.logprobs[told], here.prompt.logprobs[told], atol=1e-4)
    assert sent["logprob_start_len"] == 0
    assert len(sent["image_data"]) == 1


def test_sglang_refuses_a_prompt_that_another_processor_makes(local, model):
    def other(request):
        reply = wire.sglang(model)(request)
        if "input_token_logprobs" in reply["meta_info"]:
            entry = reply["meta_info"]["input_token_logprobs"][-1]
            entry[1] += 1
        return reply

    with WireServer({**wire.facts("sglang"), "/generate": other}) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        with pytest.raises(EngineResponseError, match=r"position \d+ of the prompt is token"):
            probe.generate(QUESTION, PICTURES[1], prompt=True, **GREEDY)


def test_new_lightllm_with_a_picture_knows_the_likeliest_and_bounds_the_rest(local, model, monkeypatch):
    monkeypatch.setattr("vlmprobe.engines.providers.lightllm.server.MOST", 5)
    here = local.generate(QUESTION, PICTURES[2], **GREEDY)
    with WireServer(routes("lightllm", model)) as server:
        served = vlmprobe.connect(server.url, processor=local).generate(QUESTION, PICTURES[2], prompt=True, **GREEDY)
        sent = server.of("/generate")[-1].json
    assert sent["parameters"]["prompt_logprobs"] == 5
    assert served.prompt.kinds == here.prompt.kinds
    np.testing.assert_array_equal(served.prompt.ids, here.prompt.ids)  # no virtual id is left
    assert [(span.start, span.stop) for span in served.prompt.image_spans] == [
        (span.start, span.stop) for span in here.prompt.image_spans
    ]
    told = served.prompt.scored
    likely = (here.prompt.ranks >= 0) & (here.prompt.ranks < 5)
    np.testing.assert_array_equal(told, likely)
    np.testing.assert_allclose(served.prompt.logprobs[told], here.prompt.logprobs[told], atol=1e-4)
    bounded = (here.prompt.ranks >= 5) & ~told
    if bounded.any():
        assert (served.prompt.logprobs_at_most[bounded] >= here.prompt.logprobs[bounded]).all()


def test_new_lightllm_without_a_picture_knows_every_token(local, model):
    here = local.generate(QUESTION, **GREEDY)
    with WireServer(routes("lightllm", model)) as server:
        served = vlmprobe.connect(server.url, processor=local).generate(QUESTION, prompt=True, **GREEDY)
        assert server.of("/generate")[-1].json["parameters"]["prompt_logprobs"] == 0
    np.testing.assert_allclose(served.prompt.logprobs, here.prompt.logprobs, atol=1e-4)


def test_old_lightllm(local, model):
    here = local.generate(QUESTION, **GREEDY)
    with WireServer(routes("lightllm", model, facts="facts-old", new=False)) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        served = probe.generate(QUESTION, prompt=True, **GREEDY)
        np.testing.assert_allclose(served.prompt.logprobs, here.prompt.logprobs, atol=1e-4)
        sent = len(server.of("/generate"))
        with pytest.raises(CapabilityError, match="update it and start it with --enable_prompt_logprobs"):
            probe.generate(QUESTION, PICTURES[0], prompt=True, **GREEDY)
        assert len(server.of("/generate")) == sent  # refused before anything is sent
        unasked = probe.generate(QUESTION, PICTURES[0], **GREEDY)  # nobody asked for the prompt by name
    assert unasked.prompt is None
    assert "This version of LightLLM" in unasked.meta["absent"]["prompt"]


@pytest.mark.parametrize("new", [True, False])
def test_lightllm_started_without_the_flag_says_which(local, model, new):
    replies = routes("lightllm", model, facts="facts" if new else "facts-old", new=new, prompts=False)
    if new:
        replies["/get_server_info"] = {**replies["/get_server_info"], "enable_prompt_logprobs": False}
    with WireServer(replies) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        flag = "--enable_prompt_logprobs" if new else "--return_all_prompt_logprobs"
        with pytest.raises(CapabilityError, match=flag):
            probe.generate(QUESTION, prompt=True, **GREEDY)
        assert probe.generate(QUESTION, PICTURES[0], **GREEDY).prompt is None
        with pytest.raises(CapabilityError, match=flag):
            probe.score(QUESTION, ["a", "an"])


# -- candidates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["sglang", "lightllm"])
def test_candidates(local, engine):
    question, answers = "Is there a two?", ["yes", "no", "a two on the left"]
    model = wire.Model(local, question)
    here = local.score(question, answers, PICTURES[0])
    with WireServer(routes(engine, model)) as server:
        served = vlmprobe.connect(server.url, processor=local).score(question, answers, PICTURES[0])
    for one, other in zip(served.tables, here.tables, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)
        np.testing.assert_array_equal(one.positions, other.positions)
    assert served.best == here.best


def test_sglang_scores_all_candidates_of_one_token_by_one_request(local):
    question, answers = "Is there a two?", ["yes", "no", "a two on the left"]
    model, scores, sent = wire.Model(local, question), {}, {}
    for chosen in (True, False):  # one that knows token_ids_logprob, and one that ignores it
        with WireServer(routes("sglang", model, chosen=chosen)) as server:
            probe = vlmprobe.connect(server.url, processor=local, value_kind="raw")
            scores[chosen] = probe.score(question, answers, PICTURES[0], alternatives=3)
            sent[chosen] = [each.json["text"] for each in server.of("/generate")]
    single = [len(table) == 1 for table in scores[True].tables]
    assert single == [True, True, False]
    assert [len(sent[True]), len(sent[False])] == [2, 4]
    assert scores[True].meta["candidates"] == "chosen ids"
    here = local.score(question, answers, PICTURES[0], alternatives=3)
    for one, other, own in zip(scores[True].tables, scores[False].tables, here.tables, strict=True):
        np.testing.assert_array_equal(one.ids, own.ids)
        np.testing.assert_array_equal(one.positions, own.positions)
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-6)
        np.testing.assert_allclose(one.logprobs, own.logprobs, atol=1e-4)
        np.testing.assert_allclose(one.top_logprobs, own.top_logprobs, atol=1e-4)


@pytest.mark.parametrize("found", [[], [[]], [[[-1.0, 5_000_000, None]] * 2], [[None, None]], "x", [[[None, 1, None]]]])
def test_sglang_candidates_in_a_broken_reply(local, found):
    def broken(request):
        reply = wire.sglang(wire.Model(local, "Is there a two?"))(request)
        if "token_ids_logprob" in request.json:
            reply["meta_info"]["output_token_ids_logprobs"] = found
        return reply

    with WireServer({**wire.facts("sglang"), "/generate": broken}) as server:
        probe = vlmprobe.connect(server.url, processor=local, value_kind="raw")
        with pytest.raises(EngineResponseError):
            probe.score("Is there a two?", ["yes", "no"], PICTURES[0])


# -- what the numbers mean -----------------------------------------------------------------------------


def test_turbomind_is_told_from_pytorch_and_refuses_greedy_answers(local, model):
    with WireServer(routes("lmdeploy", model, turbomind=True)) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        with pytest.raises(CapabilityError, match=r"engine='lmdeploy'.*--logprobs-mode raw_logprobs") as raised:
            probe.generate(QUESTION, PICTURES[0], **GREEDY)
        assert "after its filters" in str(raised.value)
        plain = probe.generate(QUESTION, PICTURES[0], max_new_tokens=8, do_sample=True, temperature=1.0, alternatives=4)
        assert plain.meta["value_kind"] == "raw"
        cut = probe.generate(QUESTION, PICTURES[0], max_new_tokens=8, do_sample=True, top_k=3)
    here = local.generate(QUESTION, PICTURES[0], max_new_tokens=8, do_sample=False, alternatives=4)
    np.testing.assert_allclose(plain.output.logprobs, here.output.logprobs[: len(plain.output)], atol=1e-4)
    assert cut.meta["value_kind"] == "filtered"
    assert np.isnan(cut.output.logprobs).all()  # never passed off as the model's own
    assert not np.isnan(cut.output.scores).any()


def test_pytorch_engine_of_lmdeploy_in_logits_mode_has_no_log_probabilities(local, model):
    with WireServer(routes("lmdeploy", model, mode="raw_logits")) as server:
        result = vlmprobe.connect(server.url, processor=local).generate(QUESTION, PICTURES[0], **GREEDY)
    assert np.isnan(result.output.logprobs).all()
    assert result.output.ranks[0] == 0


def test_lmdeploy_without_log_probabilities_says_how_to_start_it(local, model):
    with (
        WireServer(routes("lmdeploy", model, mode=None)) as server,
        pytest.raises(CapabilityError, match="--logprobs-mode raw_logprobs"),
    ):
        vlmprobe.connect(server.url).generate(QUESTION, PICTURES[0], **GREEDY)


def test_sglang_numbers_are_tempered(local, model):
    with WireServer(routes("sglang", model)) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        hot = probe.generate(QUESTION, PICTURES[0], max_new_tokens=6, do_sample=True, temperature=2.0)
    rows = local.generate(QUESTION, PICTURES[0], keep="logits", max_new_tokens=6, do_sample=False).output
    assert hot.meta["value_kind"] == "tempered"
    assert np.isnan(hot.output.logprobs).all()
    due = [wire.logprobs(row / 2.0)[each] for row, each in zip(rows.logits, rows.ids, strict=True)]
    np.testing.assert_allclose(hot.output.scores, due, atol=1e-4)


# -- texts, refusals -----------------------------------------------------------------------------------


def test_llamacpp_pieces_of_characters_are_joined(local):
    reply = json.loads((wire.WIRE / "llamacpp" / "pieces.json").read_text(encoding="utf-8"))
    with WireServer({**wire.facts("llamacpp"), "/v1/chat/completions": reply}) as server:
        table = vlmprobe.connect(server.url).generate("?", alternatives=2, max_new_tokens=4).output
    assert table.tokens == ["", "猫", " ", "🐈"]
    assert table.ids.tolist() == [11, 13, 15, 17]
    assert table.offsets.tolist() == [[0, 0], [0, 1], [1, 2], [2, 3]]
    np.testing.assert_allclose(table.logprobs[:3], [-0.5, -0.25, -2.0])
    assert np.isnan(table.logprobs[3])  # the lowest float is no log-probability
    assert table.ranks.tolist()[:3] == [0, 0, 1]
    assert table.top_ids[1].tolist() == [13, -1]


@pytest.mark.parametrize(
    ("engine", "ask", "words"),
    [
        ("lightllm", {"alternatives": 3}, "no alternatives.*vLLM"),
        ("ollama", {"alternatives": 30}, "at most 20 alternatives"),
        ("ollama", {"prompt": True}, "no prompt side.*vLLM"),
        ("llamacpp", {"prompt": True}, "no prompt side.*vlmprobe.load"),
        ("lmdeploy", {"prompt": True}, "no prompt side.*engine='lmdeploy'"),
        ("lmdeploy", {"keep": "logits"}, "no full rows.*engine='lmdeploy'"),
        ("lmdeploy", {"alternatives": 2000}, "at most 1024"),
        ("sglang", {"keep": "logits"}, "no full rows"),
        ("sglang", {"keep": "hidden"}, "no hidden states"),
        ("ollama", {"min_new_tokens": 3}, "does not take min_new_tokens"),
        ("lightllm", {"min_p": 0.1, "do_sample": True}, "does not take min_p"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_anything_is_sent(local, engine, ask, words):
    with WireServer({**wire.facts(engine)}) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        before = len(server.requests)
        with pytest.raises((CapabilityError, GenerationOptionError), match=f"(?s){words}"):
            probe.generate(QUESTION, PICTURES[0], **ask)
        assert len(server.requests) == before


@pytest.mark.parametrize("engine", ["lmdeploy", "llamacpp", "ollama"])
def test_candidates_of_several_tokens_are_refused_by_engines_that_cannot_score_text(local, model, engine):
    with WireServer(routes(engine, model)) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        with pytest.raises(CapabilityError, match=r"none of .* is one of them.*(vLLM|vlmprobe\.load)"):
            probe.score(QUESTION, ["a two on the left", "a two on the right"], PICTURES[0])


def test_candidates_are_refused_before_anything_is_sent_where_nothing_is_listed(local):
    replies = {**wire.facts("lightllm")}
    replies["/get_server_info"] = {**replies["/get_server_info"], "enable_prompt_logprobs": False}
    with WireServer(replies) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        with pytest.raises(CapabilityError, match=r"cannot score candidates.*--enable_prompt_logprobs"):
            probe.score(QUESTION, ["yes", "no"])
        assert not [request for request in server.requests if request.method == "POST"]


@pytest.mark.parametrize("engine", ["sglang", "lightllm"])
def test_engines_that_take_text_need_the_processor(engine):
    with WireServer(wire.facts(engine)) as server:
        probe = vlmprobe.connect(server.url)
        with pytest.raises(CapabilityError, match="processor="):
            probe.generate(QUESTION, PICTURES[0])
        assert not [request for request in server.requests if request.method == "POST"]


@pytest.mark.parametrize("engine", ["sglang", "lightllm"])
def test_an_image_tag_in_the_question_is_refused(local, engine):
    with WireServer(wire.facts(engine)) as server:
        probe = vlmprobe.connect(server.url, processor=local, value_kind="raw")
        with pytest.raises(MessageError, match="image tag"):
            probe.generate("What is <image>?", PICTURES[0], prompt=False)


def test_the_embedded_model_reads_tokens_by_its_name(local, model):
    here = local.generate(QUESTION, PICTURES[0], **GREEDY)
    with WireServer(routes("llamacpp", model)) as server:
        served = vlmprobe.connect(server.url, processor="demo").generate(QUESTION, PICTURES[0], **GREEDY)
    assert served.output.tokens == here.output.tokens[: len(served.output)]
    assert served.output.kinds == here.output.kinds[: len(served.output)]


@pytest.mark.parametrize(("engine", "image"), [("sglang", PICTURES[1]), ("lightllm", None)])
def test_engines_that_take_text_score_after_a_thought(local, model, engine, image):
    """LightLLM lists only the likeliest tokens of a prompt with images."""
    asked = {"options": ["a red two", "a blue nine", "an orange six"], "think": 5, "think_end": "; that is:"}
    here = local.ask(QUESTION, image, **asked)
    with WireServer(routes(engine, model)) as server:
        served = vlmprobe.connect(server.url, processor=local)
        there = served.ask(QUESTION, image, **asked)
    assert there.thought.output.ids.tolist() == here.thought.output.ids.tolist()
    assert there.thought.cut
    assert there.thought.text == here.thought.text
    assert "retokenised" not in there.meta["thought"]
    np.testing.assert_allclose(there.spellings.logprobs, here.spellings.logprobs, atol=1e-4)
    assert there.probabilities == pytest.approx(here.probabilities, abs=1e-4)


def test_sglang_counts_only_the_answer_in_its_penalty(local, model):
    with WireServer(routes("sglang", model)) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        with pytest.warns(VlmprobeWarning, match="counts the tokens of the answer only"):
            probe.generate(QUESTION, PICTURES[0], repetition_penalty=1.5, **GREEDY)
        with pytest.raises(CapabilityError, match="at most 2"):
            probe.generate(QUESTION, PICTURES[0], repetition_penalty=2.5, **GREEDY)


def test_ollama_counts_the_whole_prompt_in_its_penalty(local, model):
    with WireServer(routes("ollama", model)) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        probe.generate(QUESTION, PICTURES[0], repetition_penalty=1.5, **GREEDY)
        assert server.of("/api/chat")[-1].json["options"]["repeat_last_n"] == -1
        probe.generate(QUESTION, PICTURES[0], **GREEDY)
        assert "repeat_last_n" not in server.of("/api/chat")[-1].json["options"]


def test_a_stop_string_is_asked_to_stay_in_the_answer(local, model):
    with WireServer(routes("sglang", model)) as server:
        vlmprobe.connect(server.url, processor=local).generate(QUESTION, PICTURES[0], stop_strings=["."], **GREEDY)
        assert server.requests[-1].json["sampling_params"]["no_stop_trim"] is True
    assert decoding_fields(Decoding(stop_strings=(".",)))["include_stop_str_in_output"] is True
    assert "include_stop_str_in_output" not in decoding_fields(Decoding())
