"""What a server says of itself: cheap questions, each asked once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from vlmprobe.engines.serving.http.client import Client
from vlmprobe.errors import EngineConnectionError, EngineError, EngineTimeoutError

__all__ = ["Facts", "Server"]


@dataclass(frozen=True)
class Server:
    """What a server says of itself."""

    version: str | None = None
    models: tuple[str, ...] = ()  # the names under which its models are asked
    context: int | None = None  # positions of prompt and answer together
    root: str | None = None  # the checkpoint behind the first name
    more: dict[str, Any] = field(default_factory=dict)  # what an engine wants to remember; not shown


class Facts:
    """Answers of one server to GET requests, each asked once."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._asked: dict[str, asyncio.Task[Any]] = {}

    async def get(self, path: str) -> Any:
        """JSON of a path, or None where the server has no such path or answers something else.

        Raises:
            EngineConnectionError: where nothing can be reached at all.
            EngineTimeoutError: where the server does not answer.
        """
        task = self._asked.get(path)
        if task is None:
            task = self._asked[path] = asyncio.ensure_future(self._get(path))
        return await task

    async def models(self) -> list[dict[str, Any]]:
        """The entries of ``/v1/models``, as OpenAI's protocol has them; empty where there are none."""
        found = await self.get("/v1/models")
        listed = found.get("data") if isinstance(found, dict) else None
        return [each for each in listed[:1000] if isinstance(each, dict)] if isinstance(listed, list) else []

    async def _get(self, path: str) -> Any:
        try:
            return await self.client.get(path)
        except (EngineConnectionError, EngineTimeoutError):
            raise
        except EngineError as error:
            if error.status in (401, 403):
                raise
            return None
