"""Servers that are broken or hostile: each a typed error in time, with memory bounded, and never a key in sight."""

from __future__ import annotations

import copy
import json
import logging
import random
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import wire_engines as wire
from PIL import Image
from wire_server import Reply, WireServer, busy, endless, half, html, json_reply, redirect, refusal

import vlmprobe
from vlmprobe.errors import (
    EngineConnectionError,
    EngineError,
    EngineResponseError,
    EngineTimeoutError,
    VlmprobeError,
)

QUESTION = "Describe the picture."
PICTURE = Image.fromarray(np.full((32, 32, 3), 90, np.uint8))
ENGINES = (
    "vllm",
    "openai",
    "openai-responses",
    "sglang",
    "lightllm",
    "lmdeploy",
    "llamacpp",
    "llamacpp-native",
    "ollama",
)
PATHS = {
    "sglang": "/generate",
    "lightllm": "/generate",
    "ollama": "/api/chat",
    "openai-responses": "/v1/responses",
    "llamacpp-native": "/completion",
}
MODELS = {
    "vllm": {"data": [{"id": "demo", "owned_by": "vllm", "max_model_len": 512}]},
    "openai": {"data": [{"id": "demo", "owned_by": "somebody"}]},
    "openai-responses": {"data": [{"id": "demo", "owned_by": "somebody"}]},
}
KEY = "sk-never-to-be-seen-1234567890"


@pytest.fixture(scope="module")
def local():
    return vlmprobe.load("demo", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def simulated(local):
    """Engine -> its replies, each computed once."""

    def of(engine: str) -> Callable[[Any], Any]:
        answer = getattr(wire, engine.replace("-", "_"))(wire.Model(local, QUESTION))

        @lru_cache
        def known(body: bytes) -> str:
            made = answer(type("Asked", (), {"json": json.loads(body)}))
            return made if isinstance(made, Reply) else json.dumps(made)

        def reply(request: Any) -> Any:
            found = known(request.body)
            return found if isinstance(found, Reply) else json.loads(found)

        return reply

    return {engine: of(engine) for engine in ENGINES}


class Spoilt:
    """A server of an engine whose replies are spoilt by ``change``, once it is set."""

    def __init__(self, engine: str, answer: Callable[[Any], Any]):
        self.answer = answer
        self.change: Callable[[Any], Any] | None = None
        facts = {"/v1/models": MODELS[engine]} if engine in MODELS else wire.facts(engine.removesuffix("-native"))
        if engine == "llamacpp-native":
            facts["/apply-template"] = wire.llamacpp_template
        self.path = PATHS.get(engine, "/v1/chat/completions")
        self.server = WireServer({**facts, self.path: self.reply})

    def reply(self, request: Any) -> Any:
        made = self.answer(request)
        if self.change is None or isinstance(made, Reply):
            return made
        changed = self.change(made)
        return changed if isinstance(changed, Reply) else Reply(json.dumps(changed).encode())


@pytest.fixture
def spoilt(simulated, local):
    """A probe of a server of an engine that answered well once, and the server, whose replies may now be spoilt."""
    entered = []

    def make(engine: str, **options: Any) -> tuple[vlmprobe.Probe, Spoilt]:
        spoiler = Spoilt(engine, simulated[engine])
        spoiler.server.__enter__()
        entered.append(spoiler.server)
        if engine == "openai-responses":
            options["engine"] = engine  # nothing that the server says of itself names it
        probe = vlmprobe.connect(spoiler.server.url, processor=local, **{"value_kind": "raw", **options})
        ask(probe)
        return probe, spoiler

    yield make
    for server in entered:
        server.__exit__()


def ask(probe: vlmprobe.Probe, **more: Any) -> vlmprobe.Result:
    return probe.generate(QUESTION, PICTURE, max_new_tokens=16, do_sample=False, **more)


# -- one thing wrong -----------------------------------------------------------------------------------


def token_lists(engine: str, reply: Any) -> dict[str, list[Any]]:
    """The lists in a reply that have one entry for each generated token."""
    if engine == "sglang":
        meta = reply["meta_info"]
        names = ("output_token_logprobs", "output_top_logprobs")
        return {"ids": reply["output_ids"], **{name: meta[name] for name in names}}
    if engine == "lightllm":
        return {"tokens": reply["tokens"]}
    if engine == "ollama":
        return {"tokens": reply["logprobs"]}
    if engine == "llamacpp-native":
        return {"tokens": reply["completion_probabilities"], "ids": reply["tokens"]}
    if engine == "openai-responses":
        return {"tokens": reply["output"][0]["content"][0]["logprobs"]}
    choice = reply["choices"][0]
    found = {"tokens": choice["logprobs"]["content"]}
    for name in ("token_ids", "output_ids"):
        if name in choice:
            found["ids"] = choice[name]
    return found


def set_value(engine: str, reply: Any, value: Any) -> None:
    """Put something in the place of the first token's log-probability."""
    first = next(each for name, each in token_lists(engine, reply).items() if name != "ids")[0]
    if engine == "sglang":
        first[0] = value
    else:
        first["logprob"] = value


def set_id(engine: str, reply: Any, value: Any) -> None:
    """Put something in the place of the first token's id."""
    lists = token_lists(engine, reply)
    if "ids" in lists:
        lists["ids"][0] = value
    else:
        lists["tokens"][0]["id"] = value


@pytest.mark.parametrize("engine", ENGINES)
def test_a_log_probability_that_is_none(spoilt, engine):
    probe, server = spoilt(engine)
    for value in (float("nan"), float("inf"), 0.5, "high", True, [], {}, 10**400):

        def change(reply: Any, value: Any = value) -> Any:
            set_value(engine, reply, value)
            return reply

        server.change = change
        with pytest.raises(EngineResponseError):
            ask(probe)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "lightllm", "lmdeploy", "llamacpp", "llamacpp-native"])
