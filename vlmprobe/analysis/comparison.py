"""What a comparison of two probes found: per request and over all, differences in nats, B less A."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlmprobe.analysis.token_alignment import Aligned
from vlmprobe.errors import MissingExtraError, ResultError

__all__ = ["Compared", "Comparison"]


@dataclass(frozen=True, eq=False)
class Compared:
    """One request on two probes: the T tokens of A's answer (of all candidates, where there are any) under both.

    ``how`` says where the numbers of B are from. ``"same"``: B's own answer, which is A's. ``"forced"``: B answered
    otherwise and scored A's tokens. ``"prefix"``: B answered otherwise and cannot score tokens, so only those up to
    the first difference are compared. ``"candidates"``: both scored the candidates.
    """

    id: Any
    question: str
    answers: tuple[str, str]  # of A and B; the best candidates, where there are any
    how: str
    rows: Aligned
    diverged: int | None  # the row at which B's own answer is another; None where it is not, and for candidates
    prompt: np.ndarray  # float64 [P], logprob of B less that of A, for each text token of an equal prompt; nats
    same_prompt: bool | None  # whether both models read the same token ids; None where one does not tell

    @property
    def difference(self) -> np.ndarray:
        """float64 [T], nats: log-probability under B less that under A; NaN where not compared."""
        return self.rows.b.astype(np.float64) - self.rows.a.astype(np.float64)

    @property
    def equal(self) -> bool:
        """Whether both gave the same answer (the same best candidate)."""
        return self.diverged is None and self.answers[0] == self.answers[1]

    @property
    def max_abs(self) -> float:
        """The greatest absolute difference of a token, nats; NaN where none is compared."""
        return _largest(self.difference)


@dataclass(frozen=True, eq=False)
class Comparison:
    """N requests on two probes, A (evaluated) and B (deployed). Differences are B less A, nats."""

    requests: tuple[Compared, ...]  # [N]
    a: Mapping[str, Any] = field(default_factory=dict)  # model, engine, dtype, device, value_kind, versions of A
    b: Mapping[str, Any] = field(default_factory=dict)

    @property
    def differences(self) -> np.ndarray:
        """float64 [M]: of every answer token that both gave a number."""
        return _finite([each.difference for each in self.requests])

    @property
    def prompt_differences(self) -> np.ndarray:
        """float64 [M]: of every text token of equal prompts."""
        return _finite([each.prompt for each in self.requests])

    @property
    def max_abs(self) -> float:
        """The greatest absolute difference of an answer token; NaN where none was compared."""
        return _largest(self.differences)

    @property
    def mean_abs(self) -> float:
        """The mean absolute difference of answer tokens; NaN where none was compared."""
        return float(np.abs(self.differences).mean()) if len(self.differences) else float("nan")

    @property
    def compared(self) -> float:
        """Share of A's tokens that have a number from both."""
        total = sum(int((~np.isnan(each.rows.a)).sum()) for each in self.requests)
        return len(self.differences) / total if total else float("nan")

    @property
    def equal_answers(self) -> float:
        """Share of requests that both answered alike."""
        return float(np.mean([each.equal for each in self.requests]))

    @property
    def top1_agreement(self) -> float:
        """Share of compared positions at which the likeliest token is the same; NaN where a side tells none."""
        known = _finite([each.rows.same_top for each in self.requests])
        return float(known.mean()) if len(known) else float("nan")

    @property
    def same_prompts(self) -> bool | None:
        """Whether both read the same token ids for every prompt that was answered; None where one does not tell."""
        told = [each.same_prompt for each in self.requests if each.how != "candidates"] or [None]
        return False if False in told else None if None in told else True

    @property
    def same_kind(self) -> bool:
        """Whether the numbers of both mean the same (raw, or after temperature or filters)."""
        return self.a.get("value_kind") == self.b.get("value_kind") != "unknown"

    def objections(self, tolerance: float) -> list[str]:
        """Why the two are not the same model within a tolerance, one sentence each; empty where they are.

        Args:
            tolerance: the greatest absolute difference of a token's log-probability that passes, nats.
        """
        if not tolerance >= 0:
            raise ResultError(f"tolerance is a number of nats of at least 0, not {tolerance!r}")
        found = []
        if self.same_prompts is False:
            count = sum(each.same_prompt is False for each in self.requests)
            found.append(
                f"{count} of {len(self.requests)} prompts have other token ids: another template or picture size"
            )
        if not len(self.differences):
            found.append("no token has a number from both")
        for name, values in (("answer", self.differences), ("prompt", self.prompt_differences)):
            beyond = int((np.abs(values) > tolerance).sum())
            if beyond:
                largest = _largest(values)
                found.append(
                    f"{beyond} of {len(values)} {name} tokens differ by more than {tolerance:g}, one by {largest:.3g}"
                )
        return found

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with one row per token of A's answers."""
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("pandas", "pandas") from error
        frames = [
            pandas.DataFrame(
                {
                    "request": place if each.id is None else each.id,
                    "token": each.rows.tokens,
                    "logprob_a": each.rows.a,
                    "logprob_b": each.rows.b,
                    "difference": each.difference,
                    "top_a": each.rows.top_a,
                    "top_b": each.rows.top_b,
                    "how": each.how,
                }
            )
            for place, each in enumerate(self.requests)
        ]
        return pandas.concat(frames, ignore_index=True)

    def plot(self, ax: Any = None, *, tolerance: float | None = None) -> Any:
        """Difference of every token against its log-probability under A. Returns the axes."""
        from vlmprobe.display.plots.comparison import draw_comparison

        return draw_comparison(self, ax, tolerance=tolerance)

    def __repr__(self) -> str:
        return f"Comparison({len(self.requests)} requests, max {self.max_abs:.3g}, mean {self.mean_abs:.3g} nats)"


def _finite(columns: Sequence[np.ndarray]) -> np.ndarray:
    joined = np.concatenate([np.asarray(each, np.float64) for each in columns]) if columns else np.zeros(0)
    return joined[~np.isnan(joined)]


def _largest(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.abs(known).max()) if len(known) else float("nan")
