"""A progress bar for long work, in a terminal only, on the error stream so that output can be piped."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

__all__ = ["tracked"]

Item = TypeVar("Item")


def tracked(items: Iterable[Item], progress: bool | None, what: str = "requests") -> Iterator[Item]:
    """The items, with a bar of how many are done; ``progress=None`` shows it where a person watches."""
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield from items
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
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    total = len(items) if isinstance(items, Sized) else None
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        for item in items:
            yield item
            bar.advance(task)
