"""Images that threads read and decode before they are needed; all else about a conversation is its caller's thread."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from PIL.Image import Image

from vlmprobe.inputs.images import is_encoded, load_encoded

__all__ = ["Decoder", "Job", "is_decoded_by_threads", "load_now", "using"]

THREADS = min(4, os.cpu_count() or 1)

_JOBS: ContextVar[Sequence[Job]] = ContextVar("images that are being decoded", default=())


class Job:
    """One image to be read."""

    def __init__(self, source: Any) -> None:
        self.source = source
        self.done = threading.Event()
        self.size = 0  # bytes held for it
        self._outcome: tuple[Image, bytes | None] | BaseException | None = None

    def run(self) -> None:
        """Read it; an error is kept."""
        try:
            image, encoded = load_encoded(self.source)
            self._outcome = image, encoded
            self.size = 3 * image.width * image.height + len(encoded or b"")
        except BaseException as error:  # noqa: BLE001 - raised where the image is asked for
            self._outcome = error
        self.done.set()

    def result(self) -> tuple[Image, bytes | None]:
        """The image and its file, as of ``load_encoded``, or its error. Asked for once: the job lets go of them."""
        outcome, self._outcome = self._outcome, None
        assert outcome is not None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Decoder:
    """Runs jobs in a few threads, in order, as long as what waits to be taken holds less than ``limit`` bytes.

    A thread ends when it finds nothing to do, so that none is left behind by whoever forgets to close it.
    """

    def __init__(self, limit: int, threads: int = THREADS) -> None:
        self.limit = limit
        self.threads = threads
        self.held = 0  # bytes of jobs that are done and not taken
        self._lock = threading.Lock()
        self._waiting: deque[Job] = deque()
        self._running: set[Job] = set()
        self._ready: set[Job] = set()
        self._active = 0

    def add(self, sources: Sequence[Any]) -> list[Job]:
        """Jobs for images; see :func:`is_decoded_by_threads`."""
        jobs = [Job(each) for each in sources]
        with self._lock:
            self._waiting.extend(jobs)
            self._start()
        return jobs

    def finish(self, job: Job) -> None:
        """Wait until a job is done; one that no thread has begun runs here."""
        with self._lock:
            mine = job in self._waiting
            if mine:
                self._waiting.remove(job)
        if mine:
            job.run()
        job.done.wait()

    def drop(self, jobs: Sequence[Job]) -> None:
        """Forget jobs, whether they were taken or not."""
        with self._lock:
            for job in jobs:
                if job in self._waiting:
                    self._waiting.remove(job)
                if job in self._ready:
                    self.held -= job.size
                self._ready.discard(job)
                self._running.discard(job)
            self._start()

    def close(self) -> None:
        """Forget all jobs; a thread ends with what it is reading."""
        with self._lock:
            self._waiting.clear()
            self._running.clear()
            self._ready.clear()
            self.held = 0

    def _start(self) -> None:
        """Start the threads that have something to do; the lock is held."""
        while self._active < min(self.threads, len(self._waiting)) and self.held < self.limit:
            self._active += 1
            threading.Thread(target=self._work, name="vlmprobe images", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or self.held >= self.limit:
                    self._active -= 1
                    return
                job = self._waiting.popleft()
                self._running.add(job)
            job.run()
            with self._lock:
                if job in self._running:  # not dropped meanwhile
                    self._running.remove(job)
                    self._ready.add(job)
                    self.held += job.size


def is_decoded_by_threads(source: Any) -> bool:
    """Whether an image is a path, an address or the bytes of a file.

    An open file has a position that its owner may move; images and arrays are there already, and may be edited.
    """
    if is_encoded(source):
        source = source.get("path") if source.get("bytes") is None else source["bytes"]
    return isinstance(source, (str, os.PathLike, bytes))


@contextmanager
def using(decoder: Decoder, jobs: Sequence[Job]) -> Iterator[None]:
    """Let :func:`load_now` take these jobs' images; they are dropped afterwards."""
    token = _JOBS.set([*jobs])
    try:
        for job in jobs:
            decoder.finish(job)
        yield
    finally:
        _JOBS.reset(token)
        decoder.drop(jobs)


def load_now(source: Any) -> tuple[Image, bytes | None]:
    """An image as :func:`~vlmprobe.inputs.images.load_encoded` gives it, from a thread if one has read it."""
    jobs = _JOBS.get()
    for job in jobs:
        if job.source is source:
            _JOBS.set([each for each in jobs if each is not job])
            return job.result()
    return load_encoded(source)