def test_an_id_that_is_none(spoilt, engine):
    probe, server = spoilt(engine)
    for value in (-1, 2**31, 10**30, 1.5, "7", True, 5_000_000):  # the last is beyond the vocabulary

        def change(reply: Any, value: Any = value) -> Any:
            set_id(engine, reply, value)
            return reply

        server.change = change
        with pytest.raises(EngineResponseError):
            ask(probe)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "lmdeploy"])
def test_lists_of_different_lengths(spoilt, engine):
    probe, server = spoilt(engine)
    for by in (-1, 1, 40):

        def change(reply: Any, by: int = by) -> Any:
            listed = next(iter(token_lists(engine, reply).values()))
            listed[:] = listed[:-1] if by < 0 else listed + listed[:1] * by
            return reply

        server.change = change
        with pytest.raises(EngineResponseError):
            ask(probe)


@pytest.mark.parametrize("engine", ENGINES)
def test_more_tokens_than_were_asked_for(spoilt, engine):
    probe, server = spoilt(engine)

    def change(reply: Any) -> Any:
        for listed in token_lists(engine, reply).values():
            listed.extend(listed[:1] * 40)
        return reply

    server.change = change
    with pytest.raises(EngineResponseError):
        ask(probe)


@pytest.mark.parametrize(
    ("engine", "count"),
    [
        ("sglang", 10**6),
        *((each, 10**4) for each in ("vllm", "openai", "openai-responses", "lmdeploy", "llamacpp", "ollama")),
    ],
)
def test_a_million_alternatives(spoilt, engine, count):
    probe, server = spoilt(engine)

    def change(reply: Any) -> Any:
        lists = token_lists(engine, reply)
        if engine == "sglang":
            lists["output_top_logprobs"][0] = lists["output_top_logprobs"][0][:1] * count
        else:
            entry = lists["tokens"][0]
            entry["top_logprobs"] = entry["top_logprobs"][:1] * count
        return reply

    server.change = change
    started = time.monotonic()
    with pytest.raises(EngineResponseError, match="alternatives"):
        ask(probe)
    assert time.monotonic() - started < 30


TOKENS = (None, "7", {}, 7, [None], [[1]], [True], [-1], [4096], ["1"], [1.0], [], [1], [1] * 17, [1] * 10**6)


