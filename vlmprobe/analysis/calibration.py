"""Can a 0.9 be trusted: calibration, discrimination and selective risk of confidences.

Every function takes ``confidence``, numbers [N], and ``correct``, booleans [N], of N answers to questions with known
answers (:mod:`vlmprobe.analysis.confidences` makes both from results). The results hold for questions like these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vlmprobe.analysis.confidences import CalibrationError, checked, confidences, correctness
from vlmprobe.analysis.resampled_metrics import ResampledMetrics
from vlmprobe.display.overview import Overview, Viewed
from vlmprobe.display.view import DASH
from vlmprobe.errors import MissingExtraError
from vlmprobe.results.frame import DataFrame, data_frame

if TYPE_CHECKING:
    from vlmprobe.display.shown import ShownThreshold

__all__ = [
    "Interval",
    "Reliability",
    "Report",
    "RiskCoverage",
    "adaptive_ece",
    "auroc",
    "bin_index",
    "bootstrap",
    "brier",
    "check_resampling",
    "confidences",
    "correctness",
    "ece",
    "log_loss",
    "reliability",
    "report",
    "risk_coverage",
    "uniform_edges",
]

BINS = 15  # as in Guo et al. 2017
LEVEL = 0.95  # of the intervals of a report


@dataclass(frozen=True, eq=False)
class Reliability:
    """Answers grouped into B bins of confidence; bins without answers are left out."""

    edges: np.ndarray  # float64 [B, 2], confidence range of each bin
    confidence: np.ndarray  # float64 [B], mean confidence of the answers in the bin
    accuracy: np.ndarray  # float64 [B], share of right answers in the bin
    count: np.ndarray  # int64 [B]

    @property
    def ece(self) -> float:
        """Expected calibration error: mean gap between confidence and accuracy, weighted by count (Naeini 2015)."""
        return float(np.average(np.abs(self.accuracy - self.confidence), weights=self.count))

    @property
    def mce(self) -> float:
        """Maximum calibration error: the largest gap of any bin."""
        return float(np.abs(self.accuracy - self.confidence).max())

    def plot(self, ax: Any = None) -> Any:
        """Accuracy against confidence, bin by bin, with 95% intervals. Returns the axes.

        :func:`vlmprobe.analysis.plots.reliability_diagram` draws several.
        """
        from vlmprobe.display.plots.calibration import draw_reliability

        return draw_reliability({"": self}, ax)


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Share of wrong answers among those kept, when only the most confident are kept (Geifman & El-Yaniv 2017)."""

    thresholds: np.ndarray  # float64 [M], distinct confidences, descending: answers at or above are kept
    coverage: np.ndarray  # float64 [M], share of the answers kept
    risk: np.ndarray  # float64 [M], share of those that are wrong
    area: float  # AURC: mean risk over all numbers of answers kept, ties in random order
    best_area: float  # AURC of a perfect ranking, every right answer before every wrong one

    @property
    def excess_area(self) -> float:
        """E-AURC: AURC minus that of a perfect ranking (Geifman et al. 2019)."""
        return self.area - self.best_area

    def accuracy_at(self, coverage: float) -> float:
        """Accuracy of the answers kept at the smallest coverage of at least ``coverage``."""
        if not 0 < coverage <= 1:
            raise CalibrationError(f"coverage must be above 0 and at most 1, not {coverage!r}")
        return float(1 - self.risk[np.searchsorted(self.coverage, coverage - 1e-12)])

    def plot(self, ax: Any = None, *, threshold: ShownThreshold | None = None) -> Any:
        """Share of wrong answers among those kept, against the share kept. Returns the axes.

        :func:`vlmprobe.analysis.plots.risk_coverage` draws several.

        Args:
            ax: axes to draw on.
            threshold: of :mod:`vlmprobe.analysis.gating`, to be marked.
        """
        from vlmprobe.display.plots.calibration import draw_risk_coverage

        return draw_risk_coverage({"": self}, threshold, ax)


@dataclass(frozen=True)
class Interval:
    """A value with its resampling interval."""

    value: float
    low: float
    high: float
    level: float  # share of the resamples inside

    def __format__(self, spec: str) -> str:
        """Each number formatted with ``spec``, by default three decimals."""
        spec = spec or ".3f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self)


