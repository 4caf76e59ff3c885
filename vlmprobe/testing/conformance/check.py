"""What a check is: an id, one line that says what it verifies, a function, and the usual causes of its failure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlmprobe.testing.subject import Subject

__all__ = ["Check", "check"]


@dataclass(frozen=True)
class Check:
    """One conformance check.

    ``run`` raises :class:`~vlmprobe.testing.report.CheckFailure` where the check does not hold and
    :class:`~vlmprobe.testing.report.SkipCheck` where it does not apply; it returns notes on what it left out.
    """

    id: str
    statement: str
    run: Callable[[Subject], Sequence[str] | None]
    causes: tuple[str, ...]
    rerun: bool = True  # whether a numerical difference may be rounding, so that float64 decides


def check(
    id: str, statement: str, *causes: str, rerun: bool = True
) -> Callable[[Callable[[Subject], Sequence[str] | None]], Check]:
    """Turn a function into a :class:`Check`."""

    def made(run: Callable[[Subject], Sequence[str] | None]) -> Check:
        return Check(id, statement, run, causes, rerun)

    return made
