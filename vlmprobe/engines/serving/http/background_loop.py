"""One event loop in a background thread, shared by all clients of the process; concurrent work, results in order.

So a probe of a server is called like any other, from a script, from several threads, and from Jupyter, whose own loop
is already running.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Any, TypeVar

__all__ = ["in_order", "reading", "run", "settle", "start"]

T = TypeVar("T")
PATIENCE_S = 5.0  # to wait for connections to close after an interrupt
LOCK = threading.Lock()


class _Background:
    """The loop and the process that it belongs to: threads do not survive a fork."""

    loop: asyncio.AbstractEventLoop | None = None
    reader: ThreadPoolExecutor
    process = 0


def start(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Schedule a coroutine on the loop. Cancelling the future cancels it."""
    return asyncio.run_coroutine_threadsafe(work, _loop())


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the loop and wait for it; interrupting the waiting thread cancels it first."""
    future = start(work)
    try:
        return future.result()
    except BaseException:
        settle([future])
        raise


async def reading(work: Callable[..., T], /, *given: Any, large: bool, **named: Any) -> T:
    """Run a computation for the loop, after pending requests are sent.

    Large work runs in a thread, without blocking the loop. Small work does not: Python switches threads every 5 ms, and
    waiting for that at each step of each request would cost more than the work.
    """
    if large:
        return await asyncio.get_running_loop().run_in_executor(_Background.reader, partial(work, *given, **named))
    await asyncio.sleep(0)
    return work(*given, **named)


def settle(futures: list[Future[Any]]) -> None:
    """Cancel unfinished futures, and wait until their connections are closed."""
    for future in futures:
        future.cancel()
    if any(not future.done() or future.cancelled() for future in futures):
        # A cancelled future is done at once; its task closes its connection in the loop's next iterations.
        try:
            asyncio.run_coroutine_threadsafe(_rounds(), _loop()).result(PATIENCE_S)
        except (FutureTimeoutError, CancelledError):
            return


async def _rounds() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def _loop() -> asyncio.AbstractEventLoop:
    with LOCK:
        if _Background.loop is None or _Background.process != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="vlmprobe-serving", daemon=True).start()
            _Background.loop, _Background.process = loop, os.getpid()
            _Background.reader = ThreadPoolExecutor(1, "vlmprobe-reading")
        return _Background.loop


def in_order(
    work: Iterable[Coroutine[Any, Any, Any] | Exception], *, ahead: int, keep_errors: bool = False
) -> Iterator[Any]:
    """The results of coroutines in their order; at most ``ahead`` are in progress or waiting to be read.

    Args:
        work: coroutines for the background loop, or an error in the place of one.
        ahead: the maximum number that run, or are done and wait for an earlier one.
        keep_errors: whether to yield an error in place of its result, or raise it there and cancel the rest.
    """
    waiting: deque[Future[Any] | Exception] = deque()
    pieces = iter(work)
    ended = False
    try:
        while True:
            while not ended and len(waiting) < ahead:
                piece = next(pieces, None)
                if piece is None:
                    ended = True
                else:
                    waiting.append(piece if isinstance(piece, Exception) else start(piece))
            if not waiting:
                return
            outcome = _outcome(waiting[0])
            waiting.popleft()
            if isinstance(outcome, Exception) and not keep_errors:
                raise outcome
            yield outcome
    finally:
        settle([each for each in waiting if isinstance(each, Future)])


def _outcome(piece: Future[Any] | Exception) -> Any:
    if isinstance(piece, Exception):
        return piece
    try:
        return piece.result()
    except CancelledError:  # nobody's result: the loop ends
        raise
    except Exception as error:  # noqa: BLE001 - it keeps its place
        return error