@pytest.mark.parametrize("value", TOKENS, ids=lambda value: repr(value)[:20])
def test_tokens_of_llamacpp_that_are_none_or_not_those_of_its_rows(spoilt, value):
    probe, server = spoilt("llamacpp-native")
    server.change = lambda reply: {**reply, "tokens": value}
    with pytest.raises(EngineResponseError):
        ask(probe)
    server.change = lambda reply: {key: each for key, each in reply.items() if key != "tokens"}
    with pytest.raises(EngineResponseError, match="has no 'tokens'"):
        ask(probe)


def test_more_tokens_of_llamacpp_than_were_asked_for_are_no_lost_rows(spoilt):
    probe, server = spoilt("llamacpp-native")
    server.change = lambda reply: {**reply, "tokens": [1] * 17 + reply["tokens"]}
    with pytest.raises(EngineResponseError, match="at most 16"):
        ask(probe)


def test_a_token_of_llamacpp_that_has_no_row_is_not_forgotten(spoilt):
    probe, server = spoilt("llamacpp-native")

    def change(reply: Any) -> Any:
        del reply["completion_probabilities"][0]
        return reply

    server.change = change
    result = ask(probe)
    assert np.isnan(result.output.logprobs[0])
    assert np.isnan(result.confidence)


@pytest.mark.parametrize("key", ["id", "bytes", "logprob", "top_logprobs"])
def test_a_row_of_llamacpp_in_which_something_is_missing(spoilt, key):
    probe, server = spoilt("llamacpp-native")

    def change(reply: Any) -> Any:
        del reply["completion_probabilities"][-1][key]
        return reply

    server.change = change
    with pytest.raises(EngineResponseError):
        ask(probe)


@pytest.mark.parametrize("value", [None, [], "x", 1, {}, {"prompt": None}, {"prompt": 1}, {"prompt": ["<__media__>"]}])
def test_a_template_of_llamacpp_that_writes_no_prompt(spoilt, value):
    """The chat route is asked instead, which this server does not have."""
    probe, server = spoilt("llamacpp-native")
    server.server.routes["/apply-template"] = json_reply(value)
    with pytest.raises(EngineError, match="404"):
        ask(probe)


@pytest.mark.parametrize("written", ["", QUESTION, f"<__media__><__media__>{QUESTION}"])
def test_a_template_of_llamacpp_that_does_not_write_the_picture_once(spoilt, written):
    probe, server = spoilt("llamacpp-native")
    server.server.routes["/apply-template"] = {"prompt": written}
    sent = len(server.server.of(server.path))
    with pytest.raises(EngineResponseError, match="images for 1"):
        ask(probe)
    assert len(server.server.of(server.path)) == sent


@pytest.mark.parametrize("value", [None, {}, {"tokens": None}, {"tokens": "x"}, {"tokens": [-1]}, {"tokens": [[1]]}])
def test_a_tokenizer_of_llamacpp_that_answers_no_tokens(spoilt, value):
    probe, server = spoilt("llamacpp-native")
    server.server.routes["/tokenize"] = json_reply(value)
    with pytest.raises(EngineResponseError):
        probe.score(QUESTION, ["yes", "no"], PICTURE)


def test_a_token_that_llamacpp_was_forced_to_draw_and_did_not(spoilt):
    """Where ``logit_bias`` gets lost on the way, the drawn token's number is not the candidate's."""
    probe, server = spoilt("llamacpp-native")
    ids = {"": [], "yes": [4090], "no": [4091]}
    server.server.routes["/tokenize"] = lambda request: {"tokens": ids[request.json["content"].removeprefix(QUESTION)]}

    def change(reply: Any) -> Any:
        entry = reply["completion_probabilities"][0]
        return {**reply, "tokens": [entry["id"]], "completion_probabilities": [{**entry, "top_logprobs": []}]}

    server.change = change
    with pytest.raises(EngineResponseError, match=r"where 409[01] was forced"):
        probe.score(QUESTION, ["yes", "no"], PICTURE)


@pytest.mark.parametrize("engine", ["vllm", "lightllm", "sglang"])
def test_a_prompt_that_does_not_hold_the_picture(spoilt, local, engine):
    probe, server = spoilt(engine)
    pictures = set(local.engine.adapter.image_ids)

    def change(reply: Any) -> Any:
        if engine == "sglang":
            meta = reply["meta_info"]
            for name in ("input_token_logprobs", "input_top_logprobs"):
                meta[name] = meta[name][:4]
            return reply
        kept = [place for place, each in enumerate(reply["prompt_token_ids"]) if each not in pictures and each < 10**8]
        for name in ("prompt_token_ids", "prompt_logprobs"):
            reply[name] = [reply[name][place] for place in kept]
        return reply

    server.change = change
    with pytest.raises(EngineResponseError):
        ask(probe, prompt=True)


