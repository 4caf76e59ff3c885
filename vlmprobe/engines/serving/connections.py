"""Connections to one server, as many as may be in flight, in lanes of a few.

For every request httpcore looks at every connection of its pool, several times: with 64 in one pool that is most of
what a request costs. So each lane is a pool of its own, and a request takes the place that was freed last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx

__all__ = ["Connections"]

LANE = 8  # connections in a pool


class Connections:
    """At most so many requests at once to one server. To be made and used in the loop that runs the requests.

    Args:
        url: of the server.
        most: requests at once.
        headers: of every request.
        timeout: of every step of a request.
    """

    def __init__(self, url: str, *, most: int, headers: Mapping[str, str], timeout: httpx.Timeout) -> None:
        trusted = httpx.create_ssl_context()  # reading the certificates takes longer than all the rest
        sizes = [min(LANE, most - first) for first in range(0, most, LANE)]
        self._lanes = [
            httpx.AsyncClient(
                base_url=url,
                headers=headers,
                follow_redirects=False,
                timeout=timeout,
                verify=trusted,
                limits=httpx.Limits(max_connections=size, max_keepalive_connections=size),
            )
            for size in sizes
        ]
        self._free: asyncio.LifoQueue[httpx.AsyncClient] = asyncio.LifoQueue()
        for lane, size in zip(reversed(self._lanes), reversed(sizes), strict=True):
            for _ in range(size):
                self._free.put_nowait(lane)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client with a free connection, as soon as there is one; it is for one request."""
        lane = await self._free.get()
        try:
            yield lane
        finally:
            self._free.put_nowait(lane)

    @property
    def is_closed(self) -> bool:
        """Whether all of them are closed."""
        return all(lane.is_closed for lane in self._lanes)

    async def aclose(self) -> None:
        """Close all connections."""
        for lane in self._lanes:
            await lane.aclose()
