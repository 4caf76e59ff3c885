"""``show``: one table of many results, in Jupyter or in a terminal. ``widget``: one result to click through."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.analysis.words import words
from vlmprobe.display import overview
from vlmprobe.display.overview import Kind, Overview, Viewed
from vlmprobe.display.view import DASH, order
from vlmprobe.errors import ResultError
from vlmprobe.results.failure import Failure
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.table import TokenTable

if TYPE_CHECKING:
    from vlmprobe.display.widget import AnswerWidget

__all__ = ["show", "widget"]

NOTHING = (DASH, float("nan"))


def show(results: Any) -> None:
    """Display results as a table: question, answer, confidence, and the word that the model was least sure of.

    The confidence is the probability of the whole answer; of scored candidates, that of the best among them. The
    least sure word is the run of text between white space with the lowest probability, or the least likely token of an
    answer that is a single such run.

    Args:
        results: of :meth:`Probe.generate_many` and the like: results, scores and failures, a list or an iterator. A
            single object that has a view of its own is shown by that.

    Raises:
        ResultError: without a result, or for something that is not one.
    """
    if hasattr(results, "_repr_html_"):
        overview.show(results)
        return
    listed = list(results) if isinstance(results, Iterable) and not isinstance(results, (str, bytes, dict)) else None
    if not listed:
        raise ResultError(f"There is no result to show in {results!r}: give a result, or a list of them.")
    overview.show(_Listed(listed))


def widget(result: Any, *, lang: str | None = None) -> AnswerWidget:
    """A result or scores as a widget of a notebook: every token with what else could have been said.

    Args:
        result: a :class:`Result`, :class:`Scores`, or a typed answer.
        lang: "en" or "zh"; by default the browser's language.

    Returns:
        An :class:`~vlmprobe.display.widget.AnswerWidget`, whose ``selected`` is the row that was clicked last.

    Raises:
        MissingExtraError: if anywidget is not installed.
        ResultError: for something else than a result or scores.
    """
    from vlmprobe.display.widget import AnswerWidget

    return AnswerWidget(result, lang=lang)


class _Listed(Viewed):
    """Results, scores and failures in order."""

    def __init__(self, results: list[Any]) -> None:
        self.rows = [_row(place, each) for place, each in enumerate(results)]
        self.pictured = any(row[1] is not None for row in self.rows)

    def _overview(self) -> Overview:
        columns: dict[str, Kind] = {
            "id": "text",
            "image": "image",
            "question": "text",
            "answer": "text",
            "confidence": "share",
            "least sure word": "token",
        }
        if self.pictured:
            return Overview(columns, self.rows)
        del columns["image"]
        return Overview(columns, [[first, *rest] for first, _, *rest in self.rows])


def _row(place: int, result: Any) -> list[Any]:
    if isinstance(result, Failure):
        answer = f"failed: {type(result.error).__name__}: {result.error}"
        question = result.question if isinstance(result.question, str) else ""
        return [_name(place, result.id), None, question, answer, float("nan"), NOTHING]
    if not isinstance(result, (Result, Scores)):
        raise ResultError(
            f"{type(result).__name__} at place {place} is not a result: give results, scores or failures."
        )
    image = result.images[0] if result.images else None
    start = [_name(place, result.meta.get("id")), image, str(result.meta.get("question") or "")]
    if isinstance(result, Result):
        return [*start, result.text.strip(), result.confidence, _least_sure(result.output)]
    best = order(result)[0] if result.candidates else None
    if best is None or not result.decided:
        return [*start, DASH, float("nan"), NOTHING]
    return [*start, result.candidates[best].strip(), float(result.probabilities[best]), NOTHING]


def _name(place: int, given: Any) -> str:
    return str(place if given is None else given)


def _least_sure(table: TokenTable) -> tuple[str, float]:
    """The word of lowest probability with that probability."""
    found = words(table)
    texts, kinds, logprobs = found.texts, found.kinds, found.summed
    if sum(kind == "text" and bool(text) for kind, text in zip(kinds, texts, strict=True)) == 1:
        texts, kinds, logprobs = table.tokens, table.kinds, table.logprobs.astype(np.float64)
    known = [
        place
        for place, (text, kind) in enumerate(zip(texts, kinds, strict=True))
        if kind == "text" and text.strip() and not np.isnan(logprobs[place])
    ]
    if not known:
        return NOTHING
    least = min(known, key=lambda place: float(logprobs[place]))
    return texts[least].strip(), float(np.exp(logprobs[least]))
