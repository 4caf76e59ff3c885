"""Streams tokens as they are generated: the model runs in a thread of its own, and rows are read from a queue."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from vlmprobe.errors import ResultError
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable

__all__ = ["Stream"]

Listener = Callable[["TokenTable | None"], bool]


class Stream(Iterator[TokenTable]):
    """The streamed answer to one request: one :class:`TokenTable` of a single row per token.

    Iterating to the end gives every row of ``result.output`` except what is known only at the end: ``hidden``,
    and the ``offsets`` of parts of a character that a later token completes. ``stream.result`` is then the
    :class:`Result` that :meth:`Probe.generate` returns; it is also what ``yield from stream`` returns.

    :meth:`close`, leaving a ``with`` block, or dropping the stream stops generation at the next token. The result
    then holds the tokens that were read, and its ``finish_reason`` is ``"closed"``.

    The model generates from the first row that is requested until its answer ends, without waiting for the reader.
    Other calls on the same model wait for it. A stream is read by one thread.
    """

    def __init__(self, answer: Callable[[Listener], Result], given: int = 0) -> None:
        """``answer`` is run in another thread; it calls its argument with every row, and stops if that returns True.

        While it waits for a row it may call it with None, to check whether to stop. ``given`` is the number of tokens
        that the answer was made to begin with: rows of its result, but not of the stream.
        """
        self._answer: Callable[[Listener], Result] | None = answer
        self._items: queue.SimpleQueue[TokenTable | Result | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._read = given
        self._result: Result | None = None
        self._ended = False
        self.told: Callable[[Result], Result] = lambda result: result  # what the probe adds to the result
        weakref.finalize(self, self._stop.set)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> TokenTable:
        if self._ended:
            raise StopIteration(self._result)
        if self._thread is None:
            self._start()
        try:
            item = self._items.get()
        except BaseException:  # an interrupt while waiting
            self.close()
            raise
        if isinstance(item, TokenTable):
            self._read += 1
            return item
        self._end(item)
        if isinstance(item, BaseException):
            raise item
        raise StopIteration(self._result)

    @property
    def result(self) -> Result:
        """The result; waits for the rest of the answer.

        Raises:
            ResultError: if the stream was closed before it began, or failed.
        """
        for _ in self:
            pass
        if self._result is None:
            raise ResultError("This stream has no result: it was closed before it began, or failed.")
        return self._result

    def close(self) -> None:
        """Stop generation and wait until it has ended; a no-op if it has."""
        self._stop.set()
        if self._thread is None:
            self._ended, self._answer = True, None
        while not self._ended:
            item = self._items.get()
            if not isinstance(item, TokenTable):
                self._end(item)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _start(self) -> None:
        # The thread must not hold the stream itself, or dropping the stream would not end it.
        assert self._answer is not None
        self._thread = threading.Thread(
            target=_work, args=(self._answer, self._items, self._stop), name="vlmprobe-stream", daemon=True
        )
        self._answer = None
        self._thread.start()

    def _end(self, item: Result | BaseException) -> None:
        self._ended = True
        if self._thread is not None:
            self._thread.join()
        if isinstance(item, Result):
            self._result = self.told(_cut(item, self._read))


def _work(
    answer: Callable[[Listener], Result],
    items: queue.SimpleQueue[TokenTable | Result | BaseException],
    stop: threading.Event,
) -> None:
    def listen(row: TokenTable | None) -> bool:
        if row is not None:
            items.put(row)
        return stop.is_set()

    try:
        items.put(answer(listen))
    except BaseException as error:  # noqa: BLE001 - raised again in the thread that reads
        items.put(error)


def _cut(result: Result, count: int) -> Result:
    """The result of the first ``count`` tokens, where the stream was closed there."""
    if count == len(result.output):
        return result
    cut = result.output[:count]
    text = "".join(token for token, kind in zip(cut.tokens, cut.kinds, strict=True) if kind != "special")
    return replace(result, output=cut, text=text, meta={**result.meta, "finish_reason": "closed"})
