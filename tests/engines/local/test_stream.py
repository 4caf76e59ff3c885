"""Tokens as they are generated are the rows of the finished answer, and a stream that is left leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
import torch
from common import QUESTION, picture

from vlmprobe.engines.base import Options
from vlmprobe.errors import CapabilityError, GenerationOptionError, NonFiniteLogitsError, ResultError
from vlmprobe.results.table import TokenTable

FEW = ("llava", "qwen2_vl", "mllama", "gemma3", "internvl")
OPTIONS = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
COLUMNS = ("ids", "positions", "logprobs", "entropy", "ranks", "logsumexp", "top_ids", "top_logprobs")


def hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def streams() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "vlmprobe-stream"]


@pytest.mark.parametrize("name", FEW)
def test_rows_and_result_are_those_of_generate(probe_of, name):
    probe = probe_of(name)
    whole = probe.generate(QUESTION, picture(), keep="logits", **OPTIONS)
    stream = probe.stream(QUESTION, picture(), keep="logits", **OPTIONS)
    rows = list(stream)
    assert len(rows) == len(whole.output) == 8
    assert all(isinstance(row, TokenTable) and len(row) == 1 for row in rows)
    for table in (whole, stream.result):
        for column in (*COLUMNS, "logits"):
            streamed = np.concatenate([getattr(row, column) for row in rows])
            np.testing.assert_array_equal(streamed, getattr(table.output, column), err_msg=column)
    assert [row.tokens[0] for row in rows] == whole.output.tokens
    assert [row.top_tokens[0] for row in rows] == whole.output.top_tokens
    assert stream.result.text == whole.text
    assert stream.result.finish_reason == whole.finish_reason == "length"
    np.testing.assert_array_equal(stream.result.prompt.logprobs, whole.prompt.logprobs)
    assert stream.result.meta["model"] == probe.meta["model"]
    assert stream.result.meta["question"] == QUESTION


def test_each_row_is_there_before_the_next_token_is_computed(probe_of):
    """The model is held at every step until the row before it has been read."""
    probe = probe_of("llava")
    gate = threading.Semaphore(0)
    handle = probe.engine.adapter.backbone.register_forward_pre_hook(lambda *_: (gate.acquire(timeout=20), None)[1])
    try:
        stream = probe.stream(QUESTION, picture(), **OPTIONS)
        for count in range(8):
            gate.release()  # one run of the model, and no more
            row = next(stream)
            assert row.positions[0] == len(stream_prompt(probe)) + count
    finally:
        handle.remove()
        for _ in range(20):
            gate.release()
        stream.close()


def stream_prompt(probe) -> np.ndarray:
    from vlmprobe.inputs.messages import Conversation

    return probe.engine.adapter.encode([Conversation.build(QUESTION, picture())]).prompts[0].ids


def test_sampled_with_a_seed(probe_of):
    probe = probe_of("qwen2_vl")
    options = {**OPTIONS, "do_sample": True, "temperature": 0.7, "top_k": 20, "seed": 3}
    whole = probe.generate(QUESTION, picture(), **options)
    rows = list(probe.stream(QUESTION, picture(), **options))
    assert [int(row.ids[0]) for row in rows] == whole.output.ids.tolist()
    np.testing.assert_array_equal(np.concatenate([row.scores for row in rows]), whole.output.scores)
    np.testing.assert_array_equal(np.concatenate([row.logprobs for row in rows]), whole.output.logprobs)


def test_offsets_and_text_follow_the_tokens(probe_of):
    rows = list(probe_of("internvl").stream(QUESTION, picture(), max_new_tokens=24, do_sample=True, seed=1))
    text = "".join(row.tokens[0] for row in rows if row.kinds[0] == "text")
    for row in rows:
        start, stop = row.offsets[0]
        if row.kinds[0] == "text":
            assert text[start:stop] == row.tokens[0]


@pytest.mark.parametrize("way", ["close", "with", "drop"])
def test_left_early_nothing_stays(probe_of, way):
    probe = probe_of("llava")
    model = probe.engine.adapter.model
    before, state = hooks(model), torch.get_rng_state()
    calls = []
    handle = probe.engine.adapter.backbone.register_forward_hook(lambda *_: calls.append(time.sleep(0.02)))
    try:
        options = {"max_new_tokens": 400, "min_new_tokens": 400, "do_sample": True, "seed": 5}
        stream = probe.stream(QUESTION, picture(), **options)
        if way == "with":
            with stream as tokens:
                read = [next(tokens), next(tokens)]
        else:
            read = [next(stream), next(stream)]
        if way == "close":
            stream.close()
        if way != "drop":
            assert stream.result.finish_reason == "closed"
            assert len(stream.result.output) == 2
            assert stream.result.output.ids.tolist() == [int(row.ids[0]) for row in read]
            assert stream.result.text == "".join(row.tokens[0] for row in read if row.kinds[0] == "text")
            with pytest.raises(StopIteration):
                next(stream)
            stream.close()  # a second time is nothing
        else:
            del stream
            gc.collect()
            for thread in streams():
                thread.join(20)
    finally:
        handle.remove()
    assert len(calls) < 100, "the model went on after the stream was left"
    assert not streams()
    assert hooks(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    again = probe.generate(QUESTION, picture(), **OPTIONS)
    np.testing.assert_array_equal(again.output.logprobs, probe.generate(QUESTION, picture(), **OPTIONS).output.logprobs)


def test_a_stream_that_never_began_ran_nothing(probe_of):
    probe = probe_of("llava")
    calls = []
    handle = probe.engine.adapter.backbone.register_forward_hook(lambda *_: calls.append(1))
    try:
        stream = probe.stream(QUESTION, picture(), **OPTIONS)
        stream.close()
    finally:
        handle.remove()
    assert not calls
    assert list(stream) == []
    with pytest.raises(ResultError, match="closed before it began"):
        _ = stream.result


def test_result_awaits_what_is_left(probe_of):
    stream = probe_of("llava").stream(QUESTION, picture(), **OPTIONS)
    next(stream)
    assert len(stream.result.output) == 8


def test_yield_from_returns_the_result(probe_of):
    def around():
        result = yield from probe_of("llava").stream(QUESTION, picture(), **OPTIONS)
        yield result

    *rows, result = around()
    assert len(rows) == len(result.output)


def test_errors_reach_the_reader(probe_of):
    probe = probe_of("llava")

    def fail(*_):
        raise MemoryError("out of memory on purpose")

    stream = probe.stream(QUESTION, picture(), **OPTIONS)
    first = next(stream)
    assert first.confidence[0] > 0
    stream.close()
    handle = probe.engine.adapter.backbone.register_forward_pre_hook(fail)
    try:
        stream = probe.stream(QUESTION, picture(), **OPTIONS)
        with pytest.raises(MemoryError, match="on purpose"):
            next(stream)
        assert list(stream) == []
        with pytest.raises(ResultError, match="failed"):
            _ = stream.result
    finally:
        handle.remove()
    assert len(list(probe.stream(QUESTION, picture(), **OPTIONS))) == 8


def test_nan_logits_are_an_error_at_their_token(probe_of):
    probe = probe_of("llava")
    runs = []

    def spoil(_, __, output):
        runs.append(1)
        if len(runs) == 3:
            output.last_hidden_state.fill_(float("nan"))

    handle = probe.engine.adapter.backbone.register_forward_hook(spoil)
    try:
        stream = probe.stream(QUESTION, picture(), **OPTIONS)
        next(stream), next(stream)
        with pytest.raises(NonFiniteLogitsError, match="generated token 2"):
            next(stream)
    finally:
        handle.remove()
        stream.close()


def test_beams_and_other_engines_are_refused_before_anything_runs(probe_of):
    from dataclasses import replace

    probe = probe_of("llava")
    with pytest.raises(GenerationOptionError, match="num_beams=1"):
        probe.stream(QUESTION, picture(), num_beams=2)

    class Server:
        def check(self, conversations, options): ...

    with pytest.raises(CapabilityError, match=r"Server.*vlmprobe\.load"):
        replace(probe, engine=Server()).stream(QUESTION)


def test_many_streams_leave_no_thread(probe_of):
    probe = probe_of("llava")
    for _ in range(5):
        for row in probe.stream(QUESTION, picture(), **OPTIONS):
            if row.ranks[0] == 0:
                break
    gc.collect()
    for thread in streams():
        thread.join(20)
    assert not streams()


def test_an_answer_that_was_made_to_begin_somehow(probe_of):
    probe = probe_of("qwen2_vl")
    options = Options(generation={"max_new_tokens": 4, "do_sample": False}, begin=(5, 6, 7))
    conversation = probe.conversation(QUESTION, picture())
    whole = probe.engine.generate([conversation], options)[0]
    stream = probe.engine.stream(conversation, options)
    rows = list(stream)
    assert [int(row.ids[0]) for row in rows] == whole.output.ids[3:].tolist()
    assert [row.tokens[0] for row in rows] == whole.output.tokens[3:]
    assert [int(row.offsets[0, 0]) for row in rows] == whole.output.offsets[3:, 0].tolist()
    np.testing.assert_allclose([row.logprobs[0] for row in rows], whole.output.logprobs[3:], atol=1e-4)
    assert stream.result.output.ids.tolist() == whole.output.ids.tolist()
    assert stream.result.finish_reason == whole.finish_reason
    with probe.engine.stream(conversation, options) as cut:
        next(cut)
    assert cut.result.output.ids.tolist() == whole.output.ids[:4].tolist()
    assert cut.result.finish_reason == "closed"
