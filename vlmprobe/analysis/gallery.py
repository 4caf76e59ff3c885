"""Answers to look at, with their images: the least sure ones, and the wrong ones.

>>> from vlmprobe.analysis import gallery
>>> gallery.wrong(results).to_html("wrong.html")

:mod:`vlmprobe.analysis.paired` shows the answers of two models or prompts side by side in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, overload

import numpy as np
from PIL.Image import Image

from vlmprobe.analysis.confidences import (
    Gold,
    answer_text,
    checked,
    confidences,
    gold_answer,
    judged,
    listed_gold,
)
from vlmprobe.analysis.failures import without_failures
from vlmprobe.errors import ResultError
from vlmprobe.results.failure import Failure
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.written import written

if TYPE_CHECKING:
    from vlmprobe.display.shown import ShownGallery

__all__ = [
    "Answer",
    "Example",
    "Gallery",
    "least_sure",
    "listed_results",
    "select_least_sure",
    "select_wrong",
    "selected",
    "wrong",
]

MOST = 30  # examples on one page, each with its images
Answer: TypeAlias = Result | Scores


@dataclass(frozen=True, eq=False)
class Example:
    """One question with its right answer, and the answer of one model, or of two, A and B."""

    id: Any
    gold: Any  # the right answer; None if it was not given
    answers: tuple[Answer, ...]  # [1 or 2]
    confidences: tuple[float, ...]  # of each answer, from 0 to 1
    correct: tuple[bool, ...]  # whether each is right; empty if the right answer was not given

    @property
    def questions(self) -> tuple[str, ...]:
        """The question; two, if A and B were asked differently."""
        return tuple(dict.fromkeys(str(each.meta.get("question") or "") for each in self.answers))

    @property
    def texts(self) -> tuple[str, ...]:
        """The text of each answer, or the best of its scored candidates."""
        return tuple(answer_text(each) for each in self.answers)

    @property
    def images(self) -> tuple[Image, ...]:
        """The images; those of A and of B, if they differ."""
        different = {str(each.meta.get("image_digests")): each.images for each in reversed(self.answers)}
        return tuple(image for images in reversed(different.values()) for image in images)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Examples to look at. It is a sequence of them; Jupyter and a terminal show them."""

    title: str
    examples: tuple[Example, ...]
    names: tuple[str, ...]  # of the answers: one, or those of A and B
    total: int  # how many examples there are, of which ``examples`` are the first

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: int) -> Example:
        return self.examples[place]

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per example: id, question, gold, and each answer with its confidence.

        The columns of two answers end in ``_a`` and ``_b``; ``right`` is None where the right answer is not known.
        """
        count = len(self.names)
        columns: dict[str, list[Any]] = {
            "id": [each.id for each in self],
            **_columns("question", [each.questions for each in self], 2 if self._differs else 1),
            "gold": [each.gold for each in self],
            **_columns("answer", [each.texts for each in self], count),
            **_columns("confidence", [each.confidences for each in self], count),
            **_columns("right", [each.correct or (None,) * count for each in self], count),
        }
        return data_frame(columns)

    @overload
    def to_html(self, path: None = ...) -> str: ...
    @overload
    def to_html(self, path: str | Path) -> Path: ...
    def to_html(self, path: str | Path | None = None) -> str | Path:
        """One self-contained HTML page with the images, or the path of the file that it is written to.

        Raises:
            ResultError: for a ``path`` that holds something else than HTML.
        """
        from vlmprobe.display.gallery import gallery_page

        return written(gallery_page(self), path, "html")

    def _repr_html_(self) -> str:
        from vlmprobe.display.gallery import gallery_html

        return gallery_html(self)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from vlmprobe.display.gallery import gallery_rich

        yield gallery_rich(self)

    def __repr__(self) -> str:
        return f"Gallery({self.title!r}, {len(self)} of {self.total} examples)"

    @property
    def _differs(self) -> bool:
        return any(len(each.questions) > 1 for each in self)


if TYPE_CHECKING:  # mypy checks here that display can show it
    _SHOWN: type[ShownGallery] = Gallery


def least_sure(
    results: Iterable[Answer | Failure],
    gold: Gold | None = None,
    *,
    by: str | Callable[[Any], float] = "sequence",
    correct: Callable[[str, Any], Any] | None = None,
    most: int = MOST,
) -> Gallery:
    """The least confident answers, the least confident first.

    Args:
        results: answers, or scored candidates. Failures are left out, with a warning.
        gold: the right answers, if known, as in :func:`wrong`.
        by: the confidence, as in :func:`~vlmprobe.analysis.confidences.confidences`.
        correct: whether an answer counts as right, as in :func:`wrong`.
        most: how many to show.

    Raises:
        ResultError: for results that are not answers.
        CalibrationError: for right answers that do not fit, or answers without a confidence.
    """
    return select_least_sure(_examples(results, gold, by, correct), ("answer",), most)


def wrong(
    results: Iterable[Answer | Failure],
    gold: Gold = "gold",
    *,
    by: str | Callable[[Any], float] = "sequence",
    correct: Callable[[str, Any], Any] | None = None,
    most: int = MOST,
) -> Gallery:
    """The wrong answers, the most confident first.

    Args:
        results: answers, or scored candidates. Failures are left out, with a warning.
        gold: the right answers: a list in the order of the results, a mapping by ``meta["id"]``, or the key of ``meta``
            that holds them.
        by: the confidence, as in :func:`~vlmprobe.analysis.confidences.confidences`.
        correct: a function of an answer's text and the right answer; by default texts are compared as in
            :func:`~vlmprobe.analysis.confidences.correctness`.
        most: how many to show.

    Raises:
        ResultError: for results that are not answers.
        CalibrationError: for right answers that do not fit, or answers without a confidence.
    """
    return select_wrong(_examples(results, gold, by, correct), ("answer",), most)


def select_least_sure(examples: Sequence[Example], names: tuple[str, ...], most: int = MOST) -> Gallery:
    """The examples whose last answer (that of B, of two) is the least confident."""
    order = sorted(examples, key=lambda each: each.confidences[-1])
    return selected(f"Least confident answers{_of(names)}", order, names, most)


def select_wrong(examples: Sequence[Example], names: tuple[str, ...], most: int = MOST) -> Gallery:
    """The examples whose last answer (that of B, of two) is wrong, the most confident first."""
    order = sorted((each for each in examples if not each.correct[-1]), key=lambda each: -each.confidences[-1])
    return selected(f"Wrong answers{_of(names)}, the most confident first", order, names, most)


def selected(title: str, examples: Sequence[Example], names: tuple[str, ...], most: int) -> Gallery:
    """A gallery of the first ``most`` examples.

    Raises:
        ResultError: unless ``most`` is an integer of at least 1.
    """
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ResultError(f"most must be an integer of at least 1, not {most!r}")
    return Gallery(title, tuple(examples[:most]), names, len(examples))


def listed_results(results: Any, name: str = "results") -> list[Any]:
    """Validates a list of results, and returns it.

    Raises:
        ResultError: for anything but answers, scored candidates and failures.
    """
    if isinstance(results, Answer | Failure | str) or not isinstance(results, Iterable):
        raise ResultError(f"{name} must be a list of results, as generate_many yields, not {type(results).__name__}")
    listed = list(results)
    for place, each in enumerate(listed):
        if not isinstance(each, Answer | Failure):
            raise ResultError(
                f"{name} holds {type(each).__name__} at {place}: give what generate_many or score returned"
            )
    return listed


def _of(names: tuple[str, ...]) -> str:
    return f" of {names[-1]}" if len(names) > 1 else ""


def _examples(
    results: Any, gold: Gold | None, by: str | Callable[[Any], float], correct: Callable[[str, Any], Any] | None
) -> list[Example]:
    listed = listed_results(results)
    kept = list(without_failures(listed, range(len(listed))))
    answers = [each for each, _ in kept]
    sure, golds, right = confidences(answers, by), [None] * len(kept), None
    if gold is not None:
        known = listed_gold(gold, len(listed))
        golds = [gold_answer(known, place, [each.meta]) for each, place in kept]
        right = judged(answers, golds, correct)
    sure, found = checked(sure, np.zeros(len(kept), bool) if right is None else right)
    return [
        Example(each.meta.get("id"), golds[place], (each,), (float(sure[place]),), _judgement(right, found, place))
        for place, each in enumerate(answers)
    ]


def _judgement(right: np.ndarray | None, found: np.ndarray, place: int) -> tuple[bool, ...]:
    return () if right is None else (bool(found[place]),)


def _columns(name: str, values: Sequence[Sequence[Any]], count: int) -> dict[str, list[Any]]:
    """One column, or one each for A and B."""
    if count == 1:
        return {name: [each[0] for each in values]}
    return {f"{name}_{side}": [each[place % len(each)] for each in values] for place, side in enumerate("ab")}
