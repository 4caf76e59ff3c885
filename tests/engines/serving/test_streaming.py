"""Tokens from a server as they come are the rows of its whole answer; a stream that is left ends the server's work."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from itertools import chain

import numpy as np
import psutil
import pytest
from common import DATA
from engine_models import engine_model
from engine_record import QUESTION, picture
from openai_stream import MODELS, WORDS, answer, events, plain
from wire_recordings import routes
from wire_server import Reply, WireServer, busy, event_stream, json_reply, refusal, wait_for

import vlmprobe
from vlmprobe.engines.serving.http import background_loop
from vlmprobe.engines.serving.http.client import Client, Limits
from vlmprobe.errors import CapabilityError, EngineConnectionError, EngineError, EngineResponseError, ResultError

RECORDING = DATA / "wire/vllm/recorded-0.32.0-qwen2_vl.jsonl"
SAMPLED = {"max_new_tokens": 4, "alternatives": 3, "do_sample": True, "temperature": 0.5, "top_k": 5, "seed": 3}
COLUMNS = ("ids", "positions", "logprobs", "ranks", "top_ids", "top_logprobs")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("vlmprobe.engines.serving.http.client.FIRST_PAUSE_S", 0.01)


def opened(server: WireServer) -> vlmprobe.Probe:
    return vlmprobe.connect(server.url, value_kind="raw")


def test_vllm_rows_and_result_are_those_of_the_whole_answer(tmp_path):
    model = engine_model("qwen2_vl", tmp_path / "m_qwen2_vl")
    with WireServer(routes(RECORDING)) as server:
        probe = vlmprobe.connect(server.url, processor=model)
        whole = probe.generate(QUESTION, image=picture(), prompt=False, **SAMPLED)
        stream = probe.stream(QUESTION, image=picture(), **SAMPLED)
        rows = list(stream)
        result = stream.result
    assert len(rows) == len(whole.output) == 4
    for column in COLUMNS:
        expected = getattr(whole.output, column)
        np.testing.assert_array_equal(np.concatenate([getattr(row, column) for row in rows]), expected, err_msg=column)
        np.testing.assert_array_equal(getattr(result.output, column), expected, err_msg=column)
    assert [row.tokens[0] for row in rows] == whole.output.tokens
    assert [row.top_tokens[0] for row in rows] == whole.output.top_tokens
    assert result.text == whole.text
    assert result.input_ids.tolist() == whole.input_ids.tolist()
    assert result.finish_reason == whole.finish_reason
    assert result.meta["logprobs_mode"] == whole.meta["logprobs_mode"]
    assert result.meta["value_kind"] == whole.meta["value_kind"]
    assert result.prompt is None
    assert len(result.images) == 1


def test_the_plain_protocol():
    with plain(event_stream(events())) as server:
        probe = opened(server)
        stream = probe.stream("Was?")
        rows = list(stream)
        whole = probe.generate("Was?")
    assert [row.tokens[0] for row in rows] == whole.output.tokens == WORDS
    assert [row.offsets.tolist()[0] for row in rows] == whole.output.offsets.tolist()
    assert stream.result.text == whole.text == "Ein rotes Haus。"
    assert stream.result.output.logprobs.tolist() == whole.output.logprobs.tolist()
    assert stream.result.finish_reason == "stop"
    assert stream.result.output.ids is None


def test_each_row_is_there_before_the_server_sends_the_next():
    gate = threading.Semaphore(0)
    with plain(event_stream(events(), gate=lambda: gate.acquire(timeout=20))) as server:
        stream = opened(server).stream("Was?")
        gate.release()  # the event of the role
        for word in WORDS:
            gate.release()
            assert next(stream).tokens == [word]
        for _ in range(2):
            gate.release()
        assert list(stream) == []


@pytest.mark.parametrize("read", [0, 1, 3])
def test_leaving_a_stream_ends_the_servers_work(read):
    endless = (each for _ in iter(int, 1) for each in events()[1:5])
    with plain(event_stream(endless, gate=lambda: time.sleep(0.01))) as server:
        with opened(server).stream("Was?") as stream:
            rows = [next(stream) for _ in range(read)]
        assert [row.tokens[0] for row in rows] == WORDS[:read]
        if not read:
            with pytest.raises(ResultError):
                stream.result  # noqa: B018
            return
        wait_for(lambda: server.hung_up == 1)
        assert stream.result.text == "".join(WORDS[:read])
        assert stream.result.finish_reason == "closed"


def test_leaving_a_silent_server_does_not_wait_for_it():
    stuck = threading.Event()
    hold = iter([None, None])

    def gate():
        if next(hold, stuck) is stuck:
            stuck.wait(30)

    with plain(event_stream(events(), gate=gate)) as server:
        with opened(server).stream("Was?") as stream:
            next(stream)
            started = time.monotonic()
        assert time.monotonic() - started < 5
        assert stream.result.text == WORDS[0]
        assert stream.result.finish_reason == "closed"
        stuck.set()


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("probed", [False, True])
def test_an_interrupt_while_the_server_says_nothing(probed):
    """Not even to the requests by which it is found out what its numbers mean."""
    with WireServer({**MODELS, "/v1/chat/completions": json_reply(answer(), wait_s=60)}) as server:
        stream = (opened(server) if probed else vlmprobe.connect(server.url)).stream("Was?")
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        assert time.monotonic() - started < 10
        assert len(stream.result.output) == 0


def test_a_stream_that_is_dropped_ends_the_servers_work():
    endless = (each for _ in iter(int, 1) for each in events()[1:5])
    with plain(event_stream(endless, gate=lambda: time.sleep(0.01))) as server:
        stream = opened(server).stream("Was?")
        next(stream)
        del stream
        wait_for(lambda: server.hung_up == 1)


@pytest.mark.parametrize(
    ("reply", "error", "said"),
    [
        (event_stream(events()[:3], end=b""), EngineResponseError, "broke off before the end"),
        (event_stream([*events()[:3], {"error": {"message": "out of memory"}}]), EngineError, "out of memory"),
        (event_stream(["x"]), EngineResponseError, "no 'choices'"),
        (event_stream([{"choices": [{"delta": {"content": "a"}}]}]), EngineResponseError, r"no logprobs\.content"),
        (event_stream(events(["a"] * 200)), EngineResponseError, "at most"),
        (Reply(b"data: {half\n\n"), EngineResponseError, "no JSON"),
        (json_reply(answer()), EngineResponseError, "sends no event stream"),
        (Reply(b"<html>\nBad Gateway\n"), EngineResponseError, "sends no event stream"),
        (json_reply({"choices": []}, 202), EngineResponseError, "sends no event stream"),
        (event_stream([{"choices": [{"delta": "a"}]}]), EngineResponseError, "not an object"),
        (refusal(400, "stream is not allowed"), EngineError, "stream is not allowed"),
        (Reply(b"data: ", cut_after=3), EngineConnectionError, "dropped the connection"),
    ],
)
def test_what_is_no_stream(reply, error, said):
    with plain(reply) as server, pytest.raises(error, match=said):
        list(opened(server).stream("Was?", max_new_tokens=8))


def test_a_busy_server_is_asked_again():
    with plain([busy(), busy(503), event_stream(events())]) as server:
        assert opened(server).stream("Was?").result.text == "".join(WORDS)


def test_a_stream_that_ends_without_an_empty_line():
    with plain(event_stream(events(), end=b"data: [DONE]")) as server:
        assert opened(server).stream("Was?").result.text == "".join(WORDS)


def test_the_key_is_not_in_what_is_no_stream():
    with plain(Reply(b"Incorrect API key sk-very-secret-0123456789\n")) as server:
        probe = vlmprobe.connect(server.url, value_kind="raw", api_key="sk-very-secret-0123456789")
        with pytest.raises(EngineResponseError, match=r"\*\*\*") as raised:
            list(probe.stream("Was?"))
    assert "secret" not in str(raised.value)


def test_an_end_token_without_a_processor_is_special():
    told = events([*WORDS, "<|im_end|>"])
    told[-3]["choices"][0] |= {"delta": {"content": ""}, "finish_reason": "stop"}
    with plain(event_stream(told)) as server:
        stream = opened(server).stream("Was?")
        rows = list(stream)
    assert [row.kinds[0] for row in rows] == stream.result.output.kinds == ["text"] * 4 + ["special"]
    assert [row.offsets.tolist()[0] for row in rows] == stream.result.output.offsets.tolist()


def test_a_stream_left_while_text_is_held_back():
    """Servers hold text back that may be the beginning of a stop string; the tokens come all the same."""
    told = events(["Hello", " wor", "ld", " and"])
    told[3]["choices"][0]["delta"] = {"content": ""}
    with plain(event_stream(told)) as server, opened(server).stream("Was?") as stream:
        rows = [next(stream) for _ in range(3)]
    assert stream.result.output.kinds == [row.kinds[0] for row in rows] == ["text"] * 3
    assert stream.result.text == "Hello world"


def test_events_without_tokens_cost_no_memory():
    empty = {"choices": [{"delta": {"content": ""}, "logprobs": None}], "prompt_token_ids": list(range(1000))}
    before = psutil.Process().memory_info().rss
    with plain(event_stream(chain([empty] * 5000, events()))) as server:
        assert opened(server).stream("Was?").result.text == "".join(WORDS)
    assert psutil.Process().memory_info().rss - before < 30 * 2**20


def test_a_stream_without_end_stays_out_of_memory():
    def chunks():
        while True:
            yield b"x" * 2**20

    with WireServer({"/x": Reply(chunks)}) as server:
        client = Client(server.url, limits=Limits(response_bytes=10 * 2**20))

        async def read():
            return [each async for each in client.events("/x", {})]

        with pytest.raises(EngineResponseError, match="more than 10,485,760 bytes"):
            background_loop.run(read())
        client.close()


def test_characters_over_several_events():
    """Lines may be cut anywhere on their way."""
    text = b"".join(b"data: " + json.dumps(each, ensure_ascii=False).encode() + b"\r\n\r\n" for each in events())
    whole = b": comment\n\nevent: x\n" + text + b"data: [DONE]\n\n"

    def chunks():
        yield from (whole[place : place + 3] for place in range(0, len(whole), 3))

    with plain(Reply(chunks)) as server:
        assert opened(server).stream("Was?").result.output.tokens == WORDS


def test_what_cannot_be_streamed_is_said_first():
    with plain(event_stream(events())) as server:
        probe = opened(server)
        with pytest.raises(CapabilityError, match="prompt side"):
            probe.stream("Was?", prompt=True)
        assert server.of("/v1/chat/completions") == []
    ollama = {"/api/version": {"version": "0.12"}, "/api/tags": {"models": [{"name": "m", "model": "m"}]}}
    words = "token-by-token streaming, which Ollama does not provide"
    with WireServer(ollama) as server, pytest.raises(CapabilityError, match=words):
        vlmprobe.connect(server.url, engine="ollama").stream("Was?")
