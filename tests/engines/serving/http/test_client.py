"""The HTTP client of serving engines, against a real local server that misbehaves."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import pickle
import resource
import signal
import threading
import time

import numpy as np
import pytest
from wire_server import Reply, WireServer, busy, endless, half, html, json_reply, redirect, refusal, wait_for

import vlmprobe
from vlmprobe.engines.serving import Client, Limits
from vlmprobe.engines.serving.http import background_loop
from vlmprobe.engines.serving.http.background_loop import in_order
from vlmprobe.errors import (
    EngineConnectionError,
    EngineError,
    EngineResponseError,
    EngineTimeoutError,
    MessageError,
)

SECRET = "sk-very-secret-0123456789"
QUICK = Limits(request_s=20, connect_s=2, retries=2)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("vlmprobe.engines.serving.http.client.FIRST_PAUSE_S", 0.01)


def post(server: WireServer, limits: Limits = QUICK, **options) -> object:
    client = Client(server.url, limits=limits, **options)
    try:
        return background_loop.run(client.post("/x", {"a": 1}))
    finally:
        client.close()


def test_a_request_and_its_answer():
    with WireServer({"/x": {"b": [1, 2]}}) as server:
        assert post(server) == {"b": [1, 2]}
        assert server.requests[0].json == {"a": 1}
        assert server.requests[0].headers["User-Agent"].startswith("vlmprobe/")


@pytest.mark.parametrize("reply", [busy(429), busy(503), busy(503, retry_after=None)], ids=["429", "503", "no header"])
def test_busy_servers_are_asked_again(reply):
    with WireServer({"/x": [reply, reply, {"b": 1}]}) as server:
        assert post(server) == {"b": 1}
        assert len(server.requests) == 3


def test_a_server_that_stays_busy_is_an_error():
    with WireServer({"/x": busy(429)}) as server:
        with pytest.raises(EngineError, match=r"429.*max_concurrency") as caught:
            post(server)
        assert caught.value.status == 429
        assert len(server.requests) == 3


def test_a_lost_connection_is_tried_again():
    with WireServer({"/x": [json_reply({"b": 1}, cut_after=3), {"b": 1}]}) as server:
        assert post(server) == {"b": 1}
        assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422, 500, 502])
def test_other_errors_are_not_tried_again(status):
    with WireServer({"/x": refusal(status, "no such thing")}) as server:
        with pytest.raises(EngineError, match="no such thing") as caught:
            post(server)
        assert caught.value.status == status
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (html(502), "502.*Bad Gateway"),
        (html(200), "no JSON"),
        (half({"choices": [1, 2, 3]}), "no JSON"),
        (Reply(b""), "returned nothing"),
        (Reply(b"[" * 100_000), "no JSON"),
        (Reply(b"\xff\xfe\x00"), "no JSON"),
    ],
    ids=["html error", "html", "half", "empty", "deep", "no text"],
)
def test_what_is_no_answer(reply, said):
    with WireServer({"/x": reply}) as server, pytest.raises(EngineError, match=said):
        post(server)


def test_a_server_that_stalls_is_given_up():
    with WireServer({"/x": json_reply({"b": "c" * 100}, stall_after=5)}) as server:
        started = time.monotonic()
        with pytest.raises(EngineTimeoutError, match="in time"):
            post(server, Limits(request_s=0.3, retries=0))
        assert time.monotonic() - started < 5
        assert len(server.requests) == 1


def test_nothing_listens():
    with WireServer({}) as server:
        address = server.url
    client = Client(address, limits=Limits(retries=1, connect_s=1))
    with pytest.raises(EngineConnectionError, match="cannot be reached"):
        background_loop.run(client.get("/version"))


def test_ten_gigabytes_stay_out_of_memory():
    with WireServer({"/x": endless(10 * 2**30)}) as server:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(EngineResponseError, match="more than 16,777,216 bytes"):
            post(server, Limits(response_bytes=16 * 2**20, retries=0))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_redirects_are_not_followed():
    with WireServer({"/y": {"b": 1}}) as other, WireServer({"/x": redirect(f"{other.url}/y")}) as server:
        with pytest.raises(EngineResponseError, match="redirects to http://127"):
            post(server, api_key=SECRET)
        assert other.requests == []


def test_the_key_is_sent_and_nowhere_else(monkeypatch, caplog):
    monkeypatch.setenv("VLMPROBE_API_KEY", SECRET)
    echo = refusal(401, f"Incorrect API key provided: {SECRET}")
    with caplog.at_level(logging.DEBUG), WireServer({"/v1/models": {"data": [{"id": "m"}]}, "/x": echo}) as server:
        probe = vlmprobe.connect(server.url)
        with pytest.raises(EngineError, match=r"\*\*\*") as caught:
            background_loop.run(probe.engine.client.post("/x", {}))
        assert all(each.headers["Authorization"] == f"Bearer {SECRET}" for each in server.requests)
        client = probe.engine.client
        told = [
            str(caught.value),
            repr(probe),
            repr(client),
            repr(probe.engine),
            json.dumps(dict(probe.meta)),
            caplog.text,
        ]
        assert not any(SECRET in each for each in told)
        with pytest.raises(TypeError, match="holds a key"):
            pickle.dumps(client)


def test_a_key_goes_to_its_own_host_only(monkeypatch):
    monkeypatch.delenv("VLMPROBE_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with WireServer({"/x": {}}) as server:
        post(server)
        assert "Authorization" not in server.requests[0].headers


@pytest.mark.parametrize("key", ["line\nbreak", "with space", "ключ"])
def test_a_key_that_no_header_can_carry(key):
    with pytest.raises(MessageError, match="header") as caught:
        Client("http://localhost:1", api_key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://host", "http://", "http://user:pw@host", "http://host?a=b", "http://host:port", 7, "file:///etc"]
)
def test_addresses_that_are_none(url):
    with pytest.raises(MessageError):
        Client(url)


@pytest.mark.parametrize("url", ["http://host:8000", "http://host:8000/", "host:8000", "http://host:8000/v1/"])
def test_addresses_are_read_as_people_write_them(url):
    assert Client(url).url == "http://host:8000"


@pytest.mark.parametrize("most", [1, 4, 20])
def test_no_more_in_flight_than_allowed_and_connections_are_kept(most):
    with WireServer({"/x": json_reply({}, wait_s=0.05)}) as server:
        client = Client(server.url, limits=Limits(in_flight=most))
        list(in_order((client.post("/x", {"n": n}) for n in range(3 * most)), ahead=3 * most))
        assert server.most_in_flight == most
        assert server.connections == most
        client.close()


def test_one_request_after_another_takes_one_connection():
    with WireServer({"/x": {}}) as server:
        client = Client(server.url)
        for n in range(5):
            background_loop.run(client.post("/x", {"n": n}))
        assert server.connections == 1
        client.close()


def test_an_answer_of_megabytes_leaves_the_others_alone():
    large = {"numbers": [each / 7 for each in range(200_000)]}
    with WireServer({"/large": large, "/small": {"a": 1}}) as server:
        client = Client(server.url, limits=QUICK)
        paths = ["/large", "/small", "/large", "/small"]
        found = list(in_order((client.get(path) for path in paths), ahead=4))
        assert found == [large, {"a": 1}] * 2
        client.close()


def test_cancelled_requests_leave_no_connection_taken():
    """Wherever in its exchange a request was when it was cancelled."""
    random = np.random.default_rng(5)
    waits = [0.0, 0.004, 30.0]
    with WireServer({"/x": lambda request: json_reply({}, wait_s=waits[request.json["n"] % 3])}) as server:
        client = Client(server.url, limits=Limits(in_flight=4, request_s=20))
        for _ in range(60):
            work = [background_loop.start(client.post("/x", {"n": n})) for n in range(6)]
            time.sleep(random.uniform(0, 0.012))
            background_loop.settle(work)
        again = [background_loop.start(client.post("/x", {"n": 0})) for _ in range(12)]
        assert [each.result(10) for each in again] == [{}] * 12
        wait_for(lambda: client._connections._free.qsize() == 4)
        assert len(client._connections._open) <= 4
        client.close()


def test_a_client_that_is_closed_during_a_request_opens_again():
    with WireServer({"/x": json_reply({}, wait_s=0.5)}) as server:
        client = Client(server.url, limits=QUICK)
        work = background_loop.start(client.post("/x", {}))
        wait_for(lambda: server.in_flight == 1)
        client.close()
        assert work.result(10) == {}
        client.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_opens_its_own_connections():
    with WireServer({"/x": {"a": 1}}) as server:
        client = Client(server.url, limits=QUICK)
        assert background_loop.run(client.post("/x", {})) == {"a": 1}
        child = os.fork()
        if child == 0:
            ok = background_loop.run(client.post("/x", {})) == {"a": 1}
            os._exit(0 if ok else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert background_loop.run(client.post("/x", {})) == {"a": 1}
        client.close()


def test_order_is_kept_whatever_takes_longer():
    def reply(request):
        return json_reply({"n": request.json["n"]}, wait_s=0.05 * (request.json["n"] % 3 == 0))

    with WireServer({"/x": reply}) as server:
        client = Client(server.url)
        found = list(in_order((client.post("/x", {"n": n}) for n in range(12)), ahead=8))
        assert [each["n"] for each in found] == list(range(12))
        client.close()


def test_leaving_early_ends_the_servers_work():
    with WireServer({"/x": lambda request: json_reply({}, wait_s=30 * (request.json["n"] > 0))}) as server:
        client = Client(server.url)
        running = in_order((client.post("/x", {"n": n}) for n in range(6)), ahead=6)
        next(running)
        wait_for(lambda: len(server.requests) >= 4)
        running.close()
        wait_for(lambda: server.hung_up >= len(server.requests) - 1)
        client.close()


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupt_closes_the_connections():
    with WireServer({"/x": json_reply({}, wait_s=30)}) as server:
        client = Client(server.url)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            background_loop.run(client.post("/x", {}))
        wait_for(lambda: server.hung_up == 1)
        client.close()


def test_inside_a_running_loop():
    """Jupyter runs a loop of its own in the thread that calls."""

    async def cell():
        return background_loop.run(client.post("/x", {}))

    with WireServer({"/x": {"b": 1}}) as server:
        client = Client(server.url)
        assert asyncio.run(cell()) == {"b": 1}
        client.close()


def test_many_threads_share_a_client():
    with WireServer({"/x": lambda request: json_reply({"n": request.json["n"]})}) as server:
        client = Client(server.url)
        found: dict[int, object] = {}

        def work(n):
            found[n] = background_loop.run(client.post("/x", {"n": n}))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {n: {"n": n} for n in range(16)}
        client.close()


def test_a_client_that_nothing_holds_closes_its_connections():
    with WireServer({"/x": {}}) as server:
        client = Client(server.url)
        background_loop.run(client.post("/x", {}))
        connections = client._connections
        assert not connections.is_closed
        del client
        gc.collect()
        wait_for(lambda: connections.is_closed)


def test_the_former_names_of_the_limits():
    with WireServer({"/v1/models": {"data": [{"id": "m"}]}}) as server:
        with pytest.warns(DeprecationWarning, match="connect") as told:
            probe = vlmprobe.connect(server.url, value_kind="raw", in_flight=3, seconds=7)
        assert [str(each.message).partition(";")[0] for each in told] == [
            "connect(in_flight=) is now connect(max_concurrency=)",
            "connect(seconds=) is now connect(timeout=)",
        ]
        limits = probe.engine.client.limits
        assert (limits.in_flight, limits.request_s) == (3, 7)
        assert vlmprobe.connect(server.url, value_kind="raw", max_concurrency=3).engine.client.limits.in_flight == 3


def test_any_exception_keeps_its_place():
    async def work(n):
        if n % 2:
            raise ZeroDivisionError(str(n))
        return n

    found = list(in_order((work(n) if n != 2 else KeyError("early") for n in range(5)), ahead=2, keep_errors=True))
    assert [type(each) for each in found] == [int, ZeroDivisionError, KeyError, ZeroDivisionError, int]
    with pytest.raises(ZeroDivisionError):
        list(in_order((work(n) for n in range(5)), ahead=2))
