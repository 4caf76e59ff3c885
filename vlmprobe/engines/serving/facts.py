"""What a server reports about itself: cheap GET requests, each sent once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from vlmprobe.engines.serving.http.client import Client
from vlmprobe.errors import EngineConnectionError, EngineError, EngineTimeoutError

__all__ = ["Facts", "Server"]

MODELS = "/v1/models"


@dataclass(frozen=True)
class Server:
    """What a server reports about itself."""

    version: str | None = None
    models: tuple[str, ...] = ()  # the names of its models
    context: int | None = None  # positions of prompt and answer together
    root: str | None = None  # the checkpoint behind the first name
    more: dict[str, Any] = field(default_factory=dict)  # facts that only its engine needs; not shown


class Facts:
    """Replies of one server to GET requests, each sent once."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._asked: dict[str, asyncio.Task[Any]] = {}
        self.failed: dict[str, EngineError] = {}  # what was not answered, by path

    async def get(self, path: str) -> Any:
        """JSON of a path, or None if the server has no such path or returns something else.

        Raises:
            EngineConnectionError: if the server cannot be reached at all.
            EngineTimeoutError: if the server does not answer in time.
        """
        task = self._asked.get(path)
        if task is None:
            task = self._asked[path] = asyncio.ensure_future(self._get(path))
        return await task

    async def models(self) -> list[dict[str, Any]]:
        """The entries of ``/v1/models``, in OpenAI's format; empty if there are none."""
        found = await self.get(MODELS)
        listed = found.get("data") if isinstance(found, dict) else None
        return [each for each in listed[:1000] if isinstance(each, dict)] if isinstance(listed, list) else []

    async def seen(self) -> str:
        """What the server says of its models, for an error."""
        entries = await self.models()
        if MODELS in self.failed:
            return str(self.failed[MODELS])
        if not entries:
            return f"{MODELS} lists no model"
        owners = sorted({str(each.get("owned_by")) for each in entries})
        return f"{MODELS} lists {len(entries)} model(s), owned by {', '.join(map(repr, owners[:5]))}"

    async def _get(self, path: str) -> Any:
        try:
            return await self.client.get(path)
        except (EngineConnectionError, EngineTimeoutError):
            raise
        except EngineError as error:
            self.failed[path] = error
            return None
