"""A progress bar for long work, in a terminal only, on standard error so that output can be piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["tracking"]


@contextmanager
def tracking(
    progress: bool | None, total: int | None, what: str = "requests", unit: str = "tokens"
) -> Iterator[Callable[[int], None]]:
    """A progress bar with throughput; ``progress=None`` shows it in a terminal only.

    Args:
        progress: whether to show it.
        total: number of requests, if known.
        what: what they are called.
        unit: of the throughput.

    Yields:
        A function to call after each request with the number of units that it produced.
    """
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield lambda _: None
        return
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
