"""Several servers of one model as one engine: each request goes to the one that has the least to do."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from vlmprobe.engines.base import Options
from vlmprobe.engines.serving.base import ServedEngine
from vlmprobe.errors import EngineConnectionError, EngineError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.result import Result, Scores

__all__ = ["SeveralServers"]

AWAY_S = 60.0  # for which a server that could not be reached is asked only where no other can be
GATEWAY = (502, 503, 504)  # what a proxy says of a server that is away


class SeveralServers(ServedEngine):
    """Answers and scores of whichever server is free; ``meta["url"]`` says which. They do not stream."""

    title: ClassVar[str] = "Several servers"

    def __init__(self, engines: Sequence[ServedEngine]) -> None:
        """``engines``: one for each server, all of the same kind and model."""
        first = engines[0]
        super().__init__(first.client, first.server, first.model, first.tokens, first.meaning)
        self.abilities = first.abilities
        self.engines = tuple(engines)
        self._asked = [0] * len(engines)  # requests of each that are not answered yet; changed on the loop only
        self._away = [0.0] * len(engines)  # until when, as time.monotonic

    @property
    def in_flight(self) -> int:
        """Of all of them together."""
        return sum(each.in_flight for each in self.engines)

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Validate a request for each of them."""
        for each in self.engines:
            each.check(conversations, options)

    async def result(self, conversation: Conversation, options: Options) -> Result:
        """The answer of one of them."""
        found: Result = await self._of_one(lambda engine: engine.result(conversation, options))
        return found

    async def scored(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """The scores of one of them."""
        found: Scores = await self._of_one(lambda engine: engine.scored(conversation, candidates, options))
        return found

    def close(self) -> None:
        """Close the connections to all."""
        for each in self.engines:
            each.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({[each.client.url for each in self.engines]}, model={self.model!r})"

    async def _of_one(self, ask: Callable[[ServedEngine], Awaitable[Any]]) -> Any:
        """What one of them says; the next is asked where one cannot be reached."""
        left = set(range(len(self.engines)))
        while True:
            now = time.monotonic()
            place = min(
                left, key=lambda each: (self._away[each] > now, self._asked[each] / self.engines[each].in_flight)
            )
            engine = self.engines[place]
            left.discard(place)
            self._asked[place] += 1
            try:
                found = await ask(engine)
            except EngineError as error:
                if not (isinstance(error, EngineConnectionError) or error.status in GATEWAY):
                    raise
                self._away[place] = time.monotonic() + AWAY_S
                if not left:
                    raise
            else:
                self._away[place] = 0.0
                return replace(found, meta={**found.meta, "url": engine.client.url})
            finally:
                self._asked[place] -= 1
