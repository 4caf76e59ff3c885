"""A real local HTTP server that replays answers of serving engines, and misbehaves as they do.

::

    with WireServer({"/version": {"version": "1"}, "/v1/chat/completions": [busy(), json_reply({...})]}) as server:
        probe = vlmprobe.connect(server.url)
        server.requests[-1].json["max_tokens"]

A route is a :class:`Reply`, a JSON-ready value, a function of the :class:`Request` that returns either, or a list of
those, of which one request after the other gets the next; the last one stays.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


@dataclass(frozen=True)
class Reply:
    body: bytes | Callable[[], Iterator[bytes]] = b""  # a function yields chunks, sent without a length
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wait_s: float = 0.0  # before anything is sent
    cut_after: int | None = None  # bytes of the body, after which the connection is cut
    stall_after: int | None = None  # bytes of the body, after which nothing more comes


def json_reply(value: Any, status: int = 200, **more: Any) -> Reply:
    return Reply(json.dumps(value).encode(), status, {"Content-Type": "application/json"}, **more)


def event_stream(
    values: Iterable[Any], *, end: bytes = b"data: [DONE]\n\n", gate: Callable[[], None] | None = None
) -> Reply:
    """Server-sent events, one for each value; ``gate`` is called before each of them."""

    def chunks() -> Iterator[bytes]:
        for value in values:
            if gate is not None:
                gate()
            yield b"data: " + json.dumps(value).encode() + b"\n\n"
        yield end

    return Reply(chunks, headers={"Content-Type": "text/event-stream"})


def refusal(status: int, message: str, kind: str = "BadRequestError") -> Reply:
    return json_reply({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)


def busy(status: int = 429, retry_after: str | None = "0") -> Reply:
    return Reply(b"busy", status, {} if retry_after is None else {"Retry-After": retry_after})


def html(status: int = 502) -> Reply:
    return Reply(b"<html><body><h1>Bad Gateway</h1></body></html>", status, {"Content-Type": "text/html"})


def half(value: Any) -> Reply:
    """Half a JSON document, sent as if it were whole."""
    text = json.dumps(value).encode()
    return Reply(text[: len(text) // 2], headers={"Content-Type": "application/json"})


def redirect(target: str, status: int = 307) -> Reply:
    return Reply(b"", status, {"Location": target})


def endless(size: int, chunk: int = 2**20) -> Reply:
    """So many bytes, which are made as they are sent."""

    def chunks() -> Iterator[bytes]:
        sent = 0
        while sent < size:
            yield b"[" + b"0," * (chunk // 2)
            sent += chunk

    return Reply(chunks)


class _Listener(ThreadingHTTPServer):
    request_queue_size = 128  # the default of 5 has the system turn connections away that come together
    daemon_threads = True


class WireServer:
    """Serves ``routes`` on 127.0.0.1 while it is entered; ``requests`` holds what came, ``hung_up`` how many left."""

    def __init__(self, routes: Mapping[str, Any]) -> None:
        self.routes = dict(routes)
        self.requests: list[Request] = []
        self.hung_up = 0  # clients that closed the connection before they had the whole reply
        self.in_flight = self.most_in_flight = 0
        self.connections = 0
        self._lock = threading.Lock()
        self._served: dict[str, int] = {}
        self._closing = threading.Event()
        self._server = _Listener(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def of(self, path: str) -> list[Request]:
        """The requests of one path."""
        return [request for request in self.requests if request.path == path]

    def __enter__(self) -> WireServer:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _reply(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(request)
            route = self.routes.get(request.path.partition("?")[0], json_reply({"detail": "Not Found"}, 404))
            if isinstance(route, list):
                place = self._served.get(request.path, 0)
                self._served[request.path] = place + 1
                route = route[min(place, len(route) - 1)]
        if callable(route):
            route = route(request)
        return route if isinstance(route, Reply) else json_reply(route)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                outer.connections += 1
                super().setup()

            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with outer._lock:
                    outer.in_flight += 1
                    outer.most_in_flight = max(outer.most_in_flight, outer.in_flight)
                try:
                    self._send(outer._reply(Request(self.command, self.path, dict(self.headers), body)))
                except (BrokenPipeError, ConnectionResetError, TimeoutError):
                    outer.hung_up += 1
                    self.close_connection = True
                finally:
                    with outer._lock:
                        outer.in_flight -= 1

            def _send(self, reply: Reply) -> None:
                if reply.wait_s:
                    self._wait(reply.wait_s)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if callable(reply.body):
                    self.send_header("Connection", "close")
                    self.end_headers()
                    self.close_connection = True
                    for chunk in reply.body():
                        self.wfile.write(chunk)
                    return
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                stop = next((each for each in (reply.cut_after, reply.stall_after) if each is not None), None)
                self.wfile.write(reply.body if stop is None else reply.body[:stop])
                self.wfile.flush()
                if reply.stall_after is not None:
                    self._wait(3600)
                self.close_connection = self.close_connection or stop is not None

            def _wait(self, seconds: float) -> None:
                """Wait, and notice when the client leaves."""
                self.connection.settimeout(0.02)
                end = time.monotonic() + seconds
                while time.monotonic() < end and not outer._closing.is_set():
                    try:
                        if self.connection.recv(1) == b"":
                            raise BrokenPipeError
                    except TimeoutError:
                        continue
                self.connection.settimeout(None)

        return Handler


def wait_for(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)
