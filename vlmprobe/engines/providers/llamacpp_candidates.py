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

    async def after(self, prompt: Any, tokens: Sequence[int], options: Options) -> tuple[list[Row], Usage]:
        """The rows of tokens, each directly after a prompt."""


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

    async def step(prefix: tuple[int, ...], tokens: list[int]) -> None:
        found, usage = await engine.after(await sent(list(prefix)), tokens, options)
        starts[prefix] = usage.prompt
        rows.update({(prefix, token): row for token, row in zip(tokens, found, strict=True)})

    own, *joint = await asyncio.gather(ids(tail), *(ids(tail + each) for each in candidates))
    rows: dict[tuple[tuple[int, ...], int], Row] = {}
    starts: dict[tuple[int, ...], int | None] = {}
    wanted: dict[tuple[int, ...], dict[int, None]] = {}  # tokens after each beginning, which candidates share
    for whole in joint:
        for at in range(_shared(own, whole), len(whole)):
            wanted.setdefault(tuple(whole[:at]), {})[whole[at]] = None
    await asyncio.gather(*(step(prefix, list(tokens)) for prefix, tokens in wanted.items()))

    async def one(candidate: str, whole: list[int]) -> Scored:
        shared = _shared(own, whole)
        if shared >= len(whole):
            raise EngineResponseError(f"{engine.title}: {candidate!r} adds no token to the prompt.")
        steps = [(tuple(whole[:at]), whole[at]) for at in range(shared, len(whole))]
        start = starts[steps[0][0]]
        lost = len(own) - shared
        merged = boundary(lost, await texts(own[shared:]), shared) if lost else None
        return Scored([rows[each] for each in steps], -1 if start is None else start, merged, steps[0][0])

    scored = await asyncio.gather(*(one(*each) for each in zip(candidates, joint, strict=True)))
    return list(scored), {"candidates": HOW}


def _shared(own: Sequence[int], whole: Sequence[int]) -> int:
    """How many tokens of the prompt stand at the beginning of prompt and candidate."""
    return next((at for at, pair in enumerate(zip(own, whole, strict=False)) if pair[0] != pair[1]), len(own))
