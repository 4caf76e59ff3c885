"""Results of the conformance suite: a :class:`CheckResult` for each check, together a :class:`Report`."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any, Literal

from vlmprobe._version import __version__

__all__ = ["FORMAT", "CheckFailure", "CheckResult", "ConformanceError", "Report", "SkipCheck", "Status", "versions"]

FORMAT = 1  # version of the record; records of vlmprobe 0.1 have none, and the same layout

Status = Literal["passed", "failed", "skipped", "expected failure", "unexpected pass"]
STYLES: dict[Status, str] = {
    "passed": "green",
    "failed": "bold red",
    "skipped": "dim",
    "expected failure": "yellow",
    "unexpected pass": "bold yellow",
}


class CheckFailure(AssertionError):
    """A check failed.

    Args:
        expected: the expected value, and how it was computed.
        came: the value from the probe.
        where: token, position, candidate, thread.
        difference: the size of a numerical difference; such a failure is rerun in float64. None for any other.
        hints: what the numbers themselves suggest about the cause.
    """

    def __init__(
        self,
        expected: str,
        came: str,
        where: str = "",
        *,
        difference: float | None = None,
        hints: Sequence[str] = (),
    ) -> None:
        super().__init__(expected, came, where)
        self.expected = expected
        self.came = came
        self.where = where
        self.difference = difference
        self.hints = tuple(hints)

    def __str__(self) -> str:
        lines = [f"expected: {self.expected}", f"got: {self.came}"]
        if self.where:
            lines.append(f"where: {self.where}")
        return "\n".join([*lines, *(f"hint: {hint}" for hint in self.hints)])


class SkipCheck(Exception):
    """A check does not apply; the reason is its message."""


class ConformanceError(AssertionError):
    """At least one check failed without being expected to."""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check."""

    id: str  # "C1" to "C24", "R1" to "R4", "E1" to "E12"
    statement: str  # what the check verifies, in one line
    status: Status
    seconds: float
    reason: str = ""  # skipped: why; expected failure and unexpected pass: the reason that was given
    failure: str = ""  # failed: expected and actual value, where, and what a rerun in float64 showed
    causes: tuple[str, ...] = ()  # failed: the usual causes
    notes: tuple[str, ...] = ()  # parts that do not apply, noise that was ruled out, how a part was checked

    def __str__(self) -> str:
        lines = [f"{self.id} {self.status}: {self.statement}"]
        if self.reason:
            lines.append(f"reason: {self.reason}")
        lines += self.failure.splitlines()
        lines += [f"usual cause: {cause}" for cause in self.causes]
        return "\n  ".join([*lines, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Report:
    """The outcome of a suite on one probe."""

    results: tuple[CheckResult, ...]
    meta: dict[str, Any] = field(default_factory=dict)  # model, adapter, dtype, device, versions, date, tolerances

    @property
    def passed(self) -> bool:
        """Whether no check failed, expected failures aside."""
        return not self.failures

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The checks that failed without being expected to."""
        return tuple(result for result in self.results if result.status == "failed")

    @property
    def seconds(self) -> float:
        """Time of all checks together."""
        return sum(result.seconds for result in self.results)

    def __getitem__(self, check: str) -> CheckResult:
        """The result of one check, such as ``report["C5"]``."""
        for result in self.results:
            if result.id == check:
                return result
        raise KeyError(check)

    def raise_for_failures(self) -> Report:
        """Return the report itself if it passed.

        Raises:
            ConformanceError: with the text of every failure.
        """
        if self.failures:
            raise ConformanceError("\n" + "\n\n".join(map(str, self.failures)))
        return self

    def counts(self) -> dict[str, int]:
        """Number of checks per status, in the order of ``Status``."""
        listed = [result.status for result in self.results]
        return {status: listed.count(status) for status in STYLES if status in listed}

    def summary(self) -> str:
        """One line: ``14 passed, 1 skipped in 2.1 s``."""
        return f"{', '.join(f'{count} {status}' for status, count in self.counts().items())} in {self.seconds:.1f} s"

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON-ready record."""
        return {
            "format": FORMAT,
            **self.meta,
            "passed": self.passed,
            "seconds": round(self.seconds, 3),
            "checks": {result.id: {**asdict(result), "seconds": round(result.seconds, 4)} for result in self.results},
        }

    def __str__(self) -> str:
        return "\n".join([*map(str, self.results), self.summary()])

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        grid.add_column("", no_wrap=True)
        grid.add_column("check", ratio=1)
        grid.add_column("result", no_wrap=True)
        grid.add_column("time", justify="right", no_wrap=True)
        for result in self.results:
            told = Text(result.statement)
            for line in (result.reason, *result.notes):
                if line:
                    told.append(f"\n{line}", style="dim")
            status = Text(result.status, style=STYLES[result.status])
            grid.add_row(result.id, told, status, f"{result.seconds:.2f} s")
        yield grid
        for result in self.failures:
            yield Text(f"\n{result.id}: {result.statement}", style="bold")
            yield Text("\n".join(f"  {line}" for line in result.failure.splitlines()))
            yield Text("\n".join(f"  usual cause: {cause}" for cause in result.causes), style="dim")
        yield Text(f"\n{self.summary()}", style="bold green" if self.passed else "bold red")


def versions() -> dict[str, str]:
    """Of this package, and of what it stands on."""
    return {
        "vlmprobe": __version__,
        "transformers": version("transformers"),
        "torch": version("torch"),
        "python": platform.python_version(),
    }