def _shown(found: Interval) -> tuple[str, str]:
    """Value and interval, a dash for what is unknown."""
    value = DASH if np.isnan(found.value) else f"{found.value:.3f}"
    return value, DASH if np.isnan(found.low) else f"{found.low:.3f} to {found.high:.3f}"


class Report(Viewed, dict[str, Interval]):
    """Metrics with their intervals by name, which Jupyter and ``rich`` show as a table."""

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per metric: ``value``, ``low`` and ``high`` of its interval."""
        rows = [[each.value, each.low, each.high] for each in self.values()]
        return data_frame(rows, columns=["value", "low", "high"], index=list(self))

    def __str__(self) -> str:
        return "\n".join(f"{name.replace('_', ' '):12}  {' '.join(_shown(each))}" for name, each in self.items())

    def _overview(self) -> Overview:
        rows = [[name.replace("_", " "), *_shown(each)] for name, each in self.items()]
        level = next((f"{each.level:.0%} interval" for each in self.values()), "interval")
        return Overview({"metric": "text", "value": "number", level: "number"}, rows)


def reliability(
    confidence: Any, correct: Any, bins: int = BINS, strategy: Literal["uniform", "quantile"] = "uniform"
) -> Reliability:
    """Group answers by confidence.

    Args:
        confidence: [N] from 0 to 1.
        correct: [N].
        bins: maximum number of bins.
        strategy: ``"uniform"`` makes bins of equal width (Guo et al. 2017), edge values in the lower bin;
            ``"quantile"`` bins of equal count, equal confidences in the same bin.
    """
    sure, right = checked(confidence, correct)
    if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
        raise CalibrationError(f"bins must be an integer of at least 1, not {bins!r}")
    if strategy == "uniform":
        edges = uniform_edges(bins)
    elif strategy == "quantile":
        last = (np.arange(1, bins + 1) * len(sure) + bins - 1) // bins - 1  # the last answer of each bin, in order
        edges = np.append(0.0, np.unique(np.sort(sure)[last]))
    else:
        raise CalibrationError(f"strategy must be 'uniform' or 'quantile', not {strategy!r}")
    held, index, count = np.unique(bin_index(sure, edges), return_inverse=True, return_counts=True)
    return Reliability(
        edges=np.stack([edges[held], edges[held + 1]], axis=1),
        confidence=np.bincount(index, weights=sure) / count,
        accuracy=np.bincount(index, weights=right) / count,
        count=count.astype(np.int64),
    )


def uniform_edges(bins: int = BINS) -> np.ndarray:
    """float64 [bins + 1]: edges of bins of equal width from 0 to 1."""
    return np.arange(bins + 1) / bins  # linspace rounds twice: 5/6 would lie above the edge that it is


def bin_index(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """int64 [N]: the bin of each confidence; a value on an edge is in the lower bin."""
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)


def ece(confidence: Any, correct: Any, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal width (Naeini et al. 2015, Guo et al. 2017); 0 is calibrated."""
    return reliability(confidence, correct, bins).ece


