"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

__all__ = ["Spent", "duration", "told"]

T = TypeVar("T")
OF_MODEL = {"encode": "preprocess", "generate": "model", "read": "numbers"}  # what engines measure -> what it is called
ORDER = (
    "start",
    "load",
    "preprocess",
    "vision",
    "vision and prefill",
    "prefill",
    "decode",
    "model",
    "numbers",
    "score",
)
SHOWN = 0.05  # seconds, below which a part is not worth a word


class Spent:
    """Seconds by what they were spent on.

    ``load`` is reading rows and images, ``preprocess`` the processor, ``vision``, ``prefill`` and ``decode`` the
    model's own phases, where they are known, else ``model``; ``numbers`` is making columns, ``score`` candidates.
    ``write`` runs beside all of it.

    Args:
        concurrent: whether many requests are in flight, whose own times overlap: waiting for them is the model's.
    """

    def __init__(self, concurrent: bool) -> None:
        self.concurrent = concurrent
        self._parts: dict[str, float] = {}
        self._waited = self._read = 0.0  # for answers, and for rows while waiting for answers
        self._reported: dict[str, float] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count time of a part."""
        self._parts[name] = self._parts.get(name, 0.0) + seconds

    def waiting(self, answers: Iterator[T]) -> Iterator[T]:
        """The same answers; the time that they take counts."""
        for seconds, answer in _timed(answers):
            self._waited += seconds
            yield answer

    def reading(self, rows: Iterator[T]) -> Iterator[T]:
        """The same rows, which are read while answers are waited for."""
        for seconds, row in _timed(rows):
            self._read += seconds
            yield row

    def count(self, result: Any, scores: Any) -> None:
        """What an answer and its scores cost, as the engine measured it."""
        if self.concurrent:
            return
        batch = result.meta.get("batch_size") or 1
        timings = {name.removesuffix("_s"): seconds for name, seconds in result.meta.get("timings", {}).items()}
        phases: Mapping[str, float] = result.meta.get("phases") or {}
        if phases:
            timings.pop("generate", None)
        for name, seconds in timings.items():
            self.add(OF_MODEL.get(name, name), seconds / batch)
        for name, seconds in phases.items():
            self.add(name.removesuffix("_s").replace("_", " "), seconds / batch)
        if scores is not None:
            self.add("score", sum(scores.meta.get("timings", {}).values()))

    def so_far(self) -> dict[str, float]:
        """Seconds of each part up to now."""
        found = dict(self._parts)
        own = sum(found.get(name, 0.0) for name in ORDER if name != "start")
        if self.concurrent:
            found |= {"load": self._read, "model": max(0.0, self._waited - self._read)}
        else:
            found["load"] = max(0.0, self._waited - own)
        known = [name for name in ORDER if name in found]
        return {name: found[name] for name in [*known, *(name for name in found if name not in known)]}

    def since(self) -> dict[str, float]:
        """What was spent since this was called last."""
        now = self.so_far()
        before, self._reported = self._reported, now
        return {name: max(0.0, seconds - before.get(name, 0.0)) for name, seconds in now.items()}


def told(seconds: Mapping[str, float]) -> str:
    """Parts in words, without those that took next to nothing."""
    return ", ".join(f"{name} {value:,.1f} s" for name, value in seconds.items() if value >= SHOWN)


def duration(seconds: float) -> str:
    """About how long, in words."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _timed(items: Iterator[T]) -> Iterator[tuple[float, T]]:
    while True:
        started = time.perf_counter()
        try:
            item = next(items)
        except StopIteration:
            return
        yield time.perf_counter() - started, item
