"""A real llama.cpp server on the CPU, whose numbers are compared with the same checkpoint, opened here."""

from __future__ import annotations

import json
import re
import warnings

import httpx
import jsonschema
import llamacpp_server
import numpy as np
import pytest
from engine_tables import parity
from PIL import Image
from wire_server import WireServer

import vlmprobe
from vlmprobe.engines.base import Options
from vlmprobe.engines.serving import Decoding, Usage
from vlmprobe.engines.serving.health import examine
from vlmprobe.engines.serving.http import background_loop
from vlmprobe.errors import CapabilityError, EngineError, VlmprobeWarning
from vlmprobe.inputs.messages import Conversation

TEXT, IMAGE, TWO_IMAGES, LIKELIEST = 2e-4, 5e-3, 1e-2, 2e-2  # nats: llama.cpp's vision tower is its own, in part half
UNLIKELY = 2 * TEXT  # of tokens that only a constraint lets through, at 1e-5
QUESTION = "What is in the picture?"
MODEL = "Qwen2.5-VL"
GREEDY = {"max_new_tokens": 12, "do_sample": False}
SPANS = {"max_new_tokens": 8, "do_sample": False}  # an answer to the question alone of which a character spans tokens


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    server, running = llamacpp_server.start(tmp_path_factory.mktemp("llamacpp") / "tiny")
    yield server
    del running


@pytest.fixture(scope="module")
def local(started):
    return vlmprobe.load(str(started.folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def probe(started, local):
    return vlmprobe.connect(started.url, processor=local)


def picture(seed: int, width: int = 112, height: int = 112) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 14, width // 14, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def figures():
    with parity("llama.cpp") as rows:
        yield rows


def require_same(served, here, tolerance: float, figures, label: str) -> None:
    """Ids, texts and every log-probability that the server sends, of the same answer opened here."""
    assert served.output.ids.tolist() == here.output.ids.tolist()
    assert served.output.tokens == here.output.tokens
    assert served.output.offsets.tolist() == here.output.offsets.tolist()
    told = served.output.scored
    assert told.sum() >= len(told) / 2
    wide = TEXT if tolerance == TEXT else LIKELIEST
    for what, name, allowed in (
        ("generated", "logprobs", tolerance),
        ("generated, likeliest", "top_logprobs", wide),
    ):
        one, other = (getattr(each.output, name)[told] for each in (served, here))
        figures[label, what] = float(np.abs(one - other).max())
        np.testing.assert_allclose(one, other, atol=allowed)


def test_it_is_recognised(probe):
    assert probe.meta["engine"] == "llamacpp"
    assert probe.engine.server.context == llamacpp_server.CONTEXT
    assert probe.engine.server.more["vocabulary"] == 396


def test_an_answer_of_which_a_character_spans_tokens(probe, local, figures):
    served, here = (each.generate(QUESTION, alternatives=4, **SPANS) for each in (probe, local))
    require_same(served, here, TEXT, figures, f"{MODEL}, text only")
    lost = np.flatnonzero(~served.output.scored)
    assert len(lost) == 1
    assert np.isnan(served.confidence)
    assert np.isnan(served.mean_confidence)
    assert served.output.logprobs_at_most[lost[0]] == 0
    assert served.output.tokens[lost[0] : lost[0] + 2] == ["", "\ufffd迤"]
    assert "8 tokens were generated, and 1 of them sent without a row" in served.meta["absent"]["rows"]
    # The sum of the others is an upper bound.
    assert np.nansum(served.output.logprobs) > here.output.logprob


def test_the_text_is_the_servers(probe, started):
    told = probe.generate(QUESTION, **SPANS)
    bare = vlmprobe.connect(started.url).generate(QUESTION, **SPANS)
    assert told.text == bare.text == "\ufffd迤}\ufffd cat\ufffd`"
    assert told.output.ids.tolist() == bare.output.ids.tolist()
    assert bare.output.tokens[1:3] == ["", "迤"]


def test_lost_rows_reach_what_is_made_of_samples(probe):
    drawn = probe.sample(QUESTION, n=3, seed=0, max_new_tokens=8)
    lost = [len(each.output) > each.output.scored.sum() for each in drawn]
    assert any(lost)
    assert np.isnan(drawn.logprobs).tolist() == lost
    assert np.isnan(drawn.semantic_entropy())


@pytest.mark.parametrize("size", [(112, 112), (112, 84)])
def test_an_image(probe, local, figures, size):
    image = picture(3, *size)
    served, here = (each.generate(QUESTION, image, alternatives=10, **GREEDY) for each in (probe, local))
    require_same(served, here, IMAGE, figures, f"{MODEL}, a picture of {size[0]} x {size[1]}")


def test_two_images_among_texts(probe, local, figures):
    asked = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "First "},
                {"type": "image", "image": picture(4)},
                {"type": "text", "text": " then "},
                {"type": "image", "image": picture(5, 112, 84)},
                {"type": "text", "text": ": which is darker?"},
            ],
        },
    ]
    served, here = (each.generate(asked, alternatives=3, **GREEDY) for each in (probe, local))
    require_same(served, here, TWO_IMAGES, figures, f"{MODEL}, two pictures")


