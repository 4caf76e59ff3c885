"""One thread that writes finished records to shards, in time: results come in bursts, and a kill must cost little."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from vlmprobe.errors import RunError
from vlmprobe.runs.records import size_of

__all__ = ["Clock", "Writer"]

SECONDS = 30.0  # that a finished record waits at most
ROWS = 1000
BYTES = 32 * 2**20


class Clock(Protocol):
    """Time as the writer sees it."""

    def now(self) -> float:
        """Seconds since some moment."""

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        """Wait until ``changed`` is notified, or that long."""


class SystemClock:
    """The clock of the system, one that is never set back."""

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def wait(self, changed: threading.Condition, seconds: float | None) -> None:
        """As the condition waits."""
        changed.wait(seconds)


class Writer:
    """Takes records and gives them to ``write``, 30 s after the first one waits, at 1,000 of them, or at 32 MB."""

    def __init__(self, write: Callable[[list[Mapping[str, Any]]], None], clock: Clock | None = None) -> None:
        self._write = write
        self._clock = SystemClock() if clock is None else clock
        self._changed = threading.Condition()
        self._waiting: list[Mapping[str, Any]] = []
        self._bytes = 0
        self._since = 0.0  # when the first of them came
        self._closed = False
        self._error: BaseException | None = None
        self.seconds = 0.0  # spent in writing
        self._thread = threading.Thread(target=self._run, name="vlmprobe writer", daemon=True)
        self._thread.start()

    def add(self, record: Mapping[str, Any]) -> None:
        """Hand over a record. Waits where writing is slower than what comes.

        Raises:
            RunError: if records could not be written; nothing more is then taken.
        """
        size = size_of(record)
        with self._changed:
            while self._bytes > 2 * BYTES and self._error is None:
                self._changed.wait()
            self._require_whole()
            if not self._waiting:
                self._since = self._clock.now()
            self._waiting.append(record)
            self._bytes += size
            self._changed.notify_all()

    def close(self) -> None:
        """Write what waits, and end.

        Raises:
            RunError: if records could not be written.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._require_whole()

    def _run(self) -> None:
        while True:
            with self._changed:
                while (seconds := self._left()) is None or seconds > 0:
                    if self._closed and not self._waiting:
                        return
                    self._clock.wait(self._changed, seconds)
                records, self._waiting = self._waiting, []
                self._bytes = 0
                self._changed.notify_all()
            started = time.perf_counter()
            try:
                self._write(records)
            except BaseException as error:  # noqa: BLE001 - raised where the next record is handed over
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            self.seconds += time.perf_counter() - started

    def _left(self) -> float | None:
        """Seconds until what waits is written; None while nothing does."""
        if not self._waiting:
            return None
        if self._closed or len(self._waiting) >= ROWS or self._bytes >= BYTES:
            return 0
        return self._since + SECONDS - self._clock.now()

    def _require_whole(self) -> None:
        if self._error is not None:
            raise RunError(f"results cannot be written: {self._error}") from self._error
