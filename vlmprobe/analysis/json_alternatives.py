"""What else a field of a JSON answer might have been: its likeliest values, each with its probability.

A value here is whole: the probability is that of its own tokens, of the quotes around it, and of what ends it, so that
12 and 12.5 are two values, and those of all values add up to at most 1. It is the probability of the value at its
place, right after the colon (or, of an item of an array, the bracket or comma), given all of the answer up to there. So
it differs from ``probability`` of :func:`~vlmprobe.analysis.json_fields.fields`, which leaves quotes and the end out.

One value can be written in several ways (12.5 and 12.50), and each of them be made of several sequences of tokens. All
that are met are added up. What was left unexplored, since it was too improbable, is told, and bounds them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.analysis.json_fields import Fields, fields, objects
from vlmprobe.analysis.json_schema import allowed_values
from vlmprobe.analysis.next_by_scoring import NextByScoring
from vlmprobe.analysis.token_spans import text_and_spans
from vlmprobe.analysis.value_search import Found, NextTokens, Search, Spelled, key_of, kind_of
from vlmprobe.display.overview import Overview, Viewed
from vlmprobe.display.view import counted, percent
from vlmprobe.engines.base import HasAdapter, ReadsContinuations, require
from vlmprobe.engines.constraint import schema_of
from vlmprobe.errors import ResultError
from vlmprobe.probe.branch import conversation_of, recorded_conversation
from vlmprobe.results.choices import StaysReadOnly
from vlmprobe.results.detokenize import Detokenizer
from vlmprobe.results.document import finite
from vlmprobe.results.frame import DataFrame, data_frame

if TYPE_CHECKING:
    from vlmprobe.inputs.messages import Prompt
    from vlmprobe.probe import Probe
    from vlmprobe.results.result import Result

__all__ = ["Alternatives", "field_alternatives"]

COLUMNS = {  # of a table: attribute of Alternatives
    "value": "values",
    "written": "written",
    "kind": "kinds",
    "probability": "probability",
    "at_most": "at_most",
    "is_given": "is_given",
}
LONG = 60  # characters of a value in a table
CONTEXT = 16  # tokens before the value that can affect how its text decodes


@dataclass(frozen=True, eq=False)
class Alternatives(Viewed, StaysReadOnly):
    """K values that a field might have had, likeliest first. The arrays are read-only."""

    path: str
    values: list[Any]  # [K], as read
    written: list[str]  # [K], as most likely written, with quotes
    kinds: list[str]  # [K] string, number, boolean, null, object, array, text
    probability: np.ndarray  # float64 [K], of what was met: a lower bound
    is_given: np.ndarray  # bool [K]: the value in the answer
    unexplored: float  # probability that was not followed to the end of a value
    rest: float  # probability of all that is not listed: other values, no value, and what is unexplored
    rows: int  # beginnings after which the model was asked for the next token

    def __len__(self) -> int:
        return len(self.values)

    @property
    def at_most(self) -> np.ndarray:
        """float64 [K]: upper bounds; all of what is unexplored might be one value."""
        return np.minimum(1.0, self.probability + self.unexplored)

    def columns(self) -> dict[str, Any]:
        """The columns, named as in :meth:`to_pandas`."""
        return {name: getattr(self, attribute) for name, attribute in COLUMNS.items()}

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per value."""
        return data_frame({**self.columns(), "value": objects(self.values)})

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values. Numbers that are not finite are None."""
        plain = {name: each.tolist() if isinstance(each, np.ndarray) else each for name, each in self.columns().items()}
        rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
        bounds = {"unexplored": self.unexplored, "rest": self.rest}
        return finite({"path": self.path, "values": rows, **bounds})

    def plot(self, ax: Any = None) -> Any:
        """Probability of each value as a bar, and of the rest. Returns the axes."""
        from vlmprobe.display.plots.fields import draw_alternatives

        names = [f"{self._said(row)}{' (given)' if self.is_given[row] else ''}" for row in range(len(self))]
        return draw_alternatives(self.path, names, self.probability, self.rest, self.unexplored, ax)

    def __repr__(self) -> str:
        said = ", ".join(
            f"{self._said(row)} {percent(float(self.probability[row]))}" for row in range(min(3, len(self)))
        )
        more = f", {len(self) - 3} more" if len(self) > 3 else ""
        return f"Alternatives({self.path}: {said or 'no value'}{more}, rest {percent(self.rest)})"

    def _said(self, row: int) -> str:
        text = self.written[row]
        return f"{text[:LONG]}…" if len(text) > LONG else text

    def _overview(self) -> Overview:
        rows: list[list[Any]] = [
            [(self._said(row), float(self.probability[row])), "in the answer" if self.is_given[row] else ""]
            for row in range(len(self))
        ]
        figures = [
            ("field", self.path, counted(len(self), "value")),
            ("rest", percent(self.rest), "all other values, and what is no value"),
            ("unexplored", percent(self.unexplored), "of the rest, not followed to the end of a value"),
        ]
        return Overview({"value": "token", "": "text"}, rows, figures=figures)


def field_alternatives(
    probe: Probe,
    result: Result,
    path: str,
    k: int = 5,
    *,
    schema: Any = None,
    values: Sequence[Any] | None = None,
    question: Prompt | None = None,
    image: Any = None,
    least: float = 1e-6,
    rows: int = 256,
) -> Alternatives:
    """The likeliest values of one field of a JSON answer.

    ::

        field_alternatives(probe, result, "items[0].price")

    Where ``schema`` lists the values of the field (``enum``, ``const``, booleans, null), or ``values`` does, these are
    looked for and no others: then all of them are in the answer, also the improbable.

    Args:
        probe: that gave the answer, or another one of the same model.
        result: the answer.
        path: of one field, such as ``"total"`` or ``"items[0].price"``.
        k: how many values; all of those that are listed.
        schema: JSON Schema or Pydantic model.
        values: strings, numbers, booleans or None.
        question, image: the original ones. They may be omitted if the result holds them: one question, and images of at
            most 512 pixels.
        least: probability below which a beginning of a value is not followed.
        rows: after how many beginnings the model is asked for the next token, at most.

    Raises:
        ResultError: if the path is not that of one field in the answer, or its tokens are not known.
        MessageError: for a result of another question.
        CapabilityError: for an engine that cannot say which tokens may follow.
        ValueError: for ``k`` or ``rows`` below 1, ``least`` that is no probability, or no ``values``.
    """
    _check(k, least, rows, values)
    found = fields(result, path)
    row, lead = _place(result, found, path)
    allowed = values
    if allowed is None and schema is not None:
        allowed = allowed_values(found.parts[0], schema_of(schema))
    next_tokens = _next_tokens(probe, result, row, question, image)
    return _made(found, Search(next_tokens, lead, allowed, least, rows).run(k), k, allowed)


def _check(k: int, least: float, rows: int, values: Sequence[Any] | None) -> None:
    if k < 1 or rows < 1:
        raise ValueError(f"k and rows count from 1, not {min(k, rows)}")
    if not 0 <= least < 1:
        raise ValueError(f"least is a probability below 1, not {least}")
    if values is not None and (isinstance(values, str) or not len(values)):
        raise ValueError("values is a list of one value or more")


def _next_tokens(
    probe: Probe, result: Result, row: int, question: Prompt | None, image: Any
) -> Callable[[list[tuple[Any, ...]], list[float]], Sequence[NextTokens | None]]:
    """What asks for the next tokens after the answer up to a row and some further ones."""
    engine, output = probe.engine, result.output
    if not isinstance(engine, ReadsContinuations):
        conversation = recorded_conversation(probe.conversation, result, question, image)
        return NextByScoring(engine, conversation, tuple(output.tokens[:row]))
    if output.ids is None or (output.ids < 0).any():
        raise ResultError("The result has no token ids, which its engine does not give.")
    conversation = conversation_of(engine, probe.conversation, result, question, image)
    after, reader = engine.continuations(conversation), Detokenizer(require(engine, HasAdapter).adapter.tokenizer)
    before = output.ids[:row].tolist()
    context = [*([] if result.input_ids is None else result.input_ids[-CONTEXT:].tolist()), *before][-CONTEXT:]

    def next_tokens(beginnings: list[tuple[int, ...]], at_least: list[float]) -> list[NextTokens]:
        found = after.likeliest(before, beginnings, at_least)
        return [
            NextTokens(
                ids,
                logprobs,
                reader.texts_of_next([*context, *each], ids.tolist()),
                np.isin(ids, list(reader.special)),
            )
            for each, (ids, logprobs) in zip(beginnings, found, strict=True)
        ]

    return next_tokens


def _place(result: Result, found: Fields, path: str) -> tuple[int, str]:
    """The first row of the value, and what its token holds before the value."""
    if len(found) != 1 or found.kinds[0] in ("none", "missing"):
        several = f"{len(found)} fields, such as {found.paths[0]}" if len(found) > 1 else "no value"
        raise ResultError(f"There is {several} at {path!r} in the answer: give the path of one that is there.")
    start = int(found.spans[0, 0]) - (found.kinds[0] == "string")
    place = len(found.text[:start].rstrip())
    said, spans = text_and_spans(result.output.tokens, result.output.kinds)
    shift = said.find(found.text)
    if shift < 0:
        raise ResultError(
            "The answer's text is not among what its tokens say: it was changed after they were generated."
        )
    row = int(np.searchsorted(spans[:, 1], place + shift, side="right"))
    return row, said[int(spans[row, 0]) : place + shift]


def _made(found: Fields, searched: Found, k: int, allowed: Sequence[Any] | None) -> Alternatives:
    values = searched.values[:k]
    if allowed is not None:
        met = {key_of(each.kind, each.value) for each in searched.values}
        unmet = {key_of(kind_of(each), each): Spelled.unmet(each) for each in allowed}
        values = [*searched.values, *(each for key, each in unmet.items() if key not in met)]
    probability = np.array([each.probability for each in values], dtype=np.float64)
    given = key_of(found.kinds[0], found.values[0])
    return Alternatives(
        path=found.paths[0],
        values=[each.value for each in values],
        written=[each.written for each in values],
        kinds=[each.kind for each in values],
        probability=probability,
        is_given=np.array([key_of(each.kind, each.value) == given for each in values], dtype=bool),
        unexplored=searched.unexplored,
        rest=max(0.0, 1.0 - float(probability.sum())),
        rows=searched.rows,
    )
