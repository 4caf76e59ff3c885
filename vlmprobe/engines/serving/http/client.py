"""The HTTP client of all serving engines: bounded in requests, time and bytes; it never reveals its key."""

from __future__ import annotations

import asyncio
import json
import re
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from vlmprobe._version import __version__
from vlmprobe.engines.serving.http import background_loop
from vlmprobe.engines.serving.http.address import address_of, key_for
from vlmprobe.engines.serving.http.connections import Connections
from vlmprobe.engines.serving.http.events import NoEventsError, read_events
from vlmprobe.errors import (
    EngineConnectionError,
    EngineError,
    EngineResponseError,
    EngineTimeoutError,
)

__all__ = ["Client", "Limits"]

BUSY = (429, 503)
LOST = (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError, httpx.CloseError)
FAILURES = (httpx.HTTPError, httpx.InvalidURL, asyncio.TimeoutError)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LARGE = 2**20  # bytes of JSON that take more than 10 ms to parse
TOLD = 400  # characters of a server's own message quoted in an error


@dataclass(frozen=True)
class Limits:
    """Resource limits for one server."""

    in_flight: int = 64  # requests at once
    connect_s: float = 10.0
    request_s: float = 600.0  # for one request, not counting retries
    response_bytes: int = 512 * 2**20
    retries: int = 4  # after 429, 503 or a lost connection


