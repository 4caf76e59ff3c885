"""What a run has found, in figures: counts, accuracy and calibration, the slowest rows, and why rows failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vlmprobe.analysis import calibration
from vlmprobe.analysis.confidences import CalibrationError, normal_text
from vlmprobe.errors import MissingExtraError
from vlmprobe.runs.shards import added

__all__ = ["ANSWERS", "RunOverview", "judged_each", "judged_rows", "metrics_of", "overview"]

ANSWERS = ("answer", "answers", "gold")  # columns that hold the right answers, the first one that is there
FIGURES = {"accuracy": "accuracy", "mean confidence": "confidence", "ECE": "ece", "AURC": "aurc", "AUROC": "auroc"}
SLOWEST = 5
REASONS = 10
COLUMNS = ["row", "key", "id", "status", "question", "text", "best", "candidates", "candidate_logprobs"]
COLUMNS += ["confidence", "n_tokens", "seconds", "error_type", "error"]


@dataclass(frozen=True)
class RunOverview:
    """A run in figures."""

    rows: int
    answers: int  # distinct questions that were answered
    failed: int  # rows
    tokens: int  # of all distinct answers
    seconds: float  # of the model, for all distinct answers
    judged: int = 0  # rows with a right answer to compare with
    figures: dict[str, float] = field(default_factory=dict)  # accuracy, mean confidence, calibration
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # 95% bootstrap intervals of these
    slowest: list[dict[str, Any]] = field(default_factory=list)  # row, id, question, seconds
    reasons: list[dict[str, Any]] = field(default_factory=list)  # error, count, and the first row that has it
    spent: dict[str, float] = field(default_factory=dict)  # where the time of all processes went, as far as written
    machines: list[dict[str, Any]] = field(default_factory=list)  # the distinct processes that wrote shards

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON-ready values."""
        return asdict(self)


def overview(run: Any, table: Any = None, *, judged: bool = True) -> RunOverview:
    """The figures of a run, an ``OpenedRun``; of its rows in ``table``, if they have other labels there.

    Those of right answers take some seconds for 100,000 rows, and are left out if not ``judged``.
    """
    table = run.overview_table() if table is None else table
    known = [name for name in (*COLUMNS, *ANSWERS) if name in table.column_names]
    columns = {name: table[name].to_pylist() for name in known}
    ok = [status == "ok" for status in columns["status"]]
    first = {key: place for place, key in reversed(list(enumerate(columns["key"])))}
    distinct = [place for place in first.values() if ok[place]]
    seconds = [columns["seconds"][place] or 0.0 for place in distinct]
    slow = sorted(zip(seconds, distinct, strict=True), reverse=True)[:SLOWEST]
    sure, right = judged_rows(columns)
    figures, intervals = _figures(sure, right) if judged else ({}, {})
    return RunOverview(
        rows=len(ok),
        answers=len(distinct),
        failed=len(ok) - sum(ok),
        tokens=sum(columns["n_tokens"][place] or 0 for place in distinct),
        seconds=float(sum(seconds)),
        judged=len(right),
        figures=figures,
        intervals=intervals,
        slowest=[_shown(columns, place) | {"seconds": taken} for taken, place in slow],
        reasons=_reasons(columns, [place for place, fine in enumerate(ok) if not fine]),
        spent=_spent(run),
        machines=_machines(run),
    )


def judged_rows(columns: dict[str, list[Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Confidence float64 [N] and correctness bool [N] of the rows that were answered and have a right answer.

    Args:
        columns: of a run's table, as lists.
    """
    known = [(sure, right) for _, sure, right in judged_each(columns) if sure is not None and right is not None]
    return np.array([sure for sure, _ in known], dtype=np.float64), np.array([right for _, right in known], dtype=bool)


def judged_each(columns: dict[str, list[Any]]) -> Iterator[tuple[str | None, float | None, bool | None]]:
    """Of each row its answer, confidence, and whether it is right; None for what is not known.

    The answer of a row with candidates is the best of them, and its confidence its probability among them; else the
    text, and the probability of exactly it.

    Args:
        columns: of a run's table, as lists.
    """
    gold = next((columns[name] for name in ANSWERS if name in columns), None)
    for place in range(len(columns["status"])):
        answer, confidence = _answer(columns, place)
        expected = None if gold is None else gold[place]
        right = None
        if expected is not None and answer is not None:
            several = expected if isinstance(expected, list) else [expected]
            right = normal_text(answer) in {normal_text(str(each)) for each in several}
        yield answer, confidence, right


def _answer(columns: dict[str, list[Any]], place: int) -> tuple[str | None, float | None]:
    if columns["status"][place] != "ok":
        return None, None
    logprobs = columns["candidate_logprobs"][place]
    if logprobs is None:
        return columns["text"][place], columns["confidence"][place]
    known = [each for each in logprobs if each is not None and each > -math.inf]  # NaN is not
    if columns["best"][place] is None or not known:
        return None, None
    top = max(known)
    return columns["best"][place], 1 / sum(math.exp(each - top) for each in known)


def metrics_of(sure: np.ndarray, right: np.ndarray) -> dict[str, calibration.Interval]:
    """The metrics of a calibration report; of a single answer, or without scikit-learn, those that need neither, with
    NaN as their intervals; of no answer none.

    Args:
        sure: confidence, float64 [N].
        right: bool [N].
    """
    if not len(right):
        return {}
    try:
        return dict(calibration.report(sure, right))
    except (CalibrationError, MissingExtraError):
        values = {
            "accuracy": float(right.mean()),
            "confidence": float(sure.mean()),
            "ece": calibration.ece(sure, right),
            "aurc": calibration.risk_coverage(sure, right).area,
        }
        return {
            name: calibration.Interval(value, math.nan, math.nan, calibration.LEVEL) for name, value in values.items()
        }


def _figures(sure: np.ndarray, right: np.ndarray) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Each figure that these answers define, and its interval."""
    known = metrics_of(sure, right)
    named = {name: known[key] for name, key in FIGURES.items() if key in known}
    return (
        {name: each.value for name, each in named.items() if not np.isnan(each.value)},
        {name: (each.low, each.high) for name, each in named.items() if not np.isnan(each.low)},
    )


def _reasons(columns: dict[str, list[Any]], places: list[int]) -> list[dict[str, Any]]:
    counts: Counter[tuple[str, str]] = Counter()
    example: dict[tuple[str, str], int] = {}
    for place in places:
        first = next(iter((columns["error"][place] or "").splitlines()), "")
        reason = (columns["error_type"][place], first if len(places) <= REASONS else "")
        counts[reason] += 1
        example.setdefault(reason, place)
    return [
        {"error": kind, "message": columns["error"][example[kind, text]], "count": count}
        | _shown(columns, example[kind, text])
        for (kind, text), count in counts.most_common(REASONS)
    ]


def _shown(columns: dict[str, list[Any]], place: int) -> dict[str, Any]:
    return {name: columns[name][place] for name in ("row", "id", "question")}


def _spent(run: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for each in run.shards():
        found = added(found, each.get("seconds", {}))
    return found


def _machines(run: Any) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for each in run.shards():
        told = {name: each.get(name) for name in ("host", "device", "versions") if each.get(name) is not None}
        found.setdefault(str(told), told)
    return list(found.values())
