"""Confidence and correctness: how sure each answer was, and whether it was right.

Calibration, recalibration and gating take the two as arrays of one length, as scikit-learn does; this module makes them
from results, and validates them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from vlmprobe.analysis import uncertainty
from vlmprobe.analysis.failures import results_in, without_failures
from vlmprobe.display.view import counted
from vlmprobe.errors import VlmprobeError, near
from vlmprobe.results.failure import Failure
from vlmprobe.results.result import Result, Scores

__all__ = [
    "CONFIDENCES",
    "CalibrationError",
    "Gold",
    "ListedAnswer",
    "answer_text",
    "checked",
    "confidences",
    "correctness",
    "gold_answer",
    "judged",
    "listed_gold",
    "normal_text",
    "probabilities_of",
]

# The right answers: the key of ``meta`` that holds them, by id, or in the order of the results.
Gold: TypeAlias = "str | Mapping[Any, Any] | Iterable[Any]"


class CalibrationError(VlmprobeError, ValueError):
    """Unusable confidences or outcomes: too few, one class only, or not probabilities."""


@runtime_checkable
class ListedAnswer(Protocol):
    """An answer among G listed candidates: scores, and whatever else has these two."""

    @property
    def candidates(self) -> Sequence[str]:
        """[G]."""

    @property
    def probabilities(self) -> np.ndarray:
        """float64 [G], from 0 to 1, of each given that the answer is one of them."""


def probabilities_of(answer: Any, where: str = "the answer") -> np.ndarray:
    """The probabilities of an answer's candidates, float64 [G].

    Args:
        answer: scores, or anything that has ``candidates`` and ``probabilities``.
        where: its name in messages.

    Raises:
        CalibrationError: for anything else; if a candidate has no probability, or one outside 0 to 1.
    """
    if not isinstance(answer, ListedAnswer):
        raise CalibrationError(
            f"{where} is {type(answer).__name__}, which has no candidates with probabilities: score candidates, as "
            "with probe.score(question, candidates, image)"
        )
    found, names = np.asarray(answer.probabilities, dtype=np.float64), list(answer.candidates)
    if found.shape != (len(names),) or not names:
        raise CalibrationError(f"{where} has {counted(len(names), 'candidate')}, and probabilities {found.shape}")
    if np.isnan(found).any():
        raise CalibrationError(f"{where} has no probability for {names[int(np.isnan(found).argmax())]!r}: leave it out")
    if not ((found >= 0) & (found <= 1 + 1e-9)).all():
        raise CalibrationError(f"{where} has probabilities that are not from 0 to 1: {found}")
    return found


def _mean_probability(result: Result) -> float:
    return float(np.exp(uncertainty.mean_logprob(result)))


def _min_probability(result: Result) -> float:
    return float(np.exp(uncertainty.min_logprob(result)))


CONFIDENCES: dict[str, Callable[[Result], float]] = {
    "sequence": uncertainty.sequence_probability,  # of exactly this answer
    "mean": _mean_probability,  # geometric mean over its tokens: length-normalised
    "min": _min_probability,  # of its least likely token
}


def confidences(
    results: Iterable[Result | ListedAnswer | Failure], by: str | Callable[[Any], float] | None = None
) -> np.ndarray:
    """How sure each answer was.

    Args:
        results: answers, or scored candidates (or whatever has such), whose confidence is the probability of the best
            among the candidates. Failures are left out.
        by: for answers ``"sequence"`` (probability of exactly this answer), ``"mean"`` (geometric mean of the tokens'
            probabilities), ``"min"`` (the least likely token), or a function of a result. For answers it must be named
            from vlmprobe 0.4 on; until then None is ``"sequence"``, with a FutureWarning.

    Returns:
        float64 [N], from 0 to 1 for the named ones.
    """
    results = list(without_failures(results_in(results, "confidences")))
    if by is None:
        if not all(isinstance(each, ListedAnswer) for each in results):
            warnings.warn(
                'confidences() needs by= from vlmprobe 0.4 on: by="sequence" is the probability of the whole answer, '
                'as now, by="mean" that of a token on average, which long answers need.',
                FutureWarning,
                stacklevel=2,
            )
        by = "sequence"
    if not callable(by) and by not in CONFIDENCES:
        raise ValueError(f"by must be {', '.join(CONFIDENCES)} or a function, not {by!r}.{near(str(by), CONFIDENCES)}")
    measure: Callable[[Any], float] = by if callable(by) else CONFIDENCES[by]
    found = [
        float(np.nanmax(each.probabilities)) if isinstance(each, ListedAnswer) and not callable(by) else measure(each)
        for each in results
    ]
    return np.array(found, dtype=np.float64)


def answer_text(result: Result | ListedAnswer) -> str:
    """The answer: its text, or the best of the scored candidates."""
    if isinstance(result, Result):
        return result.text
    return result.best if isinstance(result, Scores) else result.candidates[int(np.nanargmax(result.probabilities))]


def normal_text(text: str) -> str:
    """A text without case, surrounding white space, a leading article, and a final ``.`` or ``!``."""
    words = text.casefold().strip().rstrip(".!").strip().split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def correctness(
    results: Iterable[Result | ListedAnswer | Failure],
    answers: Gold = "gold",
    normal: Callable[[str], str] = normal_text,
) -> np.ndarray:
    """Whether each answer matches the expected one, or one of several.

    Args:
        results: answers, or scored candidates, whose answer is the best one. Failures are left out, with their
            expected answers.
        answers: the expected texts, or several each: a list in the order of the results, failures included; a mapping
            by id; or the key of ``meta`` that holds them, by default that of a column ``gold`` of the requests.
        normal: normalises texts before comparison; ``str`` compares them verbatim.

    Returns:
        bool [N].

    Raises:
        CalibrationError: for a list of another length, an answer that is missing, or one that is no text.
    """
    results = list(results_in(results, "correctness"))
    for place, each in enumerate(results):
        if not isinstance(each, (Result, ListedAnswer, Failure)):
            raise CalibrationError(f"correctness takes results, and number {place} is {type(each).__name__}")
    known = listed_gold(answers, len(results))
    expected = [
        None if isinstance(each, Failure) else gold_answer(known, place, [getattr(each, "meta", {})])
        for place, each in enumerate(results)
    ]
    found = []
    for result, right in without_failures(results, expected):
        found.append(normal(answer_text(result)) in {normal(each) for each in _accepted(right)})
    return np.array(found, dtype=bool)


def _accepted(right: Any) -> list[str]:
    """The texts that count as right, of one text or several."""
    several = list(right) if isinstance(right, Iterable) and not isinstance(right, (str, bytes, Mapping)) else [right]
    if not several or not all(isinstance(each, str) for each in several):
        raise CalibrationError(
            f"the right answer {right!r} is no text, nor a list of texts: give texts, such as str(answer), or, where "
            "the function takes it, correct="
        )
    return several


def listed_gold(gold: Gold, count: int) -> str | Mapping[Any, Any] | list[Any]:
    """The right answers to ``count`` results, a list if they are neither a key of ``meta`` nor by id.

    Raises:
        CalibrationError: for a list of another length, or what is none.
    """
    if isinstance(gold, str | Mapping):
        return gold
    if not isinstance(gold, Iterable):
        raise CalibrationError(
            f"the right answers are {gold!r}: give a list in the order of the results, a mapping by id, or the key of "
            "meta that holds them"
        )
    listed = list(gold)
    if len(listed) != count:
        raise CalibrationError(
            f"gold has {counted(len(listed), 'answer')} for {counted(count, 'result')}: give one for each, failures "
            "included, in their order"
        )
    return listed


def gold_answer(gold: str | Mapping[Any, Any] | list[Any], place: int, metas: Sequence[Mapping[str, Any]]) -> Any:
    """The right answer to one question.

    Args:
        gold: from :func:`listed_gold`.
        place: of the question among the results.
        metas: of the results that answer it, of which each may carry the right answer.

    Raises:
        CalibrationError: if there is none, or the results carry different ones.
    """
    if isinstance(gold, list):
        return gold[place]
    if isinstance(gold, Mapping):
        if (name := metas[0].get("id")) is None:
            raise CalibrationError(
                f"gold is by id, and result {place} has none: give requests an id, or gold as a list"
            )
        if name not in gold:
            raise CalibrationError(f"gold has no answer for the id {name!r}")
        return gold[name]
    carried = [meta[gold] for meta in metas if gold in meta]
    if not carried:
        raise CalibrationError(
            f"result {place} has no meta[{gold!r}]: give the right answers as a list in the order of the results or by "
            "id, or name the column of the requests that holds them"
        )
    if any(each != carried[0] for each in carried):
        raise CalibrationError(f"result {place}: the two lists carry different right answers, {carried}")
    return carried[0]


def judged(
    results: Sequence[Result | ListedAnswer], answers: Sequence[Any], correct: Callable[[str, Any], Any] | None = None
) -> np.ndarray:
    """Whether each answer is right.

    Args:
        results: [N].
        answers: [N] the right answers: texts, or several texts each; anything that ``correct`` takes.
        correct: a function of an answer's text and the right answer; None compares texts as :func:`correctness` does.

    Returns:
        [N], booleans if ``correct`` returns such: validate it with :func:`checked`.

    Raises:
        CalibrationError: for a right answer that is not text, without ``correct``.
    """
    if correct is not None:
        return np.array([correct(answer_text(each), right) for each, right in zip(results, answers, strict=True)])
    return correctness(results, list(answers))


def checked(
    confidence: Any, correct: Any, *, least: int = 1, both: bool = False, scale: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Validates confidence and correctness, and returns them as float64 [N] and bool [N].

    Args:
        confidence: numbers, one per answer.
        correct: booleans, or 0 and 1, one per answer.
        least: minimum number of answers.
        both: whether both right and wrong answers are required.
        scale: whether confidences must be probabilities.
    """
    sure = np.asarray(confidence)
    right = np.asarray(correct)
    if sure.dtype.kind not in "fiu" or right.dtype.kind not in "biuf":
        raise CalibrationError(f"confidence must be numbers and correct booleans, not {sure.dtype} and {right.dtype}")
    sure = sure.astype(np.float64)
    if sure.ndim != 1 or right.shape != sure.shape:
        raise CalibrationError(
            f"confidence and correct must be two lists of the same length, not {sure.shape} and {right.shape}"
        )
    if not np.isin(right, (0, 1)).all():
        raise CalibrationError("correct must be booleans, or 0 and 1")
    if np.isnan(sure).any():
        raise CalibrationError(f"confidence {int(np.isnan(sure).argmax())} is NaN: leave out answers that have none")
    if scale and len(sure) and not ((sure >= 0) & (sure <= 1)).all():
        raise CalibrationError("confidence must be probabilities from 0 to 1; exp turns log-probabilities into them")
    right = right.astype(bool)
    if len(sure) < least:
        few = f"{counted(len(sure), 'answer')} {'is' if len(sure) == 1 else 'are'} too few here"
        raise CalibrationError(f"{few}; at least {least} {'is' if least == 1 else 'are'} needed")
    if both and (right.all() or not right.any()):
        which = "right" if right.all() else "wrong"
        raise CalibrationError(
            f"All answers are {which}; this needs right and wrong ones: add harder or easier questions"
        )
    return sure, right