def test_numbers_stay_raw_whatever_the_sampling(probe, local):
    drawn = probe.generate("Count.", do_sample=True, temperature=2.0, top_k=5, seed=3, max_new_tokens=6, alternatives=3)
    exact = local.generate("Count.", keep="logits", do_sample=False, max_new_tokens=1)
    assert drawn.meta["value_kind"] == "raw"
    np.testing.assert_allclose(drawn.output.top_logprobs[0], exact.output.top_logprobs[0, :3], atol=TEXT)


def test_a_repetition_penalty_counts_the_whole_prompt(probe, local):
    asked = "one two three four five six seven eight nine ten " * 4
    ids = [each.generate(asked, repetition_penalty=1.3, **GREEDY).output.ids for each in (probe, local)]
    assert len(local.generate(asked, **GREEDY).input_ids) > 64  # what llama.cpp counts by default
    assert ids[0].tolist() == ids[1].tolist()


def test_a_stop_string_belongs_to_the_answer(probe, local):
    served, here = (each.generate(QUESTION, stop_strings=["t"], **SPANS) for each in (probe, local))
    assert served.text == here.text
    assert served.text.endswith(" cat")
    assert served.output.ids.tolist() == here.output.ids.tolist()
    assert served.finish_reason == here.finish_reason == "stop"
    assert not served.output.scored[-1]  # its rows are cut with it


def test_all_alternatives_give_the_entropy(probe, local):
    served, here = (each.generate("Hi", alternatives=396, max_new_tokens=3, do_sample=False) for each in (probe, local))
    told = served.output.scored
    np.testing.assert_allclose(served.output.entropy[told], here.output.entropy[told], atol=TEXT)
    assert np.isnan(served.output.logsumexp).all()  # the raw logits are not known


def test_a_stream_has_the_rows_of_the_whole_answer(started):
    probe = vlmprobe.connect(started.url)
    whole = probe.generate(QUESTION, alternatives=2, **SPANS)
    stream = probe.stream(QUESTION, alternatives=2, **SPANS)
    rows = list(stream)
    assert stream.result.text == whole.text
    assert [row.tokens[0] for row in rows] == stream.result.output.tokens == whole.output.tokens
    np.testing.assert_allclose(stream.result.output.logprobs, whole.output.logprobs, atol=1e-5)
    assert np.concatenate([row.logprobs for row in rows]).tobytes() == stream.result.output.logprobs.tobytes()
    assert np.isnan(stream.result.confidence)
    assert stream.result.output.ids is None  # a stream does not name the lost one


def test_a_stream_with_an_image_and_a_stop_string(probe):
    asked = {"stop_strings": ["zzz"], "alternatives": 2, **GREEDY}
    whole = probe.generate(QUESTION, picture(3), **asked)
    stream = probe.stream(QUESTION, picture(3), **asked)
    assert len(list(stream)) == len(whole.output)
    assert stream.result.text == whole.text
    np.testing.assert_allclose(stream.result.output.logprobs, whole.output.logprobs, atol=1e-5)


SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False},
    {"enum": ["red", "a cat", 7, None]},
    {"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 12}, "minItems": 1, "maxItems": 3},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 9}, {"$ref": "#/$defs/x"}], "$defs": {"x": {"const": "é"}}},
]


def require_raw(served, local, question, image=None, *, tolerance) -> None:
    """The numbers of an answer are those of its tokens without a constraint."""
    assert served.meta["value_kind"] == "raw"
    assert served.output.scores is None
    told = served.output.scored
    assert told.sum() >= len(told) / 2
    after = local.engine.score_ids([Conversation.build(question, image)], served.output.ids.tolist(), Options())[0]
    np.testing.assert_allclose(served.output.logprobs[told], after.logprobs[told], atol=tolerance)


