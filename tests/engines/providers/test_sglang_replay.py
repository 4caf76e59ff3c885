"""SGLang as a real server answered (0.5.23 on a CPU, float32), replayed, and held against the model run here."""

from __future__ import annotations

import json

import numpy as np
import pytest
from common import DATA
from engine_record import CANDIDATES, QUESTION, SHORT, picture
from wire_recordings import read, routes
from wire_server import WireServer, event_stream

import vlmprobe
from vlmprobe.errors import EngineError, EngineResponseError

RECORDING = DATA / "wire/sglang/recorded-0.5.23-qwen2_5_vl.jsonl"
SHOWN = {"image": picture(), "max_new_tokens": 8, "alternatives": 3}
WITHIN = 1e-4


@pytest.fixture(scope="module")
def local(probe_of):
    return probe_of("qwen2_5_vl")


@pytest.fixture
def server():
    with WireServer(routes(RECORDING)) as server:
        yield server


@pytest.fixture
def served(server, local):
    return vlmprobe.connect(server.url, processor=local)


def require_same(here, there) -> None:
    assert here.ids.tolist() == there.ids.tolist()
    assert here.tokens == there.tokens
    for name in ("logprobs", "top_logprobs"):
        np.testing.assert_allclose(getattr(there, name), getattr(here, name), atol=WITHIN)


def test_an_answer_and_its_prompt(local, served):
    here, there = local.generate(QUESTION, do_sample=False, **SHOWN), served.generate(QUESTION, **SHOWN)
    assert there.input_ids.tolist() == here.input_ids.tolist()
    assert there.prompt.image_spans == here.prompt.image_spans
    require_same(here.prompt, there.prompt)
    require_same(here.output, there.output)


def test_candidates_of_one_token_are_one_request(local, server, served):
    texts = [*SHORT, *CANDIDATES]
    here = local.score(QUESTION, texts, SHOWN["image"], alternatives=1)
    before = len(server.of("/generate"))
    there = served.score(QUESTION, texts, SHOWN["image"], alternatives=1)
    np.testing.assert_allclose(there.logprobs, here.logprobs, atol=WITHIN)
    longer = sum(len(table) > 1 for table in here.tables)
    sent = [each.json for each in server.of("/generate")[before:]]
    assert sum("token_ids_logprob" in each for each in sent) == 1
    assert sum(each["sampling_params"]["max_new_tokens"] == 0 for each in sent) == longer


def test_more_alternatives_than_there_are_tokens_are_not_requested(local, server, served):
    """A real server ends at such a request ("selected index k out of range")."""
    size = local.engine.adapter.model.config.text_config.vocab_size
    for processor, most in ((local, size), (local.engine.adapter.processor, len(local.engine.adapter.tokenizer))):
        probe = vlmprobe.connect(server.url, processor=processor)
        with pytest.raises(EngineError, match="not recorded"):
            probe.generate(QUESTION, max_new_tokens=1, alternatives=10_000)
        assert server.of("/generate")[-1].json["top_logprobs_num"] == most


def test_a_seed_that_has_no_effect_is_told(served):
    sampled = {"do_sample": True, "temperature": 0.5, "top_k": 5, "seed": 3}
    there = served.generate(QUESTION, **SHOWN, **sampled, prompt=False)
    assert "--enable-deterministic-inference" in there.meta["absent"]["seed"]
    assert there.meta["value_kind"] == "tempered"


# -- streams -------------------------------------------------------------------------------------------


def events() -> list[dict]:
    """Of a stream that was recorded: each holds the answer so far."""
    return next(each["events"] for each in read(RECORDING)[1] if "events" in each)


def incremental(told: list[dict]) -> list[dict]:
    """The same of a server with --incremental-streaming-output: each holds what is new."""
    found, count, said = [], 0, ""
    for each in told:
        new = json.loads(json.dumps(each))
        new["text"], said = each["text"].removeprefix(said), each["text"]
        new["output_ids"] = each["output_ids"][count:]
        for name in ("output_token_logprobs", "output_top_logprobs"):
            new["meta_info"][name] = each["meta_info"][name][count:]
        count = len(each["output_ids"])
        found.append(new)
    return found


def another(change, **flags):
    """The recorded server with another stream."""
    replayed = routes(RECORDING)
    facts = {each["path"]: each["response"] for each in read(RECORDING)[1] if each["method"] == "GET"}

    def reply(request):
        return event_stream(change(events())) if request.json["stream"] else replayed["/generate"](request)

    return WireServer({**replayed, "/server_info": {**facts["/server_info"], **flags}, "/generate": reply})


@pytest.mark.parametrize("flag", [False, True], ids=["repeating", "incremental"])
def test_a_stream_is_the_whole_answer_row_by_row(local, served, flag):
    whole = served.generate(QUESTION, **SHOWN)
    with another(incremental if flag else list, incremental_streaming_output=flag) as server:
        stream = vlmprobe.connect(server.url, processor=local).stream(QUESTION, **SHOWN)
        rows = list(stream)
        sent = server.of("/generate")[-1].json
    assert ("stream_interval" in sent["sampling_params"]) == (not flag)
    assert [row.tokens[0] for row in rows] == stream.result.output.tokens == whole.output.tokens
    np.testing.assert_allclose(stream.result.output.logprobs, whole.output.logprobs, atol=1e-5)
    assert stream.result.output.top_ids.tolist() == whole.output.top_ids.tolist()
    assert stream.result.text == whole.text
    assert stream.result.finish_reason == whole.finish_reason
    assert stream.result.prompt is None


def test_a_long_stream_has_several_tokens_in_an_event(server, served):
    with pytest.raises(EngineError, match="not recorded"):
        list(served.stream(QUESTION, **{**SHOWN, "max_new_tokens": 2560}))
    assert server.of("/generate")[-1].json["sampling_params"]["stream_interval"] == 11


ABORT = {"finish_reason": {"type": "abort", "message": "out of memory"}, "output_token_logprobs": []}
SHORTER = {"output_token_logprobs": []}
BROKEN = {
    "takes back": lambda told: [*told[:3], told[1]],
    "for 2 tokens": lambda told: [*told[:1], {**told[1], "meta_info": {**told[1]["meta_info"], **SHORTER}}],
    "aborted the request: out of memory": lambda told: [
        *told[:2],
        {**told[2], "meta_info": {**told[2]["meta_info"], **ABORT}},
    ],
    "at most 8": lambda told: [*told[:-1], {**told[-1], "output_ids": [1] * 9}],
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_broken_stream_is_an_error(local, said):
    with another(BROKEN[said]) as server:
        stream = vlmprobe.connect(server.url, processor=local).stream(QUESTION, **SHOWN)
        with pytest.raises(EngineResponseError, match=said):
            list(stream)


NONE = {"completion_tokens": 8, "output_token_logprobs": [], "output_top_logprobs": []}


def test_lost_rows_of_a_stream_are_noticed(local):
    """A stream that ends before the rows of the last tokens came."""

    def cut(told):
        last = {**told[-3], "meta_info": {**told[-3]["meta_info"], "finish_reason": {"type": "length", "length": 8}}}
        return [*told[:-3], last, {**last, "output_ids": [], "text": "", "meta_info": {**last["meta_info"], **NONE}}]

    with another(cut) as server:
        result = vlmprobe.connect(server.url, processor=local).stream(QUESTION, **SHOWN).result
    assert result.output.lost == 2
    assert np.isnan(result.confidence)
