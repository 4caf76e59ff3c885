"""Scores candidates on llama.cpp's server, one token after the other: each is forced, which changes no number.

The server's own tokenizer says which tokens a candidate is directly after the prompt. A prompt without images goes out
as ids; one with images only as text, which must give the same ids again, or the candidate is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from vlmprobe.engines.base import Options
from vlmprobe.engines.serving import Client, Node, Row, Scored, Usage
from vlmprobe.engines.token_tables import boundary
from vlmprobe.errors import CapabilityError, EngineResponseError

__all__ = ["HOW", "stepwise"]

HOW = "one token after the other"  # how candidates were scored, in meta


class Steps(Protocol):
    """What this module needs of the engine."""

    client: Client

    @property
    def title(self) -> str:
        """The engine's display name."""

    async def forced(self, prompt: Any, token: int, options: Options) -> tuple[Row, Usage]:
        """The row of a token directly after a prompt."""


async def stepwise(
    engine: Steps, prompt: Any, marker: str, candidates: Sequence[str], options: Options
) -> tuple[list[Scored], dict[str, Any]]:
    """The rows of each candidate directly after the prompt, and what to record in ``meta``.

    Args:
        engine: that forces tokens.
        prompt: a text, or a text with images as ``/completion`` takes it.
        marker: which stands for an image in the text.
        candidates: texts.
        options: of the call.

    Raises:
        CapabilityError: for a candidate after images whose beginning, as text, is other tokens.
    """
    text = prompt if isinstance(prompt, str) else prompt["prompt_string"]
    before, found, tail = text.rpartition(marker)
    before += found
    if isinstance(prompt, str):
        before, tail = "", text

    async def ids(written: str) -> list[int]:
        asked = {"content": written, "add_special": not before, "parse_special": True}
        return Node(await engine.client.post("/tokenize", asked), engine.title)["tokens"].ids().tolist()

    async def texts(tokens: list[int]) -> str:
        return Node(await engine.client.post("/detokenize", {"tokens": tokens}), engine.title)["content"].string()

    async def sent(prefix: list[int]) -> Any:
        """The prompt up to a candidate's token."""
        if not before:
            return prefix
        written = tail if prefix == own else await texts(prefix)
        if await ids(written) != prefix:
            raise CapabilityError(
                f"{engine.title} takes a prompt with images as text only, and {written[-40:]!r} is not the tokens of "
                "the candidate there: open the checkpoint with vlmprobe.load, or use vLLM."
            )
        return {**prompt, "prompt_string": before + written}

    async def step(prefix: list[int], token: int) -> tuple[Row, Usage]:
        return await engine.forced(await sent(prefix), token, options)

    own = await ids(tail)

    async def one(candidate: str) -> Scored:
        whole = await ids(tail + candidate)
        shared = next((at for at, pair in enumerate(zip(own, whole, strict=False)) if pair[0] != pair[1]), len(own))
        if shared >= len(whole):
            raise EngineResponseError(f"{engine.title}: {candidate!r} adds no token to the prompt.")
        steps = range(shared, len(whole))
        replies = await asyncio.gather(*(step(whole[:at], whole[at]) for at in steps))
        start = replies[0][1].prompt
        lost = len(own) - shared
        merged = boundary(lost, await texts(own[shared:]), shared) if lost else None
        rows = [row for row, _ in replies]
        return Scored(rows, -1 if start is None else start, merged, tuple(whole[:shared]))

    return list(await asyncio.gather(*(one(each) for each in candidates))), {"candidates": HOW}