class Client:
    """Requests to one server. Thread-safe; all work runs on one background loop.

    The key is read from ``VLMPROBE_API_KEY`` (for api.openai.com: ``OPENAI_API_KEY``) if none is given. It appears
    in the ``Authorization`` header of requests to this server and nowhere else.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.url = address_of(url)
        self.limits = limits or Limits()
        # For another client of this server; never shown.
        self.access: dict[str, Any] = {"api_key": api_key, "headers": headers}
        self._secrets = tuple(each for each in (key_for(self.url, api_key), *(headers or {}).values()) if each)
        self._headers = {
            "User-Agent": f"vlmprobe/{__version__}",
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        }
        key = key_for(self.url, api_key)
        self._headers |= {"Authorization": f"Bearer {key}"} if key else {}
        self._headers |= dict(headers or {})
        self._connections: Connections | None = None

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    def __reduce__(self) -> Any:
        raise TypeError("a client holds a key and connections, and cannot be pickled: use vlmprobe.connect there")

    async def get(self, path: str) -> Any:
        """JSON of a GET request."""
        return await self.request("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """JSON of a POST request with a JSON body.

        Raises:
            EngineConnectionError: if the server cannot be reached, or drops every connection.
            EngineTimeoutError: if it takes too long.
            EngineError: if it refuses or fails; ``status`` is the HTTP status.
            EngineResponseError: if it redirects, or returns too much or no JSON.
        """
        return await self.request("POST", path, json.dumps(body, allow_nan=False).encode())

    async def request(self, method: str, path: str, body: bytes | None) -> Any:
        """One request, retried after 429, 503 and lost connections."""
        for trial in range(self.limits.retries + 1):
            pause = min(FIRST_PAUSE_S * 2**trial, LONGEST_PAUSE_S)
            last = trial == self.limits.retries
            async with self._open().place() as http:
                try:
                    status, headers, content = await asyncio.wait_for(
                        self._exchange(http, method, path, body), self.limits.request_s
                    )
                except FAILURES as error:
                    if last or not isinstance(error, LOST):
                        raise self._failure(error, path) from None
                else:
                    if status not in BUSY or last:
                        break
                    pause = _asked_pause(headers, pause)
            await asyncio.sleep(pause)
        # After the slot is free: waiting requests are sent before the reply is parsed.
        return await background_loop.reading(self._read, path, status, headers, content, large=len(content) > LARGE)

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[Any, None]:
        """JSON of each server-sent event that answers a POST request, as it comes; retried until the first one.

        ``request_s`` is the longest silence. Closing the generator closes the connection.

        Raises:
            EngineError: as :meth:`post`; also if an event reports an error.
        """
        content = json.dumps(body, allow_nan=False).encode()
        for trial in range(self.limits.retries + 1):
            pause = min(FIRST_PAUSE_S * 2**trial, LONGEST_PAUSE_S)
            last, begun = trial == self.limits.retries, False
            async with self._open().place() as http:
                try:
                    async with http.stream("POST", path, content=content) as response:
                        if 200 <= response.status_code < 300:
                            async for event in read_events(self._chunks(response, path)):
                                begun = True
                                yield await background_loop.reading(self._event, event, path, large=len(event) > LARGE)
                            return
                        said = bytearray(b"".join([chunk async for chunk in self._chunks(response, path)]))
                        if response.status_code not in BUSY or last:
                            self._read(path, response.status_code, response.headers, said)
                        pause = _asked_pause(response.headers, pause)
                except FAILURES as error:
                    if begun or last or not isinstance(error, LOST):
                        raise self._failure(error, path) from None
                except NoEventsError as error:
                    raise EngineResponseError(f"{self.url}{path} {self._plain(error)}") from None
            await asyncio.sleep(pause)

    def close(self) -> None:
        """Close the connections. The next request opens new ones."""
        connections, self._connections = self._connections, None
        if connections is not None:
            background_loop.run(connections.aclose())

    # -- one exchange ------------------------------------------------------------------------------

    def _open(self) -> Connections:
        """The connections, created in the loop that uses them."""
        if self._connections is None or self._connections.loop is not asyncio.get_running_loop():  # after a fork
            timeout = httpx.Timeout(self.limits.request_s, connect=self.limits.connect_s, pool=None)
            most = self.limits.in_flight
            self._connections = Connections(self.url, most=most, headers=self._headers, timeout=timeout)
            weakref.finalize(self, _drop, self._connections).atexit = False
        return self._connections

    async def _exchange(
        self, http: httpx.AsyncClient, method: str, path: str, body: bytes | None
    ) -> tuple[int, httpx.Headers, bytearray]:
        async with http.stream(method, path, content=body) as response:
            content = bytearray()
            async for chunk in self._chunks(response, path):
                content += chunk
            return response.status_code, response.headers, content

    async def _chunks(self, response: httpx.Response, path: str) -> AsyncIterator[bytes]:
        """The body of a response as it comes, up to the limit."""
        length = 0
        async for chunk in response.aiter_bytes():
            length += len(chunk)
            if length > self.limits.response_bytes:
                raise EngineResponseError(
                    f"{self.url}{path} returned more than {self.limits.response_bytes:,} bytes: request fewer "
                    "tokens or alternatives."
                )
            yield chunk

    def _failure(self, error: Exception, path: str) -> EngineError:
        """A transport failure as an error of ours."""
        if isinstance(error, LOST):
            return EngineConnectionError(
                f"{self.url} cannot be reached, or dropped the connection: {self._plain(error)}. "
                "Check that the server runs and the address is right."
            )
        if isinstance(error, (httpx.TimeoutException, asyncio.TimeoutError)):
            return EngineTimeoutError(
                f"{self.url} did not answer {path} in time ({self.limits.request_s:g} s, "
                f"{self.limits.connect_s:g} s to connect): raise timeout= of vlmprobe.connect, or request less."
            )
        return EngineConnectionError(f"{self.url}{path}: {self._plain(error)}")

    def _event(self, event: bytes, path: str) -> Any:
        """The JSON of one event."""
        found = self._json(event, f"{self.url}{path}", None)
        if isinstance(found, dict) and found.get("error"):
            raise EngineError(f"{self.url}{path} failed: {self._told(event)}")
        return found

    def _read(self, path: str, status: int, headers: httpx.Headers, content: bytearray) -> Any:
        where = f"{self.url}{path}"
        if 300 <= status < 400:
            target = self._plain(headers.get("location", ""))
            raise EngineResponseError(
                f"{where} redirects to {target or 'nowhere'}, which is not followed: pass the final address.",
                status=status,
            )
        if status >= 400:
            raise EngineError(f"{where} returned HTTP {status}: {self._told(content)}{_remedy(status)}", status=status)
        return self._json(content, where, status)

    def _json(self, content: bytes | bytearray, where: str, status: int | None) -> Any:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            what = "nothing" if not content.strip() else f"no JSON but {self._told(content)}"
            raise EngineResponseError(
                f"{where} returned {what}: is there an engine at this address, and is the reply complete?",
                status=status,
            ) from None

    def _told(self, content: bytes | bytearray) -> str:
        """A server's error message, shortened, on one line, without the key."""
        try:
            document = json.loads(content[: 2**20])
        except (ValueError, RecursionError):
            document = None
        text = _message(document) or bytes(content[: 4 * TOLD]).decode("utf-8", "replace")
        return self._plain(" ".join(text.split()))

    def _plain(self, what: Any) -> str:
        text = str(what) or type(what).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***").replace(secret.removeprefix("Bearer "), "***")
        text = re.sub("[\x00-\x1f\x7f-\x9f]", " ", text)
        return text if len(text) <= TOLD else text[: TOLD - 3] + "..."


def _message(document: Any) -> str:
    """The message in an engine's error reply: ``{"error": {"message": ...}}``, ``{"detail": ...}``, ..."""
    for _ in range(3):
        if isinstance(document, str):
            return document
        if not isinstance(document, dict):
            return ""
        document = next((document[key] for key in ("error", "message", "detail", "msg") if document.get(key)), None)
    return document if isinstance(document, str) else ""


def _remedy(status: int) -> str:
    known = {
        401: " Pass api_key=, or set VLMPROBE_API_KEY.",
        403: " Pass api_key=, or set VLMPROBE_API_KEY.",
        413: " Send fewer or smaller images, or raise the limit of the server or its proxy.",
        429: " It is busy: lower max_concurrency= of vlmprobe.connect.",
        503: " It is busy or starting: try again, or lower max_concurrency= of vlmprobe.connect.",
    }
    return known.get(status, "")


def _asked_pause(headers: httpx.Headers, pause: float) -> float:
    """How long the server asks to wait, capped; else ``pause``."""
    asked = headers.get("retry-after", "")
    return min(float(asked), LONGEST_PAUSE_S) if re.fullmatch(r"\d{1,6}(\.\d+)?", asked) else pause


def _drop(connections: Connections) -> None:
    """Close the connections of a client that was garbage-collected."""
    background_loop.start(connections.aclose())