@pytest.mark.parametrize("schema", SCHEMAS, ids=["object", "enum", "array", "string", "any of"])
@pytest.mark.parametrize("sampled", [{}, {"do_sample": True, "seed": 5, "temperature": 2.0, "top_k": 40}])
def test_a_schema_is_obeyed_and_numbers_stay_raw(probe, local, schema, sampled):
    served = probe.generate(QUESTION, schema=schema, max_new_tokens=200, **sampled)
    if served.finish_reason == "stop":
        jsonschema.validate(json.loads(served.text), schema)
    else:  # llama.cpp allows white space without an end
        assert schema["type"] == "array"
        assert re.fullmatch(r"\[[-\d,\s]*", served.text)
    require_raw(served, local, QUESTION, tolerance=UNLIKELY)


DROPPED = [
    {"type": "array", "uniqueItems": True, "items": {"type": "integer"}},
    {"oneOf": [{"const": 1}, {"const": 2}]},
    {"not": {"type": "string"}},
    {"if": {"const": 1}, "then": {"const": 1}},
    {"type": "nonsense"},
    {"type": "object", "properties": {"oneOf": {"type": "string", "format": "email"}}},
]


@pytest.mark.parametrize("schema", DROPPED, ids=str)
def test_a_schema_that_the_server_would_drop_is_refused(probe, started, schema):
    prompt = {"prompt": "Hi", "n_predict": 8, "temperature": 0.0}
    bare, sent = (
        httpx.post(f"{started.url}/completion", json=prompt | more, timeout=60).json()
        for more in ({}, {"json_schema": schema})
    )
    dropped = bare["content"] == sent["content"]
    assert dropped or "format" in str(schema)  # some formats are held to by some builds
    with pytest.raises(CapabilityError, match="does not hold an answer to"):
        probe.generate(QUESTION, schema=schema, max_new_tokens=8)


def test_a_grammar_is_obeyed_and_numbers_stay_raw(probe, local):
    served = probe.generate(QUESTION, picture(3), grammar='root ::= ("yes" | "no") " " [0-9]{2}', max_new_tokens=16)
    assert re.fullmatch("(yes|no) [0-9]{2}", served.text)
    assert served.meta["constraint"]["grammar"].startswith("root")
    require_raw(served, local, QUESTION, picture(3), tolerance=LIKELIEST)
    here = local.generate(QUESTION, picture(3), grammar='root ::= ("yes" | "no") " " [0-9]{2}', max_new_tokens=16)
    assert here.text == served.text


def test_a_constraint_on_a_stream(probe, local):
    asked = {"grammar": 'root ::= "yes" | "no"', "max_new_tokens": 8, "alternatives": 3}
    whole = probe.generate(QUESTION, **asked)
    stream = probe.stream(QUESTION, **asked)
    rows = list(stream)
    assert stream.result.text == whole.text in ("yes", "no")
    np.testing.assert_allclose([row.logprobs[0] for row in rows], whole.output.logprobs, atol=1e-5)
    require_raw(whole, local, QUESTION, tolerance=TEXT)


def test_a_grammar_that_cannot_be_read_is_the_servers_error(probe):
    with pytest.raises(EngineError, match="failed to parse grammar"):
        probe.generate(QUESTION, grammar='start: "yes"')  # Lark: llama.cpp reads GBNF


def test_candidates_of_one_token(probe, local):
    served, here = (each.score(QUESTION, ["a", "b", "}"], picture(6)) for each in (probe, local))
    np.testing.assert_allclose(served.logprobs, here.logprobs, atol=LIKELIEST)
    served, here = (each.score("Which?", ["a", "b", "}"]) for each in (probe, local))
    np.testing.assert_allclose(served.logprobs, here.logprobs, atol=TEXT)


CANDIDATES = ["a cat", "blue", "no", "a", " two}", "迤"]


@pytest.mark.parametrize("size", [None, (112, 84)], ids=["text", "image"])
def test_candidates_of_any_text(probe, local, started, figures, size):
    image = None if size is None else picture(6, *size)
    texts = CANDIDATES if image is None else CANDIDATES[:-1]
    served, here = (each.score(QUESTION, texts, image, alternatives=3) for each in (probe, local))
    assert [table.ids.tolist() for table in served.tables] == [table.ids.tolist() for table in here.tables]
    assert max(map(len, served.tables)) > 1
    label = f"{MODEL}, text only" if size is None else f"{MODEL}, a picture of {size[0]} x {size[1]}"
    figures[label, "tokens of candidates"] = max(
        float(np.abs(found.logprobs - due.logprobs).max())
        for found, due in zip(served.tables, here.tables, strict=True)
    )
    for found, due in zip(served.tables, here.tables, strict=True):
        np.testing.assert_allclose(found.logprobs, due.logprobs, atol=TEXT if image is None else IMAGE)
        assert found.positions.tolist() == due.positions.tolist()
        assert found.tokens == due.tokens
    for each in texts[:2]:  # each alone is forced, several are looked for among those that are listed
        alone = probe.score(QUESTION, [each], image)
        assert alone.logprobs[0] == pytest.approx(served.logprobs[texts.index(each)], abs=1e-4)
    bare = vlmprobe.connect(started.url).score(QUESTION, texts, image)
    np.testing.assert_allclose(bare.logprobs, served.logprobs, atol=1e-4)


