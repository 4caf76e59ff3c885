"""Many pieces of work at once, their results in order; what is not asked for any more is cancelled."""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from vlmprobe.engines.serving.http import background_loop
from vlmprobe.errors import VlmprobeError

__all__ = ["in_order"]


def in_order(
    work: Iterable[Coroutine[Any, Any, Any] | VlmprobeError], *, ahead: int, keep_errors: bool = False
) -> Iterator[Any]:
    """The results of pieces of work in their order; each is begun as soon as it is near its turn.

    Args:
        work: coroutines for the background loop, or an error in the place of one.
        ahead: how many may be begun, or be done and wait, before the one that is due.
        keep_errors: whether an error stands in the place of its result, or is raised there and ends the rest.
    """
    waiting: deque[Future[Any] | VlmprobeError] = deque()
    pieces = iter(work)
    ended = False
    try:
        while True:
            while not ended and len(waiting) < ahead:
                piece = next(pieces, None)
                if piece is None:
                    ended = True
                else:
                    waiting.append(piece if isinstance(piece, VlmprobeError) else background_loop.start(piece))
            if not waiting:
                return
            outcome = _outcome(waiting[0])
            waiting.popleft()
            if isinstance(outcome, VlmprobeError) and not keep_errors:
                raise outcome
            yield outcome
    finally:
        background_loop.settle([each for each in waiting if isinstance(each, Future)])


def _outcome(piece: Future[Any] | VlmprobeError) -> Any:
    if isinstance(piece, VlmprobeError):
        return piece
    try:
        return piece.result()
    except VlmprobeError as error:
        return error
