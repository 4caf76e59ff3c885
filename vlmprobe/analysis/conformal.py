"""Prediction sets: instead of one candidate, as many as it takes to hold the right one as often as asked.

Split conformal prediction (Vovk, Gammerman & Shafer 2005; Papadopoulos et al. 2002), computed from N answers to
questions with known answers. The guarantee holds for every N, every model and any list of candidates, under the
assumption of :mod:`vlmprobe.analysis.gating`: new questions come from the same distribution (exchangeability). It is
marginal, over all questions together: of one kind of question, or of the sets with a single candidate, fewer may hold
the right one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vlmprobe.analysis.confidences import (
    CalibrationError,
    Gold,
    ListedAnswer,
    gold_answer,
    listed_gold,
    normal_text,
    probabilities_of,
)
from vlmprobe.analysis.failures import results_in, without_failures
from vlmprobe.analysis.gating import checked_share
from vlmprobe.display.view import counted
from vlmprobe.errors import MissingExtraError, near
from vlmprobe.results.failure import Failure
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.layouts import load_json, save_json

__all__ = ["METHODS", "Method", "PredictionSet", "PredictionSets", "prediction_sets"]

FORMAT = 1  # version of the saved layout
Method = Literal["lac", "aps"]
METHODS: tuple[Method, ...] = ("lac", "aps")


class PredictionSet(tuple[str, ...]):
    """The candidates that may be the right answer, likeliest first; it prints as ``red or blue``."""

    __slots__ = ()

    def __str__(self) -> str:
        if len(self) < 2:
            return self[0] if self else "none of the candidates"
        return f"{', '.join(self[:-1])} or {self[-1]}"

    def __repr__(self) -> str:
        return f"PredictionSet({', '.join(map(repr, self))})"


@dataclass(frozen=True, eq=False, repr=False)
class PredictionSets:
    """Which candidates of an answer to keep so that the right one is among them with probability ``1 - alpha``."""

    scores: np.ndarray  # float64 [N], ascending: nonconformity of the right candidate of each known answer
    alpha: float  # how often a set may miss the right answer
    method: Method = "lac"
    randomised: bool = False  # whether a set may drop its last candidate by chance; APS only
    seed: int = 0  # of that chance

    def __post_init__(self) -> None:
        """Validates the options.

        Raises:
            CalibrationError: for an alpha that is no share, or for which N is too small; an unknown method.
        """
        checked_share("alpha", self.alpha)
        if self.method not in METHODS:
            raise CalibrationError(f"method must be 'lac' or 'aps', not {self.method!r}")
        if self.randomised and self.method != "aps":
            raise CalibrationError("randomised=True is of method='aps'; LAC has no chance in it")
        if self._missable < 1:
            need = int(np.ceil(1 / self.alpha - 1e-9)) - 1
            few = f"{counted(self.answers, 'answer')} {'is' if self.answers == 1 else 'are'} too few"
            raise CalibrationError(
                f"{few} for alpha {self.alpha:.3g}: every set would hold all candidates; at least {need} are needed"
            )

    @property
    def answers(self) -> int:
        """N, the answers that it was computed from."""
        return len(self.scores)

    @cached_property
    def threshold(self) -> float:
        """The greatest nonconformity that a candidate of a set may have: the ceil((N + 1)(1 - alpha))-th smallest of
        ``scores``. With LAC one minus the probability of the candidate, with APS that of all likelier ones."""
        return float(self.scores[max(self.answers + 1 - self._missable, 1) - 1])

    @property
    def promise(self) -> str:
        """The guarantee."""
        return (
            f"A set holds the right answer with probability at least {1 - self.alpha:.3g}, on average over the known "
            "answers, as long as questions come from the same distribution."
        )

    def __call__(self, answer: ListedAnswer) -> PredictionSet:
        """The set of one answer, of the questions or of a new one; the number of candidates may be any.

        Empty where no candidate is likely enough (LAC, randomised APS): it is then less like the known answers than
        the share ``alpha`` of them. To show the likeliest there raises the coverage, and breaks no guarantee.

        Raises:
            CalibrationError: for an answer without candidates, or with one that has no probability.
        """
        if isinstance(answer, Failure):
            raise CalibrationError(f"The request failed, there is no answer: {answer.error}")
        if isinstance(answer, (list, tuple)):
            raise CalibrationError("this is the set of one answer: [sets(each) for each in answers]")
        probabilities = probabilities_of(answer)
        kept = self._nonconformity(probabilities) <= self.threshold
        order = np.argsort(-probabilities, kind="stable")
        return PredictionSet(answer.candidates[place] for place in order if kept[place])

    def at(self, alpha: float) -> PredictionSets:
        """The same with another ``alpha``. Its guarantee supposes that it was not chosen by what the sets then hold."""
        return replace(self, alpha=alpha)

    def coverage(self, answers: Iterable[ListedAnswer | Failure], labels: Gold = "gold") -> float:
        """Share of answers whose set holds the right one; the questions must be others than the known ones.

        Args and errors as in :func:`prediction_sets`.
        """
        found = self._of_right(answers, labels)
        if not len(found):
            raise CalibrationError("there is no answer to measure the coverage on")
        return float((found <= self.threshold).mean())

    def likely_coverage(self, level: float = 0.95) -> tuple[float, float]:
        """Between what the coverage of all future answers lies with probability ``level``, over draws of the N known.

        Beta(k, N + 1 - k), k the rank of the threshold (Vovk 2012). Where nonconformities are tied (APS without
        chance) the coverage may be higher.
        """
        try:
            from scipy.stats import beta
        except ImportError as error:
            raise MissingExtraError("SciPy", "calibration") from error
        low, high = beta.interval(checked_share("level", level), self.answers + 1 - self._missable, self._missable)
        return float(low), float(high)

    def to_pandas(self, answers: Iterable[ListedAnswer | Failure], labels: Gold | None = None) -> DataFrame:
        """A ``pandas.DataFrame``, one row per answer: its id, its set as text, and the size of that; with labels also
        the right candidate, and whether it is in the set. Failures are left out."""
        rows: dict[str, list[Any]] = {"id": [], "set": [], "size": []}
        pairs: list[tuple[Any, int | None]]
        if labels is None:
            pairs = [(each, None) for each in without_failures(results_in(answers, "to_pandas"))]
        else:
            rows |= {"label": [], "covered": []}
            pairs = [*_labelled(answers, labels, "to_pandas")]
        for answer, place in pairs:
            found = self(answer)
            rows["id"].append(getattr(answer, "meta", {}).get("id"))
            rows["set"].append(str(found))
            rows["size"].append(len(found))
            if place is not None:
                rows["label"].append(answer.candidates[place])
                rows["covered"].append(answer.candidates[place] in found)
        return data_frame(rows)

    def plot(self, answers: Iterable[ListedAnswer | Failure], labels: Gold | None = None, ax: Any = None) -> Any:
        """How many candidates it takes: what is promised against the mean size of these answers' sets, for every
        alpha. Returns the axes.

        Args:
            answers: whose sets are counted.
            labels: the right ones; with them the share of the sets that hold it is drawn, too.
            ax: axes to draw on.
        """
        from vlmprobe.display.plots.calibration import draw_sets

        given = list(answers)
        every = [self._nonconformity(probabilities_of(each)) for each in without_failures(results_in(given, "plot"))]
        if not every:
            raise CalibrationError("there is no answer whose set could be drawn")
        sizes = np.searchsorted(np.sort(np.concatenate(every)), self.scores, side="right") / len(every)
        promised = np.arange(1, self.answers + 1) / (self.answers + 1)
        held = None
        if labels is not None:
            right = np.sort(self._of_right(given, labels))
            held = np.searchsorted(right, self.scores, side="right") / len(right)
        return draw_sets(sizes, promised, held, max(self.answers + 1 - self._missable, 1) - 1, len(every), ax)

    def save(self, path: str | Path) -> Path:
        """Write to a JSON file, for :meth:`load`."""
        return save_json(path, FORMAT, {**asdict(self), "scores": self.scores.tolist()})

    @classmethod
    def load(cls, path: str | Path) -> PredictionSets:
        """Load what :meth:`save` wrote.

        Raises:
            ResultError: for a file that is missing, or was not written by :meth:`save`, or by a later vlmprobe.
        """

        def made(known: dict[str, Any]) -> PredictionSets:
            scores = np.array(known.pop("scores"), dtype=np.float64)
            if scores.ndim != 1 or not (np.diff(scores) >= 0).all():
                raise ValueError("scores are not in order")
            if not isinstance(known["randomised"], bool) or not isinstance(known["seed"], int):
                raise TypeError(f"randomised is {known['randomised']!r}, seed {known['seed']!r}")
            return cls(scores, **known)

        return load_json(path, FORMAT, "holds no prediction sets", made)

    def __str__(self) -> str:
        if self.method == "lac":
            kept = f"candidates of a probability of at least {1 - self.threshold:.4g}"
        else:
            own = " and a random part of their own" if self.randomised else ""
            kept = f"candidates whose likelier ones{own} hold at most {self.threshold:.4g}"
        return f"{self.method.upper()}, {kept}: {self.promise} From {counted(self.answers, 'answer')}."

    def __repr__(self) -> str:
        chance = f", randomised=True, seed={self.seed}" if self.randomised else ""
        return (
            f"PredictionSets(method={self.method!r}{chance}, alpha={self.alpha:.4g}, threshold={self.threshold:.4g}, "
            f"answers={self.answers})"
        )

    @property
    def _missable(self) -> int:
        """How many of N + 1 answers may be missed: floor(alpha (N + 1))."""
        return int(np.floor(self.alpha * (self.answers + 1) + 1e-9))

    def _nonconformity(self, probabilities: np.ndarray) -> np.ndarray:
        return _nonconformity(probabilities, self.method, self.seed if self.randomised else None)

    def _of_right(self, answers: Iterable[Any], labels: Gold) -> np.ndarray:
        """Nonconformity of the right candidate of each answer."""
        pairs = _labelled(answers, labels, "coverage")
        return np.array([self._nonconformity(probabilities_of(each))[place] for each, place in pairs])


def prediction_sets(
    answers: Iterable[ListedAnswer | Failure],
    labels: Gold = "gold",
    alpha: float = 0.1,
    *,
    method: Method = "lac",
    randomised: bool = False,
    seed: int = 0,
) -> PredictionSets:
    """What to call with an answer for the candidates among which the right one is with probability ``1 - alpha``.

    A candidate is kept if it conforms no worse than the right candidates of the known answers mostly did: up to the
    ceil((N + 1)(1 - alpha))-th smallest of their N nonconformities.

    Args:
        answers: N scored answers to questions with known answers, which nothing else was fitted on; each may have its
            own candidates. Failures are left out.
        labels: the right candidate of each: a list in the order of the answers, failures included; a mapping by id; or
            the key of ``meta`` that holds them. Compared as :func:`~vlmprobe.analysis.confidences.correctness` does,
            where no candidate has exactly that text. For yes or no, booleans too.
        alpha: how often a set may miss the right answer.
        method: ``"lac"`` keeps candidates from one probability on, which makes the smallest sets on average (least
            ambiguous set-valued classifier: Sadinle, Lei & Wasserman 2019). ``"aps"`` keeps the likeliest until they
            hold enough probability together, which makes sets larger where the model is less sure (adaptive prediction
            sets: Romano, Sesia & Candès 2020).
        randomised: for APS, whether the last candidate is dropped by chance, as the authors do, so that the coverage is
            no more than ``1 - alpha + 1 / (N + 1)``. Otherwise it always stays: no set is empty, and more may be
            covered. The chance is a hash of the probabilities and the seed, so an answer always has the same set.
        seed: of the chance.

    Raises:
        CalibrationError: for fewer than ``1 / alpha - 1`` answers, with which every set would hold all candidates; a
            label that is no candidate; a candidate without a probability.
    """
    if method not in METHODS:
        raise CalibrationError(f"method must be 'lac' or 'aps', not {method!r}")
    chance = seed if randomised else None
    found = [
        _nonconformity(probabilities_of(each, f"answer {row}"), method, chance)[place]
        for row, (each, place) in enumerate(_labelled(answers, labels, "prediction_sets"))
    ]
    return PredictionSets(np.sort(np.array(found, dtype=np.float64)), alpha, method, randomised, seed)


def _nonconformity(probabilities: np.ndarray, method: Method, seed: int | None) -> np.ndarray:
    """How ill each candidate fits, float64 [G].

    With APS the least tau at which the set of Romano et al. holds it: the mass of all likelier ones, plus 1 - u times
    its own. u is 1 without chance, and the last candidate is then always kept.
    """
    if method == "lac":
        return 1 - probabilities
    likelier = np.where(probabilities > probabilities[:, None], probabilities, 0.0).sum(axis=1)
    return likelier if seed is None else likelier + (1 - _chance(probabilities, seed)) * probabilities


def _chance(probabilities: np.ndarray, seed: int) -> float:
    """A number from 0 to 1 as if drawn at random, the same whenever it is asked for."""
    digest = blake2b(probabilities.astype("<f8").tobytes(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") / 2**64


def _labelled(answers: Iterable[Any], labels: Gold, caller: str) -> list[tuple[Any, int]]:
    """Each answer with the index of its right candidate; failures are left out.

    Raises:
        CalibrationError: for an answer without candidates, or a label that is none of them.
    """
    given = list(results_in(answers, caller))
    known = listed_gold(labels, len(given))
    places = []
    for row, each in enumerate(given):
        if isinstance(each, Failure):
            places.append(-1)
            continue
        probabilities_of(each, f"answer {row}")
        places.append(_place(gold_answer(known, row, [getattr(each, "meta", {})]), each.candidates, f"answer {row}"))
    return list(without_failures(given, places))


def _place(label: Any, candidates: Iterable[str], where: str) -> int:
    """Index of the right candidate."""
    names = list(map(str, candidates))
    text = ("yes" if label else "no") if isinstance(label, (bool, np.bool_)) else str(label)
    found = [place for place, each in enumerate(names) if each == text]
    found = found or [place for place, each in enumerate(names) if normal_text(each) == normal_text(text)]
    if len(found) != 1:
        raise CalibrationError(
            f"{where}: the right answer {label!r} is {'several' if found else 'none'} of its candidates "
            f"{', '.join(map(repr, names[:12]))}{', ...' if len(names) > 12 else ''}.{near(text, names)}"
        )
    return found[0]
