"""A progress bar for long work: in a terminal, on standard error so that output can be piped, and in Jupyter."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, Protocol

__all__ = ["Rows", "in_jupyter", "tracking", "tracking_rows"]

OFTEN = 0.2  # seconds between two updates of a bar in Jupyter


class Done(Protocol):
    """Called after each request."""

    def __call__(self, units: int, *, passed: int = 1, note: str = "") -> None:
        """Count ``units``, and ``passed`` requests; ``note`` is shown beside them."""


def _unseen(units: int, *, passed: int = 1, note: str = "") -> None:
    """Without a bar."""


@contextmanager
def tracking(progress: bool | None, total: int | None, what: str = "requests", unit: str = "tokens") -> Iterator[Done]:
    """A progress bar with throughput; ``progress=None`` shows it in a terminal and in Jupyter only.

    Args:
        progress: whether to show it.
        total: number of requests, if known.
        what: what they are called.
        unit: of the throughput.

    Yields:
        A function to call after each request with the number of units that it produced; see :class:`Done`.
    """
    jupyter = progress is not False and in_jupyter()
    if progress is False or (progress is None and not jupyter and not sys.stderr.isatty()):
        yield _unseen
    elif jupyter:
        with _Bar(total, what, unit) as bar:
            yield bar.done
    else:
        with _terminal(total, what, unit) as done:
            yield done


class Rows:
    """Counts the rows of a run, and shows them: done, a second, and how many failed."""

    def __init__(self, total: int | None, show: Callable[[int, int, int], None]) -> None:
        self.total = total
        self._show = show  # rows that passed since the last call, how many of them were asked, failed ones of all
        self._done = self._skipped = self._failed = 0

    @property
    def left(self) -> int | None:
        """Rows that are still to come, if it is known how many there are."""
        return None if self.total is None else max(0, self.total - self._done)

    def skipped(self, count: int = 1) -> None:
        """Rows need not be asked; they are shown with the next one that is."""
        self._done += count
        self._skipped += count

    def answered(self) -> None:
        """A row was answered."""
        self.several(1)

    def failed(self) -> None:
        """A row failed."""
        self.several(1, 1)

    def several(self, asked: int, failed: int = 0) -> None:
        """So many rows were asked, some of which failed."""
        self._done += asked
        self._failed += failed
        self._show(self._skipped + asked, asked, self._failed)
        self._skipped = 0


@contextmanager
def tracking_rows(progress: bool | None, total: int | None) -> Iterator[Rows]:
    """One bar for a run over a data set; ``progress`` and ``total`` as in :func:`tracking`."""
    with tracking(progress, total, "rows", "rows") as done:

        def show(passed: int, asked: int, failed: int) -> None:
            done(asked, passed=passed, note=f"{failed:,} failed" if failed else "")

        yield Rows(total, show)


def in_jupyter() -> bool:
    """Whether this is the kernel of a notebook, which displays HTML."""
    if "IPython" not in sys.modules:
        return False
    from rich.console import Console

    return Console().is_jupyter


@contextmanager
def _terminal(total: int | None, what: str, unit: str) -> Iterator[Done]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, rate="", note="")
        started, made = time.perf_counter(), 0

        def done(units: int, *, passed: int = 1, note: str = "") -> None:
            nonlocal made
            made += units
            rate = f"{made / (time.perf_counter() - started):.1f} {unit}/s"
            bar.update(task, advance=passed, rate=rate, note=note)

        yield done


class _Bar:
    """A bar in the output of a cell, gone when the work is done. The bars of rich and tqdm would need ipywidgets."""

    def __init__(self, total: int | None, what: str, unit: str) -> None:
        self.total, self.what, self.unit = total, what, unit
        self.count = self.made = 0
        self.note = ""
        self.started = self.shown = time.perf_counter()
        self.handle: Any = None

    def __enter__(self) -> _Bar:
        from IPython.display import display

        self.handle = display(self._html(), display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        from IPython.display import HTML

        self.handle.update(HTML(""))

    def done(self, units: int, *, passed: int = 1, note: str = "") -> None:
        self.count, self.made, self.note = self.count + passed, self.made + units, note
        now = time.perf_counter()
        if now - self.shown >= OFTEN:
            self.shown = now
            self.handle.update(self._html())

    def _html(self) -> Any:
        from IPython.display import HTML

        of = "" if self.total is None else f" of {self.total:,}"
        share = "" if self.total is None else f' max="{max(self.total, 1)}" value="{self.count}"'
        seconds = self.shown - self.started
        rate = f", {self.made / seconds:.1f} {self.unit}/s" if self.made and seconds else ""
        left = ""
        if self.total is not None and self.count and seconds:
            left = f", {seconds * (self.total - self.count) / self.count:.0f} s left"
        text = escape(f"{self.count:,}{of} {self.what}{rate}{left}{f', {self.note}' if self.note else ''}")
        return HTML(f'<progress{share} style="width: 16em; vertical-align: middle"></progress> {text}')
