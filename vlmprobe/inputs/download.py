"""Download a file over http(s) in bounded time and size.

The deadline covers the whole download (DNS, connections, redirects, headers, body), so a server that sends
one byte a second cannot block the caller. Other schemes are refused, also in redirects. Hosts are not filtered:
localhost and the local network are legitimate sources in research, so a service that forwards URLs of untrusted
users has to check them first.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from vlmprobe._version import __version__
from vlmprobe.errors import ImageError

__all__ = ["fetch", "shown"]

CHUNK = 65536
HEADERS = {"User-Agent": f"vlmprobe/{__version__}", "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"}
REDIRECTS = (301, 302, 303, 307, 308)
BY_HAND = "download the image yourself and pass its path"


def fetch(url: str, *, seconds: float, max_bytes: int, redirects: int) -> bytes:
    """The response body of an ``http(s)`` URL.

    Args:
        url: the address; characters that are invalid in a URL are escaped.
        seconds: total time limit.
        max_bytes: reading stops there, whatever length the server announces.
        redirects: the most redirects to follow.

    Raises:
        ImageError: for another scheme, a network or server failure, or an exceeded limit.
    """
    line = _Line()
    done: Future[bytes] = Future()

    def work() -> None:
        try:
            done.set_result(_download(line, url, seconds, max_bytes, redirects))
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            done.set_exception(error)

    # In a separate thread, because DNS resolution and slow headers ignore socket timeouts.
    threading.Thread(target=work, daemon=True, name="vlmprobe-fetch").start()
    try:
        return done.result(timeout=seconds)
    except FutureTimeoutError:
        raise _late(url, seconds) from None
    finally:
        line.cut()


def _late(url: str, seconds: float) -> ImageError:
    return ImageError(f"{shown(url)} did not arrive within {seconds:g} s: try again, or {BY_HAND}.")


def shown(url: str) -> str:
    """A URL for a message: without user, password and query, which may be secret, and at most 120 characters."""
    try:
        parts = urlsplit(url)
        port = "" if parts.port is None else f":{parts.port}"
        text = f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
    except ValueError:
        text = url.partition("?")[0].rpartition("@")[2]
    return text if len(text) <= 120 else text[:117] + "..."


class _Line:
    """The connection in use, which another thread may close."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_cut = False

    def hold(self, connection: socket.socket) -> None:
        with self._lock:
            self._socket = connection
        if self._is_cut:
            self.cut()

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # already closed
                    self._socket.shutdown(socket.SHUT_RDWR)
                self._socket = None


def _opener(line: _Line) -> urllib.request.OpenerDirector:
    """An opener for http, https and the environment's proxies, without urllib's file, ftp and data handlers."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            line.hold(self.sock)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            line.hold(self.sock)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, req)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, req, context=ssl.create_default_context())

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        PlainHandler(),
        SecureHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _download(line: _Line, url: str, seconds: float, max_bytes: int, redirects: int) -> bytes:
    opener = _opener(line)
    place = url
    try:
        for _ in range(redirects + 1):
            request = urllib.request.Request(_escaped(place), headers=HEADERS)
            try:
                with opener.open(request, timeout=seconds) as response:
                    return _body(response, url, max_bytes)
            except urllib.error.HTTPError as error:
                with error:
                    place = urljoin(place, _redirect(error, url))
            if urlsplit(place).scheme not in ("http", "https"):
                raise ImageError(f"{shown(url)} redirects to {shown(place)}, which is not http(s): {BY_HAND}.")
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):  # the connection's own limit, which is the same and may come first
            raise _late(url, seconds) from error
        raise ImageError(f"{shown(url)} cannot be downloaded ({reason}): check the address, or {BY_HAND}.") from error
    raise ImageError(f"{shown(url)} redirects more than {redirects} times: use the final address, or {BY_HAND}.")


def _body(response: Any, url: str, max_bytes: int) -> bytes:
    too_large = ImageError(f"{shown(url)} is larger than {max_bytes:,} bytes: use a smaller version, or {BY_HAND}.")
    announced = response.headers.get("Content-Length", "")
    length = int(announced) if announced.isdecimal() else 0
    if length > max_bytes:
        raise too_large
    body = bytearray()
    while chunk := response.read(min(CHUNK, max_bytes + 1 - len(body))):
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    if len(body) < length:
        raise ImageError(f"{shown(url)} broke off after {len(body):,} of {length:,} bytes: try again, or {BY_HAND}.")
    return bytes(body)


def _redirect(error: urllib.error.HTTPError, url: str) -> str:
    """The target of a redirect; any other unsuccessful response is an error that explains it."""
    target = error.headers.get("Location")
    if error.code in REDIRECTS and target:
        return str(target)
    remedy = (
        f"it requires a login or blocks programs; {BY_HAND}" if error.code in (401, 403, 429) else "check the address"
    )
    raise ImageError(f"{shown(url)} answers HTTP {error.code} {error.reason}: {remedy}.") from error


def _escaped(url: str) -> str:
    """The URL in ASCII: host in IDNA, and spaces and the like percent-encoded."""
    parts = urlsplit(url)
    place = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
    path, query = (quote(part, safe="%/:=&?~#+!$,;'@()*[]") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, place, path, query, ""))
