"""One call of a model at a time: a thread that opens the models and works through a queue, and jobs to be followed."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from vlmprobe.errors import VlmprobeError

__all__ = ["Busy", "Job", "ModelQueue", "error_document"]

MOST = 64  # jobs that wait at a time
FORGOTTEN = 75.0  # seconds; browsers let the timers of a hidden tab run once a minute
HEARTBEAT = 10.0  # seconds between comments, by which proxies and the server see that a connection lives

Work = Callable[[Sequence[Any], "Job"], None]  # of the probes of all models


class Busy(VlmprobeError):
    """Too many calls wait for the model."""


class Job:
    """A call of the model: what it has told so far, and whether anyone still wants to know.

    The thread of the model tells, the loop of the server reads.
    """

    def __init__(self, work: Work) -> None:
        self.id = secrets.token_urlsafe(12)
        self.work = work
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.state = "waiting"  # then "running", then "done"
        self.seen = time.monotonic()
        self._followers = 0
        self._stopped = threading.Event()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def stopped(self) -> bool:
        """Whether to stop at the next token: it was cancelled, or its reader is gone."""
        return self._stopped.is_set() or (not self._followers and time.monotonic() - self.seen > FORGOTTEN)

    def stop(self) -> None:
        """Have it stopped at the next token; what it has computed by then is told."""
        self._stopped.set()

    def tell(self, name: str, data: dict[str, Any]) -> None:
        """Add an event."""
        self.events.append((name, data))
        self._wake()

    def end(self) -> None:
        """No more events come."""
        self.state = "done"
        self._wake()

    def _wake(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    async def follow(self) -> AsyncIterator[tuple[str, dict[str, Any]] | None]:
        """The events from the first one on, and None from time to time if there are none. Left early, it is stopped."""
        told = 0
        self._followers += 1
        try:
            while True:
                self._changed.clear()
                done = self.state == "done"
                while told < len(self.events):
                    yield self.events[told]
                    told += 1
                if done:
                    return
                try:
                    await asyncio.wait_for(self._changed.wait(), HEARTBEAT)
                except TimeoutError:
                    yield None
        finally:
            self._followers -= 1
            self.seen = time.monotonic()
            if self.state != "done":
                self.stop()


class ModelQueue:
    """Opens models in a thread of its own, and runs jobs there, first come, first served."""

    def __init__(
        self, openings: Sequence[Callable[[], Any]], failed: Callable[[BaseException], None] = lambda error: None
    ) -> None:
        """Each of ``openings`` returns a probe; ``failed`` is called, in that thread, with the error of one."""
        self.probes: Sequence[Any] = ()  # of all models, once all are open
        self.error: BaseException | None = None  # of opening them
        self._openings, self._failed = openings, failed
        self._jobs: dict[str, Job] = {}  # those that someone may still ask for, by their ids
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._change = threading.Condition()
        self._closed = False
        self._opened = threading.Event()
        self._thread = threading.Thread(target=self._work, name="vlmprobe-page", daemon=True)

    def start(self) -> None:
        """Begin to open the models."""
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Stop what runs at its next token, drop what waits, and wait for that up to ``timeout`` seconds."""
        with self._change:
            self._closed = True
            for job in self._jobs.values():
                job.stop()
            self._change.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def opened(self) -> Sequence[Any]:
        """The probes; waits until all are open.

        Raises:
            BaseException: that of opening it.
        """
        self._opened.wait()
        if self.error is not None:
            raise self.error
        return self.probes

    @property
    def state(self) -> str:
        """``"loading"``, ``"ready"`` or ``"failed"``."""
        return "failed" if self.error is not None else "ready" if self.probes else "loading"

    @property
    def length(self) -> int:
        """How many calls run or wait."""
        with self._change:
            return len(self._waiting) + (self._running is not None)

    def submit(self, work: Work) -> Job:
        """Queue a call.

        Raises:
            Busy: if too many wait.
        """
        with self._change:
            self._forget()
            if len(self._waiting) >= MOST:
                raise Busy(f"{MOST} questions wait for the model: ask again when some are answered.")
            job = Job(work)
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._change.notify_all()
        return job

    def job(self, name: str) -> Job | None:
        """The job of an id, which has now been asked for; None if it is unknown or forgotten."""
        with self._change:
            job = self._jobs.get(name)
            if job is not None:
                job.seen = time.monotonic()
            return job

    def ahead(self, job: Job) -> int:
        """How many calls come before a job, that which runs included."""
        with self._change:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    def drop(self, job: Job) -> None:
        """Forget a job whose events have been read, or that nobody wants; it is stopped if it runs."""
        with self._change:
            job.stop()
            self._jobs.pop(job.id, None)
            if job in self._waiting:
                self._waiting.remove(job)

    def _forget(self) -> None:
        for job in [each for each in self._jobs.values() if each.stopped and each is not self._running]:
            self._jobs.pop(job.id)
            if job in self._waiting:
                self._waiting.remove(job)
                job.end()

    def _work(self) -> None:
        try:
            self.probes = tuple(each() for each in self._openings)
        except BaseException as error:  # noqa: BLE001 - raised again where the server was started
            self.error = error
            self._failed(error)
        self._opened.set()
        while (job := self._next()) is not None:
            try:
                if self.error is not None:
                    raise self.error
                job.work(self.probes, job)
            except BaseException as error:
                if not isinstance(error, VlmprobeError):
                    logging.getLogger("vlmprobe.page").exception("a call of the page failed")
                job.tell("error", error_document(error))
            finally:
                with self._change:
                    self._running = None
                job.end()

    def _next(self) -> Job | None:
        with self._change:
            while not self._closed:
                self._forget()
                if self._waiting:
                    self._running = self._waiting.popleft()
                    self._running.state = "running"
                    return self._running
                self._change.wait()
        return None


def error_document(error: BaseException) -> dict[str, Any]:
    """An error as JSON-ready values; what vlmprobe did not raise on purpose is only named."""
    if isinstance(error, VlmprobeError):
        return {"type": type(error).__name__, "message": str(error)}
    first = next(iter(str(error).strip().splitlines()), "")[:500]
    return {"type": type(error).__name__, "message": f"{type(error).__name__}: {first} (unexpected)"}
