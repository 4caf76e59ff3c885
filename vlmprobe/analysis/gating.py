"""Which answers to accept and which to show a person: thresholds with guarantees, and the gate that applies them.

A hand-picked threshold (0.7 is common) guarantees nothing. The three here are computed from N answers to questions with
known answers, and their guarantee holds for every N, every model and every confidence score, under one assumption: new
questions come from the same distribution (exchangeability). It is void when the images, the wording, the prompt or the
model change, and it is about all accepted answers together, not about any subgroup of questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlmprobe.analysis.confidences import CalibrationError, ListedAnswer, checked, confidences
from vlmprobe.errors import MissingExtraError
from vlmprobe.results.failure import Failure
from vlmprobe.results.layouts import load_json, save_json
from vlmprobe.results.result import Result

__all__ = [
    "GRID",
    "Decision",
    "Threshold",
    "accept_for_accuracy",
    "accept_for_errors",
    "checked_share",
    "gate",
    "reject_for_losses",
]

FORMAT = 1  # version of the saved layout of a threshold
TYPES: dict[str, Any] = {
    **dict.fromkeys(("answers", "kept", "wrong"), int),
    "value": int | float,
    "promise": str,
    "by": str | None,
}
# Fixed before any data is seen, as the guarantee requires, and finer towards 1, where confidences of good models lie.
GRID: tuple[float, ...] = tuple(float(each) for each in 1 - np.logspace(0, -4, 17))


@dataclass(frozen=True)
class Threshold:
    """A confidence threshold, and its guarantee for the answers on one side of it."""

    value: float  # compared with an answer's confidence, which must be computed as for the threshold
    promise: str  # the guarantee, with its probability
    answers: int  # N, the answers that it was computed from
    kept: int  # how many of them reach it
    wrong: int  # how many of those are wrong
    by: str | None = None  # the confidence measure that it is about, as in confidences(by=); None if that was not said

    @property
    def coverage(self) -> float:
        """Share of the answers it was computed from that reach it."""
        return self.kept / self.answers

    def __str__(self) -> str:
        return f"{self.value:.4g}: {self.promise} From {self.answers} answers; {self.coverage:.1%} of them reach it."

    def save(self, path: str | Path) -> Path:
        """Write to a JSON file, with the confidence measure that it is about.

        Raises:
            CalibrationError: if that is a function, which no file can hold.
        """
        if callable(self.by):
            raise CalibrationError("by= of this threshold is a function: save one whose measure has a name")
        return save_json(path, FORMAT, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Threshold:
        """Load what :meth:`save` wrote.

        Raises:
            ResultError: for a file that is missing, or was not written by :meth:`save`, or by a later vlmprobe.
        """

        def made(known: dict[str, Any]) -> Threshold:
            threshold = cls(**known)
            for name, kind in TYPES.items():
                if not isinstance(getattr(threshold, name), kind):
                    raise TypeError(f"{name} is {getattr(threshold, name)!r}")
            return threshold

        return load_json(path, FORMAT, "is not a threshold", made)


@dataclass(frozen=True)
class Decision:
    """What to do with one answer."""

    action: Literal["accept", "ask", "reject"]
    confidence: float
    why: str  # one sentence for whoever reads the log

    def __bool__(self) -> bool:
        return self.action == "accept"


def accept_for_accuracy(
    confidence: Any,
    correct: Any,
    accuracy: float = 0.95,
    *,
    delta: float = 0.05,
    grid: Sequence[float] = GRID,
    by: str | None = None,
) -> Threshold:
    """The lowest threshold above which the accuracy is guaranteed.

    The guarantee: with probability at least ``1 - delta`` over the N answers that it is computed from, at least
    ``accuracy`` of all future answers that reach the threshold are right.

    Learn then Test (Angelopoulos, Bates, Candès, Jordan & Lei 2021): each threshold of a grid fixed beforehand is a
    hypothesis, "the accuracy above it is too low". Among the n answers that reach it, the wrong ones are binomial, so
    the exact binomial tail is its p-value. The hypotheses are tested from the highest threshold down by the fallback
    procedure (Wiens 2003), which splits delta evenly and passes on the level of a rejection; it assumes nothing about
    how accuracy depends on confidence.

    Args:
        confidence: [N] any score.
        correct: [N].
        accuracy: to guarantee.
        delta: allowed probability that the guarantee fails.
        grid: thresholds to choose from, fixed without looking at these answers. For scores that are not
            probabilities pass a suitable one.
        by: the confidence measure, as in :func:`~vlmprobe.analysis.confidences.confidences`; :func:`gate` then uses it.

    Raises:
        CalibrationError: if no threshold of the grid meets the guarantee; it names the closest.
    """
    sure, right = checked(confidence, correct, scale=False)
    error = 1 - checked_share("accuracy", accuracy)
    checked_share("delta", delta)
    thresholds = np.unique(np.asarray(grid, dtype=np.float64))[::-1]
    if not len(thresholds) or not np.isfinite(thresholds).all():
        raise CalibrationError("grid must hold at least one finite threshold")
    kept = len(sure) - np.searchsorted(np.sort(sure), thresholds)  # how many reach each
    wrong = int((~right).sum()) - np.searchsorted(np.sort(sure[~right]), thresholds)
    p_values = _binomial_tail(wrong, kept, error)
    share = delta / len(thresholds)
    best, level = None, 0.0
    for place, p_value in enumerate(p_values):
        level += share
        if p_value <= level:
            best = place
        else:
            level = 0.0
    if best is None:
        nearest = int(np.argmin(p_values))
        need = int(np.ceil(np.log(share) / np.log(accuracy)))
        raise CalibrationError(
            f"No threshold can promise {accuracy:.3g} accuracy with these {len(sure)} answers: closest is "
            f"{thresholds[nearest]:.4g} with {wrong[nearest]} of {kept[nearest]} wrong. With no wrong one, {need} "
            "confident answers are enough: collect more, promise less, or pass a shorter grid."
        )
    promise = (
        f"With probability at least {1 - delta:.3g}, at least {accuracy:.3g} of future answers that reach it are "
        "right, as long as questions come from the same distribution."
    )
    return Threshold(float(thresholds[best]), promise, len(sure), int(kept[best]), int(wrong[best]), by)


def accept_for_errors(confidence: Any, correct: Any, errors: float = 0.05, *, by: str | None = None) -> Threshold:
    """The lowest threshold that bounds the share of wrong answers accepted, counted among all answers.

    The guarantee: a future answer is accepted and wrong with probability at most ``errors``, on average over the N
    answers that it is computed from (conformal risk control: Angelopoulos, Bates, Fisch, Lei & Schuster 2022). It says
    nothing about the accuracy among the accepted: if few are accepted, most of those may be wrong.

    Args:
        confidence: [N] any score.
        correct: [N].
        errors: share of all answers that may be accepted and wrong.
        by: as in :func:`accept_for_accuracy`.

    Raises:
        CalibrationError: for fewer than ``1 / errors - 1`` answers, with which nothing can be guaranteed; for too many
            wrong answers of infinite confidence.
    """
    sure, right = checked(confidence, correct, scale=False)
    allowed = _allowed(len(sure), checked_share("errors", errors))
    bad = np.sort(sure[~right])[::-1]
    # As many wrong answers as allowed may lie strictly above the threshold, so the next one is the first rejected.
    value = -np.inf if allowed >= len(bad) else float(np.nextafter(bad[allowed], np.inf))
    if np.isposinf(value):
        raise CalibrationError(f"{allowed + 1} wrong answers have an infinite confidence, which no threshold rejects")
    kept = sure >= value
    promise = (
        f"On average at most {errors:.3g} of future answers reach it and are wrong (counted among all answers), "
        "as long as questions come from the same distribution."
    )
    return Threshold(value, promise, len(sure), int(kept.sum()), int((kept & ~right).sum()), by)


def reject_for_losses(confidence: Any, correct: Any, losses: float = 0.05, *, by: str | None = None) -> Threshold:
    """The highest threshold below which answers can be rejected unseen while losing few right ones.

    The guarantee: a future answer is below it and right with probability at most ``losses``, on average over the N
    answers that it is computed from (conformal risk control, as :func:`accept_for_errors`).

    Args and errors as there.
    """
    sure, right = checked(confidence, correct, scale=False)
    allowed = _allowed(len(sure), checked_share("losses", losses))
    good = np.sort(sure[right])
    value = np.inf if allowed >= len(good) else float(good[allowed])
    kept = sure >= value
    promise = (
        f"On average at most {losses:.3g} of future answers are below it and right (counted among all answers), "
        "as long as questions come from the same distribution."
    )
    return Threshold(value, promise, len(sure), int(kept.sum()), int((kept & ~right).sum()), by)


def gate(
    result: Result | ListedAnswer | Failure | float,
    threshold: Threshold | float,
    *,
    reject: Threshold | float | None = None,
    by: Any = None,
) -> Decision:
    """Accept an answer, ask a person, or reject it.

    Args:
        result: an answer, scored candidates, or a confidence. For a failed request a person is asked.
        threshold: answers at or above it are accepted.
        reject: answers below it are rejected; between the two a person is asked. None rejects nothing.
        by: confidence measure, as in :func:`~vlmprobe.analysis.confidences.confidences`; None is that of the
            thresholds, or ``"sequence"`` if both are numbers. A threshold with a guarantee must say which measure it
            is about, here or when it is made. Recalibrated confidences are passed as numbers, or measured by a
            function.

    Raises:
        CalibrationError: if the thresholds are about another measure, or do not say about which; for a number outside
            0 to 1 with a measure that is a probability; if ``reject`` lies above ``threshold``; if the answer has no
            confidence.
        TypeError: for anything but one answer, such as a list of them, or thresholds that are no numbers.
    """
    accepts, rejects = _value(threshold), -np.inf if reject is None else _value(reject)
    if rejects > accepts:
        raise CalibrationError(f"answers below {rejects:.4g} are rejected, but accepted from {accepts:.4g} on")
    if isinstance(result, Failure):
        return Decision("ask", float("nan"), f"The request failed, there is no answer: {result.error}")
    plain = isinstance(result, (int, float, np.integer, np.floating)) and not isinstance(result, bool)
    if not plain and not isinstance(result, (Result, ListedAnswer)):
        several = ": gate each of them, [gate(each, threshold) for each in results]"
        raise TypeError(
            "gate takes one Result, Scores, Failure or number, "
            f"not {type(result).__name__}{several if isinstance(result, Iterable) else ''}"
        )
    by = _measure(result, threshold, reject, by)
    sure = float(result) if plain else float(confidences([result], "sequence" if by is None else by)[0])  # type: ignore[arg-type, list-item]
    if np.isnan(sure):
        raise CalibrationError("The answer has no confidence: none of its tokens has a log-probability.")
    if sure >= accepts:
        return Decision("accept", sure, f"Confidence {sure:.4g} reaches {accepts:.4g}. {_promise(threshold)}")
    if sure < rejects:
        return Decision("reject", sure, f"Confidence {sure:.4g} is below {rejects:.4g}. {_promise(reject)}")
    return Decision("ask", sure, f"Confidence {sure:.4g} is below {accepts:.4g}: nothing is guaranteed, ask a person.")


def checked_share(name: str, value: float) -> float:
    """A number between 0 and 1.

    Raises:
        CalibrationError: for anything else; it names the argument.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0 < value < 1:
        raise CalibrationError(f"{name} must be a share between 0 and 1, not {value!r}")
    return float(value)