def adaptive_ece(confidence: Any, correct: Any, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal count (Nixon et al. 2019): no bin is empty or starved."""
    return reliability(confidence, correct, bins, "quantile").ece


def brier(confidence: Any, correct: Any) -> float:
    """Mean squared distance of confidence from outcome (Brier 1950): calibration and discrimination in one."""
    sure, right = checked(confidence, correct, least=1)
    return float(_sklearn().brier_score_loss(right.astype(int), sure, pos_label=1))


def log_loss(confidence: Any, correct: Any) -> float:
    """Mean negative log-likelihood of the outcomes under the confidences, nats, clipped for certain wrong answers."""
    sure, right = checked(confidence, correct, least=1)
    return float(_sklearn().log_loss(right, sure, labels=[False, True]))


def auroc(confidence: Any, correct: Any) -> float:
    """Probability that a right answer is more confident than a wrong one, ties counting half; 0.5 is chance.

    ``confidence`` may be any score, not only a probability.
    """
    sure, right = checked(confidence, correct, both=True, scale=False)
    ranks = np.unique(sure, return_inverse=True)[1]  # scikit-learn rejects infinite scores
    return float(_sklearn().roc_auc_score(right, ranks))


def risk_coverage(confidence: Any, correct: Any) -> RiskCoverage:
    """Trade-off between coverage and error rate. ``confidence`` may be any score."""
    sure, right = checked(confidence, correct, scale=False)
    if not len(sure):
        raise CalibrationError("0 answers are too few here; at least 1 is needed")
    order = np.argsort(-sure, kind="stable")
    sure, wrong = sure[order], ~right[order]
    last = np.flatnonzero(np.append(sure[1:] != sure[:-1], True))  # of each run of equal confidences
    kept, errors = last + 1, np.cumsum(wrong)[last]
    # Within a run of ties the expected number of errors grows linearly.
    expected = np.interp(np.arange(1, len(sure) + 1), np.append(0, kept), np.append(0, errors))
    counts = np.arange(1, len(sure) + 1)
    perfect = np.maximum(counts - int(right.sum()), 0)
    return RiskCoverage(
        thresholds=sure[last],
        coverage=kept / len(sure),
        risk=errors / kept,
        area=float((expected / counts).mean()),
        best_area=float((perfect / counts).mean()),
    )


def bootstrap(
    metric: Callable[[np.ndarray, np.ndarray], float],
    confidence: Any,
    correct: Any,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A metric with its percentile bootstrap interval (Efron 1979), over resampled answers.

    Resamples on which the metric is undefined (:func:`auroc` without a wrong answer) are redrawn. Note that
    calibration errors over bins are biased upwards for few answers, and more so in resamples.

    Args:
        metric: a function of confidence and correct, such as :func:`auroc`.
        confidence, correct: [N], at least 2.
        resamples: number of resamples.
        level: share of them inside the interval.
        seed: of the resampling.
    """
    sure, right = checked(confidence, correct, least=2, scale=False)
    check_resampling(resamples, level)
    value = metric(sure, right)
    random = np.random.default_rng(seed)
    found: list[float] = []
    for _ in range(10 * resamples):
        index = random.integers(len(sure), size=len(sure))
        try:
            found.append(metric(sure[index], right[index]))
        except CalibrationError:
            continue
        if len(found) == resamples:
            break
    else:
        raise CalibrationError(
            "The metric is not defined on most resamples: too few answers, or hardly any of one class"
        )
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level)


def check_resampling(resamples: int, level: float) -> None:
    """Validates the options of a bootstrap.

    Raises:
        CalibrationError: for a level that is not between 0 and 1, or no resamples.
    """
    if not 0 < level < 1 or resamples < 1:
        raise CalibrationError(f"level must be between 0 and 1 and resamples at least 1, not {level!r}, {resamples!r}")


def report(confidence: Any, correct: Any, *, resamples: int = 1000, seed: int = 0) -> Report:
    """Accuracy, mean confidence, AUROC, ECE, adaptive ECE, Brier score and AURC, each with its bootstrap interval.

    NaN is what cannot be had: the AUROC if all answers are right or all wrong, its interval if hardly any is of one
    class.
    """
    metrics: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "accuracy": lambda sure, right: float(right.mean()),
        "confidence": lambda sure, right: float(sure.mean()),
        "auroc": auroc,
        "ece": ece,
        "adaptive_ece": adaptive_ece,
        "brier": brier,
        "aurc": lambda sure, right: risk_coverage(sure, right).area,
    }
    sure, right = checked(confidence, correct, least=2)
    check_resampling(resamples, LEVEL)
    drawn = ResampledMetrics(sure, right, BINS, uniform_edges()).over(resamples, seed)
    return Report((name, _interval(metric, sure, right, drawn[name], resamples)) for name, metric in metrics.items())


def _interval(metric: Any, sure: np.ndarray, right: np.ndarray, drawn: np.ndarray, resamples: int) -> Interval:
    """The metric and its interval; NaN for what these answers do not define: all right, say, they have no AUROC."""
    try:
        value = metric(sure, right)
    except CalibrationError:
        value = float("nan")
    known = len(drawn) == resamples
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if known else (float("nan"), float("nan"))
    return Interval(value, float(low), float(high), LEVEL)


def _sklearn() -> Any:
    try:
        from sklearn import metrics
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "calibration") from error
    return metrics