def test_a_piece_of_a_character_after_an_image_is_refused(probe):
    with pytest.raises(CapabilityError, match="as text only"):
        probe.score(QUESTION, ["迤"], picture(6))


def test_twelve_at_once(probe, figures):
    requests = [vlmprobe.Request(f"Number {place}?", picture(place % 3)) for place in range(12)]
    together = list(probe.generate_many(requests, **SPANS))
    for request, found in list(zip(requests, together, strict=True))[::4]:
        alone = probe.generate(request.question, request.image, **SPANS)
        assert found.text == alone.text
        np.testing.assert_allclose(found.output.logprobs, alone.output.logprobs, atol=1e-4)
        told = found.output.scored
        off = float(np.abs(found.output.logprobs - alone.output.logprobs)[told].max())
        figures[MODEL, "12 at once, one by one"] = max(off, figures.get((MODEL, "12 at once, one by one"), 0.0))


@pytest.mark.parametrize("top", [1, 2])
def test_behind_a_proxy_that_has_only_the_chat_route(started, top):
    """Its models are owned by someone else; the bytes say where a token was lost."""

    def passed_on(request):
        return httpx.post(started.url + request.path, content=request.body, timeout=60).json()

    models = {"data": [{"id": "m", "owned_by": "openai"}]}
    whole = vlmprobe.connect(started.url).generate(QUESTION, alternatives=2, **SPANS)
    for engine in ("llamacpp", "openai"):
        with WireServer({"/v1/models": models, "/v1/chat/completions": passed_on}) as proxy:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VlmprobeWarning)
                probe = vlmprobe.connect(proxy.url, engine=engine, value_kind="raw")
            found = probe.generate(QUESTION, alternatives=top, **SPANS)
        assert found.text == whole.text
        assert np.isnan(found.confidence)
        told = found.output.scored
        assert (~told).sum() + found.output.lost == 1
        np.testing.assert_allclose(found.output.logprobs[told], whole.output.logprobs[whole.output.scored], atol=1e-5)
        assert told.tolist() == whole.output.scored.tolist()
        assert found.output.tokens == whole.output.tokens


def test_what_does_not_fit_is_said(probe):
    with pytest.raises(EngineError, match="context"):
        probe.generate("word " * 3000, max_new_tokens=2)
    with pytest.raises(CapabilityError, match="no prompt side"):
        probe.generate(QUESTION, prompt=True)


def test_an_image_that_the_server_sizes_otherwise_is_noticed(started, local):
    probe = vlmprobe.connect(started.url, processor=local)
    with pytest.warns(VlmprobeWarning, match=r"128 x 128 pixels.*sizes the images otherwise"):
        served = probe.generate(QUESTION, picture(3, 128, 128), max_new_tokens=2)
    positions = served.meta["prompt_positions"]
    here = local.generate(QUESTION, picture(3, 128, 128), max_new_tokens=1)
    assert positions["processor"] == len(here.input_ids) != positions["server"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe.generate("And?", picture(4, 128, 128), max_new_tokens=2).meta["prompt_positions"]
        assert "prompt_positions" not in probe.generate(QUESTION, picture(3), max_new_tokens=2).meta


def test_doctor_sees_that_images_arrive(probe):
    health = background_loop.run(examine(probe.engine))
    found = {each.name: each for each in health.findings}
    assert found["images"].state == "yes"
    assert "positions" in found["images"].detail
    assert found["candidates"].detail == "of any text"


def test_usage_is_what_the_processor_gives(probe, local):
    here = local.generate(QUESTION, picture(3), max_new_tokens=1)
    asked = Conversation.build(QUESTION, picture(3))
    answer = background_loop.run(probe.engine.answer(asked, Decoding(max_new_tokens=3), Options(prompt=False)))
    assert answer.usage == Usage(len(here.input_ids), 3)