def _allowed(count: int, share: float) -> int:
    """How many of N answers may have a loss so that ``(losses + 1) / (N + 1)`` stays within the share."""
    allowed = int(np.floor(share * (count + 1) + 1e-9)) - 1
    if allowed < 0:
        need = int(np.ceil(1 / share - 1e-9)) - 1
        raise CalibrationError(f"{count} answers are too few to promise {share:.3g}; at least {need} are needed")
    return allowed


def _binomial_tail(wrong: np.ndarray, kept: np.ndarray, error: float) -> np.ndarray:
    """Binomial probability of at most ``wrong`` of ``kept`` at error rate ``error``; 1 where none is kept."""
    try:
        from scipy.stats import binom
    except ImportError as missing:
        raise MissingExtraError("SciPy", "calibration") from missing
    tail = partial(binom.cdf, p=error)
    return np.where(kept > 0, tail(wrong, np.maximum(kept, 1)), 1.0)


def _value(threshold: Threshold | float) -> float:
    if isinstance(threshold, Threshold):
        return threshold.value
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float, np.integer, np.floating)):
        raise TypeError(f"a threshold is a Threshold or a number, not {type(threshold).__name__}")
    if np.isnan(threshold):
        raise CalibrationError("a threshold cannot be NaN")
    return float(threshold)


