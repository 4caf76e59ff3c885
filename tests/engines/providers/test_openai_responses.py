"""OpenAI's Responses API, replayed as it is documented."""

from __future__ import annotations

import numpy as np
import pytest
import wire_engines as wire
from openai_stream import MODELS, entry
from wire_server import WireServer

import vlmprobe
from vlmprobe.demo import sample_images
from vlmprobe.errors import CapabilityError, EngineError, EngineResponseError

PATH = "/v1/responses"
QUESTION = "Describe the picture."
GREEDY = {"max_new_tokens": 32, "do_sample": False}
PICTURE = sample_images()[4]


@pytest.fixture(scope="module")
def local():
    return vlmprobe.load("demo", dtype="float32", device="cpu")


def message(*content: dict, **more) -> dict:
    return {"status": "completed", "output": [{"type": "message", "role": "assistant", "content": [*content]}], **more}


def text(*tokens: str, **more) -> dict:
    return {"type": "output_text", "text": "".join(tokens), "logprobs": [entry(each) for each in tokens], **more}


def asked(reply: dict, **options) -> vlmprobe.Result:
    with WireServer({**MODELS, PATH: reply}) as server:
        probe = vlmprobe.connect(server.url, engine="openai-responses", value_kind="raw")
        return probe.generate("?", **{**GREEDY, **options})


def test_the_numbers_of_the_model_and_what_is_sent(local):
    here = local.generate(QUESTION, PICTURE, alternatives=4, **GREEDY)
    with WireServer({**MODELS, PATH: wire.openai_responses(wire.Model(local, QUESTION))}) as server:
        probe = vlmprobe.connect(server.url, engine="openai-responses")
        result = probe.generate(QUESTION, PICTURE, alternatives=4, **GREEDY)
        sent = server.of(PATH)[-1].json
    assert probe.meta["engine"] == "openai-responses"
    assert result.text == here.text
    assert result.meta["value_kind"] == "raw"
    np.testing.assert_allclose(result.output.logprobs, here.output.logprobs, atol=1e-4)
    np.testing.assert_allclose(result.output.top_logprobs, here.output.top_logprobs, atol=1e-4)
    assert result.output.ids is None
    assert "prompt" in result.meta["absent"]
    assert sent["store"] is False
    assert [part["type"] for part in sent["input"][0]["content"]] == ["input_image", "input_text"]


def test_a_limit_below_the_smallest_of_the_api(local):
    here = local.generate(QUESTION, PICTURE, max_new_tokens=3, do_sample=False)
    with WireServer({**MODELS, PATH: wire.openai_responses(wire.Model(local, QUESTION))}) as server:
        probe = vlmprobe.connect(server.url, engine="openai-responses", value_kind="raw")
        result = probe.generate(QUESTION, PICTURE, max_new_tokens=3, do_sample=False)
    assert (result.text, result.meta["finish_reason"]) == (here.text, "length")
    np.testing.assert_allclose(result.output.logprobs, here.output.logprobs, atol=1e-4)
    assert result.confidence == pytest.approx(here.confidence, rel=1e-4)


def test_a_lost_row_of_an_answer_that_is_cut_is_not_forgotten():
    reply = message(text("a", "b", "c"), usage={"input_tokens": 1, "output_tokens": 5})
    assert np.isnan(asked(reply, max_new_tokens=2).confidence)
    reply["usage"]["output_tokens"] = 4  # the end token is counted, and has no row
    assert asked(reply, max_new_tokens=2).confidence == pytest.approx(np.exp(-1))


def test_candidates_of_one_token(local):
    model = wire.Model(local, QUESTION)
    with WireServer({**MODELS, PATH: wire.openai_responses(model)}) as server:
        probe = vlmprobe.connect(server.url, engine="openai-responses", value_kind="raw")
        first = probe.generate(QUESTION, PICTURE, alternatives=20, **GREEDY).output
        names = [each for each in first.top_tokens[0] if each.strip().isalpha()][:2]
        scores = probe.score(QUESTION, names, PICTURE)
    assert len(names) == 2
    places = [list(first.top_tokens[0]).index(each) for each in names]
    values = [table.logprobs[0] for table in scores.tables]
    np.testing.assert_allclose(values, first.top_logprobs[0][places], atol=1e-6)


def test_parts_of_an_answer_are_one():
    reasoning = {"type": "reasoning", "summary": []}
    usage = {"input_tokens": 9, "output_tokens": 6, "output_tokens_details": {"reasoning_tokens": 3}}
    reply = message(text("a", "b"), text("c"), usage=usage)
    reply["output"].insert(0, reasoning)
    result = asked(reply)
    assert result.text == "abc"
    assert result.output.tokens == ["a", "b", "c"]
    assert result.confidence == pytest.approx(np.exp(-1.5))
    assert "3 tokens of reasoning" in result.meta["absent"]["reasoning"]


def test_an_answer_that_its_limit_ended():
    reply = message(text("a"), status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    assert asked(reply).meta["finish_reason"] == "length"


def test_a_seed_is_told_to_have_no_effect():
    assert "seed" in asked(message(text("a")), do_sample=True, seed=1).meta["absent"]
    assert "seed" not in asked(message(text("a")), seed=1).meta.get("absent", {})


@pytest.mark.parametrize(
    ("reply", "kind", "words"),
    [
        (message(text("a", logprobs=[])), EngineResponseError, "sends no log-probabilities"),
        (message(text("a", logprobs=None)), EngineResponseError, "sends no log-probabilities"),
        (message({"type": "refusal", "refusal": "I cannot."}), EngineResponseError, "refuses to answer: 'I cannot.'"),
        (message(text("a"), status="in_progress"), EngineResponseError, "'in_progress', not that of an answer"),
        (message(text("a"), error={"message": "overloaded"}), EngineError, "overloaded"),
        (message(text("a"), status="incomplete"), EngineResponseError, "incomplete_details"),
        ({"status": "completed", "output": [{"type": "reasoning"}]}, EngineResponseError, "no message with a text"),
        (message(text(*["a"] * 33)), EngineResponseError, "at most"),
    ],
)
def test_what_is_no_answer(reply, kind, words):
    with pytest.raises(kind, match=words):
        asked(reply)


def test_what_the_api_does_not_have_is_refused_before_anything_is_sent():
    with pytest.raises(CapabilityError, match="does not take stop_strings"):
        asked({}, stop_strings=["."])
    with pytest.raises(CapabilityError, match="at most 20 alternatives"):
        asked({}, alternatives=21)


def test_without_engine_the_chat_api_is_asked():
    with WireServer(MODELS) as server:
        assert vlmprobe.connect(server.url).meta["engine"] == "openai"
