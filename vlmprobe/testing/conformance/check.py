"""A check: an id, one line that says what it verifies, a function, and the usual causes of its failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Check", "check"]


@dataclass(frozen=True)
class Check:
    """One conformance check.

    ``run`` raises :class:`~vlmprobe.testing.report.CheckFailure` if the check fails and
    :class:`~vlmprobe.testing.report.SkipCheck` if it does not apply; it returns notes on what was not checked.
    """

    id: str
    statement: str
    run: Callable[[Any], Sequence[str] | None]  # of what is under test: a Subject, or of an engine a Served
    causes: tuple[str, ...]
    rerun: bool = True  # whether a numerical difference may be rounding, to be decided in float64


def check(
    id: str, statement: str, *causes: str, rerun: bool = True
) -> Callable[[Callable[[Any], Sequence[str] | None]], Check]:
    """Turn a function into a :class:`Check`."""

    def made(run: Callable[[Any], Sequence[str] | None]) -> Check:
        return Check(id, statement, run, causes, rerun)

    return made