# -- anything wrong ------------------------------------------------------------------------------------

WRONG = (None, [], {}, "", "x" * 50, -1, 0, 1, 1e308, float("nan"), float("-inf"), True, [[]], [None], {"": {}}, 2**63)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def replaced(document: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    document = copy.deepcopy(document)
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return document


@pytest.mark.parametrize("engine", ENGINES)
def test_whatever_is_wrong_is_a_typed_error_or_harmless(spoilt, engine):
    probe, server = spoilt(engine)
    prompts = engine in ("vllm", "sglang", "lightllm")
    chance = random.Random(engine)
    for _ in range(60):
        value = chance.choice(WRONG)
        told: list[tuple] = []

        def change(reply: Any, value: Any = value, told: list[tuple] = told) -> Any:
            path = chance.choice(places(reply))
            told.append(path)
            return replaced(reply, path, value)

        server.change = change
        try:
            result = ask(probe, **({"prompt": True} if prompts else {}))
        except VlmprobeError:
            continue
        except Exception as error:
            raise AssertionError(f"{value!r} at {told} is a {type(error).__name__}") from error
        known = result.output.logprobs[~np.isnan(result.output.logprobs)]
        assert (known <= 0).all(), (told, value)


# -- transport -----------------------------------------------------------------------------------------


NO_ANSWERS: tuple[tuple[Reply, type[EngineError], str | None], ...] = (
    (html(200), EngineResponseError, "no JSON"),
    (html(502), EngineError, "502"),
    (half({"choices": [{"a": 1}]}), EngineResponseError, "no JSON"),
    (Reply(b""), EngineResponseError, "nothing"),
    (Reply(b"[" * 10**6), EngineResponseError, "no JSON"),
    (Reply(b"\xff\xfe\x00"), EngineResponseError, "no JSON"),
    (json_reply([]), EngineResponseError, None),
    (json_reply({}), EngineResponseError, None),
    (json_reply({"choices": []}), EngineResponseError, None),
    (refusal(500, "CUDA error"), EngineError, "CUDA error"),
    (redirect("http://192.0.2.1/steal"), EngineResponseError, "redirects to http://192.0.2.1/steal"),
)


@pytest.mark.parametrize("engine", ENGINES)
def test_replies_that_are_no_answers(spoilt, engine):
    probe, server = spoilt(engine)
    for reply, kind, words in NO_ANSWERS:
        sent = len(server.server.of(server.path))
        server.change = lambda _, reply=reply: reply
        with pytest.raises(kind, match=words):
            ask(probe)
        assert len(server.server.of(server.path)) == sent + 1  # no second try: the fault is not a passing one


def test_ten_gigabytes_are_not_read(spoilt):
    probe, server = spoilt("openai")
    client = probe.engine.client
    client.limits = replace(client.limits, response_bytes=8 * 2**20)
    server.change = lambda _: endless(10 * 2**30)
    tracemalloc.start()
    try:
        started = time.monotonic()
        with pytest.raises(EngineResponseError, match="more than 8,388,608 bytes"):
            ask(probe)
        assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
        assert time.monotonic() - started < 20
    finally:
        tracemalloc.stop()
    server.change = None
    assert ask(probe).text  # the next call works


def test_a_compressed_bomb_is_not_opened(spoilt):
    """Compression is not asked for; what is sent all the same counts as it is unpacked."""
    import zlib

    packed = zlib.compress(b" " * 64 * 2**20)
    probe, server = spoilt("openai")
    client = probe.engine.client
    client.limits = replace(client.limits, response_bytes=2**20)
    server.change = lambda _: Reply(packed, headers={"Content-Encoding": "deflate"})
    with pytest.raises(EngineError):
        ask(probe)


@pytest.mark.parametrize("after", [None, 10])
def test_a_stalled_reply_ends_in_time(spoilt, after):
    probe, server = spoilt("openai", timeout=0.5)
    stalled = Reply(b"x" * 100, wait_s=60) if after is None else Reply(b"x" * 100, stall_after=after)
    server.change = lambda _: stalled
    started = time.monotonic()
    with pytest.raises(EngineTimeoutError, match="timeout="):
        ask(probe)
    assert time.monotonic() - started < 5
    server.change = None
    assert ask(probe).text


@pytest.mark.parametrize("engine", ENGINES)
def test_busy_then_answering(spoilt, engine):
    probe, server = spoilt(engine)
    here = ask(probe)
    turns = [busy(429), busy(503), None]
    server.change = lambda reply: turns.pop(0) or reply
    result = ask(probe)
    assert result.text == here.text
    assert not turns


def test_a_connection_that_breaks_off_is_tried_again_and_then_an_error(spoilt):
    probe, server = spoilt("openai")
    turns = [True, False]
    server.change = lambda reply: Reply(json.dumps(reply).encode(), cut_after=20) if turns.pop(0) else reply
    assert ask(probe).text
    client = probe.engine.client
    client.limits = replace(client.limits, retries=1)
    server.change = lambda reply: Reply(json.dumps(reply).encode(), cut_after=20)
    with pytest.raises(EngineConnectionError):
        ask(probe)


def test_one_bad_reply_among_many_loses_no_other(spoilt):
    probe, server = spoilt("openai")
    count = 0

    def change(reply: Any) -> Any:
        nonlocal count
        count += 1
        return html(500) if count == 7 else reply

    server.change = change
    requests = [vlmprobe.Request(QUESTION, PICTURE, id=place) for place in range(20)]
    done = list(probe.generate_many(requests, max_new_tokens=16, do_sample=False, on_error="keep", progress=False))
    failed = [each for each in done if not isinstance(each, vlmprobe.Result)]
    assert len(done) == 20
    assert len(failed) == 1


# -- the key -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        lambda request: refusal(401, f"Incorrect API key provided: {KEY}"),
        lambda request: refusal(400, json.dumps(dict(request.headers))),
        lambda request: Reply(json.dumps(dict(request.headers)).encode() * 20, 500),
        lambda request: redirect(f"http://192.0.2.1/?key={KEY}"),
        lambda request: Reply(f"not JSON {KEY}".encode()),
    ],
)
def test_the_key_is_in_no_error(spoilt, caplog, reply):
    probe, server = spoilt("openai", api_key=KEY, headers={"X-Secret": "another-secret-value"})
    server.change = None
    server.server.routes[server.path] = reply
    # Below that level httpcore logs what a server sends, be it the key.
    with caplog.at_level(logging.INFO), pytest.raises(EngineError) as raised:
        ask(probe)
    error: BaseException | None = raised.value
    while error is not None:
        for shown in (str(error), repr(error), repr(error.args)):
            assert KEY not in shown
            assert "another-secret-value" not in shown
        error = error.__cause__ or error.__context__
    assert KEY not in caplog.text
    assert "another-secret-value" not in caplog.text


def test_the_key_is_sent_and_shown_nowhere(spoilt, caplog, tmp_path):
    with caplog.at_level(logging.DEBUG):
        probe, server = spoilt("openai", api_key=KEY)
        result = ask(probe)
    sent = server.server.of(server.path)[-1].headers
    assert sent["Authorization"] == f"Bearer {KEY}"
    for shown in (repr(probe), repr(probe.engine), repr(probe.engine.client), str(probe.meta), str(result.meta)):
        assert KEY not in shown
    assert KEY not in caplog.text
    result.save(tmp_path / "saved")
    assert all(KEY.encode() not in path.read_bytes() for path in (tmp_path / "saved").iterdir())


def test_the_key_of_the_environment_goes_only_where_it_belongs(spoilt, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("VLMPROBE_API_KEY", raising=False)
    _, server = spoilt("openai")
    assert all("Authorization" not in request.headers for request in server.server.requests)
    monkeypatch.setenv("VLMPROBE_API_KEY", KEY)
    _, server = spoilt("openai")
    assert server.server.requests[-1].headers["Authorization"] == f"Bearer {KEY}"
