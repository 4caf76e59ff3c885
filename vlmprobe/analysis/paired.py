"""Two models, or two prompts, on the same questions: is one of them better, beyond chance?

>>> from vlmprobe.analysis.paired import paired
>>> found = paired(results, others)
>>> found.accuracy.difference, found.mcnemar.p
>>> found.to_pandas().to_latex()

:mod:`vlmprobe.analysis.compare` compares the tokens of two probes; this module their answers with the right ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.analysis.calibration import BINS, Interval, bin_index, check_resampling, uniform_edges
from vlmprobe.analysis.confidences import (
    CalibrationError,
    Gold,
    checked,
    confidences,
    gold_answer,
    judged,
    listed_gold,
)
from vlmprobe.analysis.gallery import (
    MOST,
    Answer,
    Example,
    Gallery,
    listed_results,
    select_least_sure,
    select_wrong,
    selected,
)
from vlmprobe.display.view import counted
from vlmprobe.errors import MissingExtraError, ResultError
from vlmprobe.results.failure import Failure
from vlmprobe.results.frame import DataFrame, data_frame

if TYPE_CHECKING:
    from vlmprobe.display.shown import ShownPaired

__all__ = ["McNemar", "Metric", "PairedComparison", "paired", "paired_metrics"]

AT_ONCE = 2**22  # drawn rows in memory at once: 32 MB of indices
COLUMNS = ("difference", "low", "high", "p")

Correct = Callable[[str, Any], Any] | Sequence[Sequence[bool]]


@dataclass(frozen=True)
class Metric:
    """One metric of A and of B over the same questions."""

    a: float
    b: float
    difference: Interval  # B minus A, with its paired bootstrap interval
    p: float = float("nan")  # of McNemar's test, for the accuracy; NaN for the others


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test (1947) of whether A and B are right equally often, on the pairs where they differ."""

    only_a: int  # pairs in which only A is right
    only_b: int  # pairs in which only B is right
    p: float  # two-sided: that a fair coin divides these pairs at least as unequally


@dataclass(frozen=True, eq=False)
class PairedComparison:
    """N pairs of answers to the same questions, of A and of B. Differences are B minus A."""

    examples: tuple[Example, ...]  # [N], in the order of A's results
    skipped: int  # pairs left out because a request of one of them failed
    names: tuple[str, str]  # of A and B
    accuracy: Metric  # share of right answers
    confidence: Metric  # mean confidence
    ece: Metric  # expected calibration error over 15 bins of equal width
    brier: Metric  # mean squared distance of confidence from outcome
    mcnemar: McNemar

    @property
    def n(self) -> int:
        """N."""
        return len(self.examples)

    @property
    def metrics(self) -> dict[str, Metric]:
        """The four metrics by the names that tables give them."""
        return {"accuracy": self.accuracy, "confidence": self.confidence, "ECE": self.ece, "Brier": self.brier}

    def least_sure(self, most: int = MOST) -> Gallery:
        """The pairs in which B is least confident, the least confident first."""
        return select_least_sure(self.examples, self.names, most)

    def wrong(self, most: int = MOST) -> Gallery:
        """The pairs in which B is wrong, the most confident first."""
        return select_wrong(self.examples, self.names, most)

    def changed(self, most: int = MOST) -> Gallery:
        """The pairs in which only one of A and B is right: those that B loses first, then those that it gains."""
        differ = [each for each in self.examples if each.correct[0] != each.correct[1]]
        order = sorted(differ, key=lambda each: each.correct[1])
        return selected(f"Right in only one of {self.names[0]} and {self.names[1]}", order, self.names, most)

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per metric: A, B, difference with its interval, and p of McNemar's test."""
        rows = [(each.a, each.b, *_interval(each), each.p) for each in self.metrics.values()]
        return data_frame(rows, index=list(self.metrics), columns=[*self.names, *COLUMNS])

    def plot(self, ax: Any = None) -> Any:
        """The differences with their intervals. Returns the axes.

        Args:
            ax: axes to draw on.
        """
        from vlmprobe.display.plots.paired import draw_paired

        return draw_paired(self, ax)

    def _repr_html_(self) -> str:
        from vlmprobe.display.paired import paired_html

        return paired_html(self)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from vlmprobe.display.paired import paired_rich

        yield paired_rich(self)

    def __str__(self) -> str:
        from vlmprobe.display.paired import paired_text

        return paired_text(self)

    def __repr__(self) -> str:
        return f"PairedComparison({self.n} pairs, accuracy {self.accuracy.difference:+.3f}, p {self.mcnemar.p:.3g})"


if TYPE_CHECKING:  # mypy checks here that display can show it
    _SHOWN: type[ShownPaired] = PairedComparison


