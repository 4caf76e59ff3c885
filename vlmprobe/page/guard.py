"""Lets only those in who know the page's address: the token in its path, a known host, and no other site's requests."""

from __future__ import annotations

import ipaddress
import json
import secrets
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

__all__ = ["POLICY", "Guard"]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
READING = ("GET", "HEAD")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
LOST = "This is not the address of the page. Open the whole one that vlmprobe page printed: it holds a token."


class Guard:
    """An ASGI application around another one, which sees only what is behind ``/<token>/``.

    What stands before the token is the prefix of a proxy. A name in ``Host`` that is neither of this computer nor
    allowed may have been made to point here by another site (DNS rebinding); a number cannot have been.
    """

    def __init__(self, app: Any, token: str, hosts: Collection[str] = (), *, loopback: bool = True) -> None:
        """``hosts`` are allowed beside those of this computer; addresses in numbers unless ``loopback``."""
        self.app = app
        self.token = token
        self.hosts = LOOPBACK | {host.lower() for host in hosts}
        self.loopback = loopback

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the page has no {scope['type']}")
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        before, found, rest = self._split(scope["path"])
        if not self._is_known(headers.get("host", "")):
            await _refuse(send, 403, "HostError", "Unknown host name: pass --allow-host to vlmprobe page.")
        elif not found:
            await _refuse(send, 404, "AddressError", LOST)
        elif scope["method"] not in READING and not self._is_own(headers):
            await _refuse(send, 403, "OriginError", "Another site asks: only the page itself may.")
        elif rest is None:  # without its slash, relative addresses would begin one folder too high
            await _send(send, 307, {"location": f"{self.token}/"}, b"")
        else:
            root = f"{before}/{self.token}"
            path = f"{scope.get('root_path', '')}{root}{rest}"
            await self.app(
                {**scope, "root_path": scope.get("root_path", "") + root, "path": path}, receive, _told(send)
            )

    def _split(self, path: str) -> tuple[str, bool, str | None]:
        """What stands before the token, whether there is one, and what stands after it, None if not even a slash."""
        parts = path.split("/")
        for place, part in enumerate(parts):
            if secrets.compare_digest(part.encode(), self.token.encode()):
                rest = parts[place + 1 :]
                return "/".join(parts[:place]), True, "/" + "/".join(rest) if rest else None
        return "", False, None

    def _is_known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name in self.hosts or (not self.loopback and _is_number(name))

    def _is_own(self, headers: dict[str, str]) -> bool:
        """Whether the page itself sent a request: browsers say so of every one that could change something."""
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
        try:
            named = urlsplit(origin)
        except ValueError:
            return False
        allowed = (named.hostname or "") in self.hosts - LOOPBACK  # a proxy may have changed Host
        return named.netloc.lower() == headers.get("host", "").lower() or allowed


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _told(send: Any) -> Any:
    """``send`` that adds the headers of every reply."""

    async def told(message: Any) -> None:
        if message["type"] == "http.response.start":
            named = {name.lower() for name, _ in message["headers"]}
            own = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in named]
            message = {**message, "headers": [*message["headers"], *own]}
        await send(message)

    return told


async def _refuse(send: Any, status: int, kind: str, message: str) -> None:
    body = json.dumps({"error": {"type": kind, "message": message}}).encode()
    await _send(_told(send), status, {"content-type": "application/json"}, body)


async def _send(send: Any, status: int, headers: dict[str, str], body: bytes) -> None:
    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    listed.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": listed})
    await send({"type": "http.response.body", "body": body})
