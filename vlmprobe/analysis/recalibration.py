"""Recalibration of confidences: maps fitted on held-out answers, applied to new ones.

Do not evaluate a map on the answers it was fitted on. All maps are monotone, so AUROC and risk-coverage stay the same
(isotonic regression adds ties); only the values change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmprobe.analysis.confidences import CalibrationError, checked
from vlmprobe.errors import MissingExtraError
from vlmprobe.results.result import Scores

__all__ = [
    "FEWEST",
    "CandidateTemperature",
    "Isotonic",
    "Platt",
    "Temperature",
    "fit_candidate_temperature",
    "fit_isotonic",
    "fit_platt",
    "fit_temperature",
]

FEWEST = 20  # minimum number of answers to fit on
NEAREST = 1e-12  # confidences are clipped this far from 0 and 1, where the logit is infinite


class Map:
    """Base class of the maps of a single confidence."""

    def __call__(self, confidence: Any) -> np.ndarray:
        """Recalibrated confidences, float64 [N]."""
        raise NotImplementedError

    def plot(self, ax: Any = None) -> Any:
        """Recalibrated against original confidence; the diagonal is no change. Returns the axes."""
        from vlmprobe.display.plots.calibration import draw_map

        before = np.linspace(0, 1, 401)
        return draw_map(before, self(before), type(self).__name__, ax)


@dataclass(frozen=True)
class Temperature(Map):
    """``sigmoid(logit(p) / temperature)``: above 1 the confidences were too extreme, below 1 not extreme enough."""

    temperature: float

    def __call__(self, confidence: Any) -> np.ndarray:
        """Recalibrated confidences, float64 [N]."""
        return _sigmoid(_logit(confidence) / self.temperature)


@dataclass(frozen=True)
class Platt(Map):
    """``sigmoid(slope * logit(p) + intercept)``: as :class:`Temperature`, plus a shift."""

    slope: float
    intercept: float

    def __call__(self, confidence: Any) -> np.ndarray:
        """Recalibrated confidences, float64 [N]."""
        return _sigmoid(self.slope * _logit(confidence) + self.intercept)


@dataclass(frozen=True, eq=False)
class Isotonic(Map):
    """A monotone piecewise linear map."""

    before: np.ndarray  # float64 [P], confidences in ascending order
    after: np.ndarray  # float64 [P], what each is mapped to; linear in between, constant beyond

    def __call__(self, confidence: Any) -> np.ndarray:
        """Recalibrated confidences, float64 [N]."""
        return np.interp(np.asarray(confidence, dtype=np.float64), self.before, self.after)


@dataclass(frozen=True)
class CandidateTemperature:
    """Softmax of candidates' log-probabilities over a temperature: temperature scaling as Guo et al. 2017 define it."""

    temperature: float

    def __call__(self, scores: Scores | Any) -> np.ndarray:
        """Probabilities float64 [C] of the candidates of one question, from its scores or log-probabilities [C]."""
        logprobs = np.asarray(scores.logprobs if isinstance(scores, Scores) else scores, dtype=np.float64)
        scaled = logprobs / self.temperature
        weights = np.exp(scaled - np.nanmax(scaled))
        return weights / np.nansum(weights)


def fit_temperature(confidence: Any, correct: Any) -> Temperature:
    """The maximum-likelihood temperature (temperature scaling of a single probability).

    A confidence of 0.5 stays 0.5 at every temperature. If right answers are often below it, as with probabilities of
    long sentences, use :func:`fit_platt` or :func:`fit_isotonic`.

    Args:
        confidence: [N] from 0 to 1, of held-out answers.
        correct: [N], with right and wrong ones.

    Raises:
        CalibrationError: for fewer than :data:`FEWEST` answers, one class only, or uninformative confidences.
    """
    sure, right = checked(confidence, correct, least=FEWEST, both=True)
    logit, sign = _logit(sure), np.where(right, 1.0, -1.0)
    return Temperature(_best_temperature(lambda scale: np.logaddexp(0.0, -sign * logit * scale).mean()))


def fit_platt(confidence: Any, correct: Any) -> Platt:
    """Logistic regression of the outcome on the logit of the confidence (Platt 1999), without regularisation.

    Args and errors as in :func:`fit_temperature`.
    """
    sure, right = checked(confidence, correct, least=FEWEST, both=True)
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "calibration") from error
    model = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(_logit(sure)[:, None], right)
    slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        raise CalibrationError("Among these answers the less confident are right more often: no map of this kind helps")
    return Platt(slope, intercept)


def fit_isotonic(confidence: Any, correct: Any) -> Isotonic:
    """Isotonic regression of the outcome on the confidence (Zadrozny & Elkan 2002), with scikit-learn.

    It assumes only monotonicity, and so needs more answers: a few hundred. Args and errors as in
    :func:`fit_temperature`.
    """
    sure, right = checked(confidence, correct, least=FEWEST, both=True)
    try:
        from sklearn.isotonic import IsotonicRegression
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "calibration") from error
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(sure, right.astype(np.float64))
    return Isotonic(np.asarray(model.X_thresholds_, np.float64), np.asarray(model.y_thresholds_, np.float64))


def fit_candidate_temperature(scores: Sequence[Scores | Any], right: Sequence[int]) -> CandidateTemperature:
    """The maximum-likelihood temperature of a softmax over candidates.

    Args:
        scores: [N] of :meth:`Probe.score`, or log-probabilities [C] each, nats; C may differ.
        right: [N] index of the right candidate of each.

    Raises:
        CalibrationError: for fewer than :data:`FEWEST` questions, or an index without a candidate.
    """
    if len(scores) != len(right):
        raise CalibrationError(f"{len(scores)} scores and {len(right)} right candidates do not match")
    if len(scores) < FEWEST:
        raise CalibrationError(f"{len(scores)} questions are too few here; at least {FEWEST} are needed")
    leads = []  # log-probabilities minus that of the right candidate
    for place, (each, index) in enumerate(zip(scores, right, strict=True)):
        logprobs = np.asarray(each.logprobs if isinstance(each, Scores) else each, dtype=np.float64)
        if not 0 <= index < len(logprobs) or np.isnan(logprobs[index]):
            raise CalibrationError(f"question {place} has no log-probability for its right candidate {index}")
        leads.append((logprobs - logprobs[index])[~np.isnan(logprobs)])
    return CandidateTemperature(
        _best_temperature(lambda scale: float(np.mean([np.logaddexp.reduce(lead * scale) for lead in leads])))
    )


def _best_temperature(loss: Any) -> float:
    """1 / the scale that minimises a loss that is convex in the scale."""
    try:
        from scipy.optimize import minimize_scalar
    except ImportError as error:
        raise MissingExtraError("SciPy", "calibration") from error

    least, most = np.log(1e-4), np.log(1e4)
    found = minimize_scalar(lambda log: loss(np.exp(log)), bounds=(least, most), method="bounded")
    if min(loss(np.exp(least)), loss(np.exp(most))) <= found.fun + 1e-12:
        raise CalibrationError(
            "No temperature fits: these confidences separate right from wrong completely, or not at all. "
            "Use more answers, or a map without a temperature (fit_isotonic)."
        )
    return float(np.exp(-found.x))


def _logit(confidence: Any) -> np.ndarray:
    sure = np.clip(np.asarray(confidence, dtype=np.float64), NEAREST, 1 - NEAREST)
    return np.log(sure) - np.log1p(-sure)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))