def _measure(result: Any, threshold: Threshold | float, reject: Threshold | float | None, by: Any) -> Any:
    """The confidence measure that the thresholds are about; None if nobody says, and nothing is promised of it.

    Scored candidates have one confidence, and a number is one already, so for both a threshold need not say.
    """
    for each in (threshold, reject):
        about = each.by if isinstance(each, Threshold) else None
        if about is not None and by not in (None, about):
            raise CalibrationError(f"The threshold is about by={about!r}, not by={by!r}.")
        by = about if by is None else by
    if not isinstance(result, (Result, ListedAnswer)):
        return by
    if by is None and isinstance(result, Result) and any(isinstance(each, Threshold) for each in (threshold, reject)):
        raise CalibrationError(
            "The threshold does not say which confidence it is about, so its guarantee may not hold for this one: pass "
            'the by= of the confidences that it was computed from, such as by="sequence", here or to accept_for_..., '
            "or pass the answer's confidence itself, recalibrated as they were."
        )
    for each in (threshold, reject):
        if isinstance(each, (int, float, np.integer, np.floating)) and not callable(by) and not 0 <= each <= 1:
            raise CalibrationError(f"The confidence is a probability, so a threshold is from 0 to 1, not {each!r}.")
    return by


def _promise(threshold: Threshold | float | None) -> str:
    if isinstance(threshold, Threshold):
        return threshold.promise
    return "This threshold was set by hand and guarantees nothing."
