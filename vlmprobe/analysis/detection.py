"""Out-of-distribution scores: unusual or manipulated input, detected from logits alone.

Each score is larger for more unusual input. They see only how the model reacts: wrong input that leaves the model
confident (an attack that raises its confidence, an image of the wrong thing that it names fluently) looks usual, and a
hard but ordinary question looks unusual. Whether a score works must be measured on examples of the input that it should
detect: :func:`evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vlmprobe.analysis import calibration
from vlmprobe.analysis.confidences import CalibrationError
from vlmprobe.analysis.failures import without_failures
from vlmprobe.analysis.uncertainty import Source, table_of
from vlmprobe.errors import ResultError
from vlmprobe.results.failure import Failure

__all__ = [
    "SCORES",
    "Detection",
    "Over",
    "detection",
    "energy",
    "entropy",
    "evaluate",
    "margin",
    "max_probability",
    "scores",
]

Over = Literal["mean", "max", "first"]


def max_probability(source: Source, over: Over = "mean") -> float:
    """1 minus the top token's probability (maximum softmax probability: Hendrycks & Gimpel 2017).

    Args:
        source: table or result; for the next word after a prompt, ``over="first"``.
        over: how token scores are pooled: mean, the most unusual one, or the first token's.
    """
    table = table_of(source)
    if not table.top_logprobs.shape[1]:
        raise ResultError("the table holds no alternatives: pass alternatives=1 or more")
    return _pooled(1 - np.exp(table.top_logprobs[:, 0].astype(np.float64)), over)


def energy(source: Source, over: Over = "mean", *, temperature: float = 1.0) -> float:
    """Free energy ``-T logsumexp(logits / T)`` (Liu et al. 2020).

    Unlike the others it depends on the size of the logits, not only on their differences. Softmax leaves a constant per
    row undetermined, so compare it within one model only.

    Args:
        source, over: as in :func:`max_probability`.
        temperature: T; other than 1 needs full rows.
    """
    table = table_of(source)
    if not temperature > 0:
        raise ResultError(f"temperature must be above 0, not {temperature!r}")
    if temperature == 1:
        return _pooled(-table.logsumexp.astype(np.float64), over)
    if table.logits is None:
        raise ResultError('The energy at a temperature other than 1 needs full rows: pass keep="logits".')
    values = np.full(len(table), np.nan)
    for row in np.flatnonzero(table.scored):
        values[row] = -temperature * np.logaddexp.reduce(table.logits[row].astype(np.float64) / temperature)
    return _pooled(values, over)


def entropy(source: Source, over: Over = "mean") -> float:
    """Entropy of the distribution, nats. Args as in :func:`max_probability`."""
    return _pooled(table_of(source).entropy.astype(np.float64), over)


def margin(source: Source, over: Over = "mean") -> float:
    """Negative lead of the likeliest token over the second, nats. Args as in :func:`max_probability`."""
    return _pooled(-table_of(source).margin.astype(np.float64), over)


SCORES: dict[str, Callable[..., float]] = {
    "max_probability": max_probability,
    "energy": energy,
    "entropy": entropy,
    "margin": margin,
}


def scores(source: Source, over: Over = "mean") -> dict[str, float]:
    """Every score of :data:`SCORES` by its name."""
    return {name: score(source, over) for name, score in SCORES.items()}


@dataclass(frozen=True)
class Detection:
    """How well one score separates unusual input from usual input."""

    auroc: calibration.Interval  # probability that an unusual input scores higher than a usual one; 0.5 is chance
    fpr95: float  # share of usual input that is flagged when at least 95% of the unusual is (lower is better)


def detection(usual: Any, unusual: Any, *, resamples: int = 1000, seed: int = 0) -> Detection:
    """Evaluate a score from its values on usual [N] and on unusual [M] input."""
    values = [np.asarray(each, dtype=np.float64) for each in (usual, unusual)]
    if not all(each.ndim == 1 and len(each) for each in values):
        raise CalibrationError("usual and unusual must be lists of numbers, neither of them empty")
    joined = np.concatenate(values)
    labels = np.repeat([False, True], [len(each) for each in values])
    area = calibration.bootstrap(calibration.auroc, joined, labels, resamples=resamples, seed=seed)
    flagged = -(-95 * len(values[1]) // 100)  # the fewest that are at least 95%, in whole numbers: no rounding
    threshold = np.sort(values[1])[-flagged]  # the highest that so many of the unusual reach
    return Detection(area, float((values[0] >= threshold).mean()))


def evaluate(
    usual: Iterable[Source | Failure],
    unusual: Iterable[Source | Failure],
    over: Over = "mean",
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Detection]:
    """Evaluate every score on results for usual input and for unusual input.

    Args:
        usual, unusual: results or tables; the same questions in both, so that only the input differs.
            Failures are left out.
        over: as in :func:`max_probability`.
        resamples, seed: of the bootstrap interval.
    """
    rows = [[scores(each, over) for each in without_failures(group)] for group in (usual, unusual)]
    return {
        name: detection(*[[row[name] for row in group] for group in rows], resamples=resamples, seed=seed)
        for name in SCORES
    }


def _pooled(values: np.ndarray, over: Over) -> float:
    held = values[~np.isnan(values)]
    if over not in ("mean", "max", "first"):
        raise ResultError(f"over must be 'mean', 'max' or 'first', not {over!r}")
    if not len(held):
        return float("nan")
    return float({"mean": held.mean(), "max": held.max(), "first": held[0]}[over])
