"""Connections to one server, as many as there may be requests in flight.

Each is an httpx client of its own. In one pool, httpx would scan all connections for every request (with 64 that is
most of a request's cost), and occasionally leave one whose request was cancelled marked busy forever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

__all__ = ["Connections"]

ONE = httpx.Limits(max_connections=1, max_keepalive_connections=1)


class Connections:
    """Limits concurrent requests to one server. Create and use it in the loop that runs the requests.

    Attributes:
        loop: in which they were created.

    Args:
        url: of the server.
        most: maximum number of concurrent requests.
        headers: of every request.
        timeout: of every step of a request.
    """

    def __init__(self, url: str, *, most: int, headers: Mapping[str, str], timeout: httpx.Timeout) -> None:
        self._url = url
        self._headers = headers
        self._timeout = timeout
        self._trusted = httpx.create_ssl_context()  # loading the certificates takes longer than everything else
        self.loop = asyncio.get_running_loop()
        self._open: set[httpx.AsyncClient] = set()
        self._closing: set[asyncio.Task[None]] = set()
        # The slot freed last is taken first: few concurrent requests need few connections.
        self._free: asyncio.LifoQueue[httpx.AsyncClient | None] = asyncio.LifoQueue()
        for _ in range(most):
            self._free.put_nowait(None)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client for one request, once a slot is free; its connection is kept if the request succeeds."""
        client = await self._free.get()
        if client is None:
            client = self._client()
        kept: httpx.AsyncClient | None = None
        try:
            yield client
            kept = client
        finally:
            self._free.put_nowait(kept)
            if kept is None:
                self._drop(client)

    @property
    def is_closed(self) -> bool:
        """Whether no connection is open."""
        return not self._open

    async def aclose(self) -> None:
        """Close all connections. In a process other than the one that opened them, leave them alone."""
        if self.loop is not asyncio.get_running_loop():
            return
        for client in list(self._open):
            self._drop(client)
        await asyncio.gather(*self._closing)

    def _client(self) -> httpx.AsyncClient:
        client = httpx.AsyncClient(
            base_url=self._url,
            headers=self._headers,
            follow_redirects=False,
            timeout=self._timeout,
            verify=self._trusted,
            limits=ONE,
        )
        self._open.add(client)
        return client

    def _drop(self, client: httpx.AsyncClient) -> None:
        """Close a client in a task of its own, which outlives the failed request."""
        self._open.discard(client)
        closing = asyncio.ensure_future(client.aclose())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
