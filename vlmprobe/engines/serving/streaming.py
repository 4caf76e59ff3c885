"""Streams an answer from a server: its rows one by one, and the whole result at the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from vlmprobe.engines.base import Options
from vlmprobe.engines.serving.answer import Abilities, Answer, Usage
from vlmprobe.engines.serving.answer_tables import table_of
from vlmprobe.engines.serving.generation_options import Decoding
from vlmprobe.engines.serving.rows import Row, columns
from vlmprobe.engines.serving.tokens import Tokens
from vlmprobe.engines.serving.value_kind import Meaning
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable

__all__ = ["streamed"]

LISTENS_S = 0.1  # how often to check, while the server is silent, whether the stream was closed


class WritesPieces(Protocol):
    """An engine that streams its answers in chunks."""

    abilities: Abilities
    tokens: Tokens
    meaning: Meaning | None

    @property
    def title(self) -> str:
        """The engine's display name."""

    def decoding(self, options: Options) -> Decoding:
        """The generation options of a call."""

    async def known(self, options: Options) -> None:
        """Wait until what the server does not report is determined."""

    def pieces(self, conversation: Conversation, decoding: Decoding, options: Options) -> AsyncGenerator[Answer, None]:
        """The streamed answer, in chunks."""

    async def made(
        self, answer: Answer, conversation: Conversation, decoding: Decoding, options: Options, started: float
    ) -> Result:
        """The result of the whole answer."""


async def streamed(
    engine: WritesPieces, conversation: Conversation, options: Options, listen: Callable[[TokenTable | None], bool]
) -> Result:
    """Send one request, pass on every row of the answer as it comes, and build the result.

    Args:
        engine: of the server.
        conversation, options: of the request; the prompt side is left out.
        listen: called with each row, or with None as a check only; if it returns True, the answer is cut there.
    """
    options = replace(options, prompt=False)
    decoding = engine.decoding(options)
    written = _Written(engine, decoding, options)
    work = asyncio.ensure_future(_follow(engine, conversation, decoding, options, written, listen))
    closed = False
    try:
        while not (work.done() or closed):
            await asyncio.wait({work}, timeout=LISTENS_S)
            closed = not work.done() and listen(None)
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait({work})
    if not work.cancelled():
        closed = work.result()
    answer = written.answer(closed=closed)
    return await engine.made(answer, conversation, decoding, options, written.started)


async def _follow(
    engine: WritesPieces,
    conversation: Conversation,
    decoding: Decoding,
    options: Options,
    written: _Written,
    listen: Callable[[TokenTable | None], bool],
) -> bool:
    """Pass on the rows as they come; whether the answer was cut before its end."""
    await engine.known(options)
    written.started = time.perf_counter()
    async with aclosing(engine.pieces(conversation, decoding, options)) as pieces:
        async for piece in pieces:
            for row in written.add(piece):
                if listen(row):
                    return True
    return False


class _Written:
    """The answer so far."""

    def __init__(self, engine: WritesPieces, decoding: Decoding, options: Options) -> None:
        self.started = time.perf_counter()
        self._engine = engine
        self._decoding = decoding
        self._options = options
        self._ids: list[int] = []
        self._detokenizer = engine.tokens.detokenizer
        self._texts = None if self._detokenizer is None else self._detokenizer.running(iter(self._ids))
        self._rows: list[Row] = []
        self._stop = 0  # end of the last row in the text of the rows
        self._said: list[str] = []  # the text as the engine sent it, which may come later than its tokens
        self._length = 0  # of that text
        self._prompt_ids: np.ndarray | None = None
        self._reason = "stop"
        self._meta: dict[str, Any] = {}
        self._usage = Usage()
        self._reasoning: list[Row] = []  # rows before those of the answer
        self._thought: list[str] = []

    def add(self, piece: Answer) -> list[TokenTable]:
        """The one-row tables that a chunk adds."""
        self._engine.tokens.require_ids(piece.output, self._engine.title)
        if self._prompt_ids is None:
            self._prompt_ids = piece.prompt_ids
        if piece.text:
            self._said.append(piece.text)
            self._length += len(piece.text)
        if piece.finish_reason:
            self._reason = piece.finish_reason
        self._meta |= piece.meta
        if piece.usage != Usage():
            self._usage = piece.usage
        if piece.reasoning:
            self._thought.append(piece.reasoning)
        if self._thought and not self._said:
            self._reasoning += piece.output
            return []
        ends = len(piece.output) - 1 if piece.finish_reason else -1
        return [self._table(row, last=place == ends) for place, row in enumerate(piece.output)]

    def answer(self, *, closed: bool) -> Answer:
        """The whole answer, up to where it was cut."""
        if closed:  # text that the engine has not sent yet would count as an end token
            text, reason, usage = "".join(row.text or "" for row in self._rows), "closed", Usage()
        else:
            text, reason, usage = "".join(self._said), self._reason, self._usage
        rows = [*self._reasoning, *self._rows]
        thought = "".join(self._thought)
        return Answer(text, reason, rows, self._prompt_ids, meta=self._meta, usage=usage, reasoning=thought)

    def _table(self, row: Row, *, last: bool) -> TokenTable:
        engine, place = self._engine, len(self._rows)
        self._rows.append(row)
        meaning = engine.meaning or Meaning()
        if self._options.constraint is not None:
            meaning = meaning.constrained(engine.abilities.constrained)
        found = columns([row], self._options.alternatives, meaning, self._decoding.processing, engine.title)
        text = row.text or ""
        # Without a tokenizer, the last token is an end token if it is not in the text.
        special = last and bool(text) and self._length == self._stop
        if row.id is None:
            self._texts = None  # what follows cannot be decoded without it
        if self._detokenizer is not None and self._texts is not None and row.id is not None:
            self._ids.append(row.id)
            text, special = next(self._texts), row.id in self._detokenizer.special
        start, self._stop = self._stop, self._stop + (0 if special else len(text))
        return table_of(
            None if row.id is None else np.array([row.id]),
            [text],
            ["special" if special else "text"],
            np.array([-1 if self._prompt_ids is None else len(self._prompt_ids) + place]),
            np.array([[start, self._stop]]),
            found,
            self._detokenizer,
        )
