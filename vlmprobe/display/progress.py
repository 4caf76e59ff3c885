"""A progress bar for long work: in a terminal, on standard error so that output can be piped, and in Jupyter."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

__all__ = ["in_jupyter", "tracking"]

OFTEN = 0.2  # seconds between two updates of a bar in Jupyter


@contextmanager
def tracking(
    progress: bool | None, total: int | None, what: str = "requests", unit: str = "tokens"
) -> Iterator[Callable[[int], None]]:
    """A progress bar with throughput; ``progress=None`` shows it in a terminal and in Jupyter only.

    Args:
        progress: whether to show it.
        total: number of requests, if known.
        what: what they are called.
        unit: of the throughput.

    Yields:
        A function to call after each request with the number of units that it produced.
    """
    jupyter = progress is not False and in_jupyter()
    if progress is False or (progress is None and not jupyter and not sys.stderr.isatty()):
        yield lambda _: None
    elif jupyter:
        with _Bar(total, what, unit) as bar:
            yield bar.done
    else:
        with _terminal(total, what, unit) as done:
            yield done


def in_jupyter() -> bool:
    """Whether this is the kernel of a notebook, which displays HTML."""
    if "IPython" not in sys.modules:
        return False
    from rich.console import Console

    return Console().is_jupyter


@contextmanager
def _terminal(total: int | None, what: str, unit: str) -> Iterator[Callable[[int], None]]:
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
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, rate="")
        started, made = time.perf_counter(), 0

        def done(tokens: int) -> None:
            nonlocal made
            made += tokens
            bar.update(task, advance=1, rate=f"{made / (time.perf_counter() - started):.1f} {unit}/s")

        yield done


class _Bar:
    """A bar in the output of a cell, gone when the work is done. The bars of rich and tqdm would need ipywidgets."""

    def __init__(self, total: int | None, what: str, unit: str) -> None:
        self.total, self.what, self.unit = total, what, unit
        self.count = self.made = 0
        self.started = self.shown = time.perf_counter()
        self.handle: Any = None

    def __enter__(self) -> _Bar:
        from IPython.display import display

        self.handle = display(self._html(), display_id=True)
        return self

    def __exit__(self, *_: object) -> None:
        from IPython.display import HTML

        self.handle.update(HTML(""))

    def done(self, units: int) -> None:
        self.count, self.made = self.count + 1, self.made + units
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
        text = escape(f"{self.count:,}{of} {self.what}{rate}{left}")
        return HTML(f'<progress{share} style="width: 16em; vertical-align: middle"></progress> {text}')