def paired(
    a: Iterable[Answer | Failure],
    b: Iterable[Answer | Failure],
    gold: Gold | None = "gold",
    *,
    correct: Correct | None = None,
    by: str | Callable[[Any], float] = "sequence",
    names: tuple[str, str] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> PairedComparison:
    """Compare the answers of two models, or to two prompts, on questions with known answers.

    Answers are paired by ``meta["id"]``. If one of the lists has no ids, they are paired by order, and both must answer
    the same questions about the same images; two prompts need ids. A pair with a failure is left out and counted.

    Args:
        a, b: what :meth:`Probe.generate_many` yields, or scored candidates.
        gold: the right answers: a list in the order of ``a``, a mapping by id, or the key of ``meta`` that holds them.
            None, if ``correct`` is two lists.
        correct: what counts as right: a function of an answer's text and the right answer, or two lists of booleans,
            for ``a`` and for ``b``, each in its order. By default, texts are compared as in
            :func:`~vlmprobe.analysis.confidences.correctness`.
        by: the confidence, as in :func:`~vlmprobe.analysis.confidences.confidences`.
        names: of A and B; by default their models, or ``"a"`` and ``"b"`` if these are the same.
        resamples: of the percentile bootstrap (Efron 1979), which draws pairs with replacement.
        level: share of the resamples inside an interval.
        seed: of the resampling.

    Raises:
        ResultError: if the two lists do not fit together, or ``names`` are unusable.
        CalibrationError: for right answers that do not fit, answers without a confidence, or fewer than two pairs.
        MissingExtraError: without SciPy.
    """
    check_resampling(resamples, level)
    rows = listed_results(a, "a"), listed_results(b, "b")
    places = _matched(*rows)
    kept = [
        pair for pair in places if not any(isinstance(row[at], Failure) for row, at in zip(rows, pair, strict=True))
    ]
    golds: list[Any] = [None] * len(kept)
    if gold is not None:
        known = listed_gold(gold, len(rows[0]))
        golds = [gold_answer(known, i, [rows[0][i].meta, rows[1][j].meta]) for i, j in kept]
    elif correct is None or callable(correct):
        raise CalibrationError("gold is None: give the right answers, or correct= as two lists of booleans")
    sides = []
    for side in (0, 1):
        at = [pair[side] for pair in kept]
        answers = [rows[side][place] for place in at]
        if correct is None or callable(correct):
            right = judged(answers, golds, correct)
        else:
            right = _given(correct, side, len(rows[side]), at)
        sides.append((answers, *checked(confidences(answers, by), right, least=2)))
    (answers_a, sure_a, right_a), (answers_b, sure_b, right_b) = sides
    found, test = paired_metrics((sure_a, sure_b), (right_a, right_b), resamples=resamples, level=level, seed=seed)
    examples = tuple(
        Example(
            id=answers_a[place].meta.get("id"),
            gold=golds[place],
            answers=(answers_a[place], answers_b[place]),
            confidences=(float(sure_a[place]), float(sure_b[place])),
            correct=(bool(right_a[place]), bool(right_b[place])),
        )
        for place in range(len(kept))
    )
    return PairedComparison(
        examples=examples,
        skipped=len(places) - len(kept),
        names=_names(names, answers_a[0].meta, answers_b[0].meta),
        accuracy=found["accuracy"],
        confidence=found["confidence"],
        ece=found["ECE"],
        brier=found["Brier"],
        mcnemar=test,
    )


def paired_metrics(
    sure: tuple[np.ndarray, np.ndarray],
    right: tuple[np.ndarray, np.ndarray],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[dict[str, Metric], McNemar]:
    """Accuracy, mean confidence, ECE and Brier score of A and of B, by the names of
    :attr:`PairedComparison.metrics`, and McNemar's test.

    Args:
        sure: float64 [N] of each, from 0 to 1.
        right: bool [N] of each.
        resamples, level, seed: as for :func:`paired`.

    Raises:
        MissingExtraError: without SciPy.
    """
    test = _mcnemar(int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
    accuracy, confidence, ece, brier = _metrics(sure, right, resamples, level, seed)
    metrics = {"accuracy": Metric(*accuracy, p=test.p), "confidence": Metric(*confidence)}
    return metrics | {"ECE": Metric(*ece), "Brier": Metric(*brier)}, test


def _matched(a: Sequence[Any], b: Sequence[Any]) -> list[tuple[int, int]]:
    """Places in A and in B of each pair, in A's order."""
    at_a, at_b = _by_id(a, "a"), _by_id(b, "b")
    if at_a and at_b:
        for name, own, other in (("a", at_a, at_b), ("b", at_b, at_a)):
            if alone := [each for each in own if each not in other]:
                raise ResultError(
                    f"{counted(len(alone), 'id')} in {name} only, such as {alone[0]!r}: pair the same rows. Those "
                    "whose requests failed are read back by load_results(folder, failures=True)."
                )
        for each, place in at_a.items():
            _require_same_row(a[place].meta, b[at_b[each]].meta, each)
        return [(place, at_b[each]) for each, place in at_a.items()]
    if len(a) != len(b):
        raise ResultError(f"a has {len(a)} results and b {len(b)}: pair the same rows, or give the requests ids")
    for place, pair in enumerate(zip(a, b, strict=True)):
        for key, what in (("question", "question"), ("image_digests", "images")):
            one, other = (each.meta.get(key) for each in pair)
            if None not in (one, other) and one != other:
                raise ResultError(
                    f"The {what} of result {place} differ between a and b ({one!r}, {other!r}): without ids, both must "
                    "be asked the same in the same order. For two prompts, give the requests ids."
                )
    return [(place, place) for place in range(len(a))]


def _by_id(results: Sequence[Any], name: str) -> dict[Any, int]:
    """Places by id; empty if no result has one."""
    ids = [each.meta.get("id") for each in results]
    without = ids.count(None)
    if without == len(ids):
        return {}
    if without:
        raise ResultError(f"{without} of {len(ids)} results of {name} have no id: give all of them one, or none")
    places: dict[Any, int] = {}
    for place, each in enumerate(ids):
        try:
            first = places.setdefault(each, place)
        except TypeError as error:
            raise ResultError(f"the id {each!r} cannot be looked up: use texts or numbers as ids") from error
        if first != place:
            raise ResultError(f"the id {each!r} is twice in {name}, at {first} and {place}: ids must be unique")
    return places


def _require_same_row(a: Mapping[str, Any], b: Mapping[str, Any], name: Any) -> None:
    """Another prompt or another version of the image is a comparison; both at once are ids that agree by accident."""
    images = [set(meta.get("image_digests") or ()) for meta in (a, b)]
    questions = [meta.get("question") for meta in (a, b)]
    if None not in questions and questions[0] != questions[1] and all(images) and not images[0] & images[1]:
        raise ResultError(
            f"the id {name!r} is of {questions[0]!r} in a and of {questions[1]!r} about other images in b: these are "
            "not the same rows"
        )


def _given(correct: Sequence[Sequence[bool]], side: int, count: int, at: Sequence[int]) -> np.ndarray:
    lengths = [len(each) for each in correct]
    if len(lengths) != 2 or lengths[side] != count:
        raise CalibrationError(f"correct must be two lists, with a boolean for each of {count} results in {'ab'[side]}")
    return np.asarray([correct[side][place] for place in at])


def _names(names: Any, a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, str]:
    if names is None:
        models = [str(meta.get("model") or "") for meta in (a, b)]
        found = tuple(Path(each).name if Path(each).is_absolute() else each for each in models)
        return (found[0], found[1]) if _usable(found) else ("a", "b")
    found = (names,) if isinstance(names, str) else tuple(names)
    if not _usable(found):
        raise ResultError(f"names must be two different texts, and not {', '.join(COLUMNS)}; got {names!r}")
    return found[0], found[1]


def _usable(names: tuple[Any, ...]) -> bool:
    texts = all(isinstance(each, str) and each.strip() and each not in COLUMNS for each in names)
    return texts and len(names) == len(set(names)) == 2


def _mcnemar(only_a: int, only_b: int) -> McNemar:
    try:
        from scipy.stats import binomtest
    except ImportError as error:
        raise MissingExtraError("SciPy", "calibration") from error
    total = only_a + only_b
    return McNemar(only_a, only_b, float(binomtest(only_a, total).pvalue) if total else 1.0)


def _metrics(
    sure: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray], resamples: int, level: float, seed: int
) -> list[tuple[float, float, Interval]]:
    """Accuracy, mean confidence, ECE and Brier score of A and of B, and their differences."""
    terms = np.stack([_terms(*side) for side in zip(sure, right, strict=True)], axis=1)  # [N, 2, 3 + BINS]
    exact = _from_means(terms.mean(axis=0))
    drawn = _from_means(_resampled(terms, resamples, seed))
    differences = drawn[:, 1] - drawn[:, 0]  # [R, 4]
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        (float(a), float(b), Interval(float(b - a), float(low[place]), float(high[place]), level))
        for place, (a, b) in enumerate(exact.T)
    ]


def _terms(sure: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 [N, 3 + BINS]: what each answer adds to the metrics, all of which follow from the means of these.

    The bins are of fixed width, so a bin's share of the ECE is the absolute mean of its answers' gaps.
    """
    gaps = np.zeros((len(sure), BINS))
    gaps[np.arange(len(sure)), bin_index(sure, uniform_edges())] = right - sure
    return np.column_stack([right, sure, (right - sure) ** 2, gaps])


def _from_means(means: np.ndarray) -> np.ndarray:
    """float64 [..., 4]: accuracy, mean confidence, ECE and Brier score from the means [..., 3 + BINS] of the terms."""
    ece = np.abs(means[..., 3:]).sum(axis=-1)
    return np.stack([means[..., 0], means[..., 1], ece, means[..., 2]], axis=-1)


def _resampled(terms: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """float64 [R, 2, C]: means of the terms [N, 2, C] over N pairs drawn with replacement."""
    random, count = np.random.default_rng(seed), len(terms)
    flat, found = terms.reshape(count, -1), []
    step = max(1, AT_ONCE // count)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        index = random.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(index.ravel(), minlength=size * count).reshape(size, count).astype(np.float64)
        found.append(times @ flat / count)
    return np.concatenate(found).reshape(resamples, *terms.shape[1:])


def _interval(metric: Metric) -> tuple[float, float, float]:
    return metric.difference.value, metric.difference.low, metric.difference.high
