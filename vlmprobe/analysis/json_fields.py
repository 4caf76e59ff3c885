"""Confidence of the fields of a JSON answer: which of them was the model unsure of?

The probability of a field is that of the tokens of its value, given all that stands before it: quotes, commas, colons,
keys and the white space between them left out. It is thus the probability that the value begins so: as for
:mod:`~vlmprobe.analysis.words`, whether ``"Rose"`` goes on to ``"Rosemary"`` is decided by the token after it.

Tokenizers cut text without regard to JSON, so a token may hold both value and structure, such as ``."`` at the end of a
sentence. How its probability is shared between the two is not known. Counted, it gives a lower bound on the probability
of the value, left out an upper bound. White space around a number or constant is no structure in this sense: it says
nothing, so ``" true"`` is a token of the value alone. An empty string has no token of its own but the one with its
closing quote, which is counted so.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields as columns_of
from typing import Any

import numpy as np

from vlmprobe.analysis.json_paths import parsed_path, path_matches, path_text
from vlmprobe.analysis.json_reader import Leaf, Path, read_json
from vlmprobe.analysis.json_schema import apply_schema
from vlmprobe.analysis.token_spans import NOTHING, Measured, SpanReader, text_and_spans
from vlmprobe.analysis.uncertainty import Source, table_of
from vlmprobe.display.overview import Kind, Overview, Viewed
from vlmprobe.display.view import DASH, counted, percent
from vlmprobe.engines.constraint import schema_of
from vlmprobe.errors import VlmprobeWarning
from vlmprobe.results.choices import StaysReadOnly
from vlmprobe.results.document import finite
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable

__all__ = ["COLUMNS", "Fields", "fields", "objects"]

LONG = 60  # characters of a value in a table
COLUMNS = {  # of a table: attribute of Fields
    "path": "paths",
    "value": "values",
    "kind": "kinds",
    "probability": "probability",
    "at_least": "at_least",
    "at_most": "at_most",
    "least_sure": "least_sure",
    "least_sure_probability": "least_sure_probability",
    "entropy": "entropy",
    "start": "starts",
    "stop": "stops",
    "key_probability": "key_probability",
    "key_at_least": "key_at_least",
    "key_at_most": "key_at_most",
    "straddles": "straddles",
    "complete": "complete",
    "expected": "expected",
    "notes": "notes",
}


@dataclass(frozen=True, eq=False)
class Fields(Viewed, StaysReadOnly):
    """F fields of an answer, in the order of its text; then those that a schema requires and that are missing.

    Probabilities are NaN where the engine did not give the numbers, and ``probability`` also where it is only bounded.
    The arrays are read-only.
    """

    paths: list[str]  # [F] such as items[2].price; keys with dots, brackets, quotes or white space as ["a.b"]
    values: list[Any]  # [F], escapes decoded
    kinds: list[str]  # [F] string, number, boolean, null; object or array if empty; text if no JSON; none; missing
    probability: np.ndarray  # float64 [F], of the value's own tokens; NaN where one holds structure too
    at_least: np.ndarray  # float64 [F], such tokens counted; equal to probability where there are none
    at_most: np.ndarray  # float64 [F], such tokens left out; also where the engine gives only bounds
    least_sure: list[str]  # [F] the least likely of the tokens that at_least counts; empty where unknown
    least_sure_probability: np.ndarray  # float64 [F]
    entropy: np.ndarray  # float64 [F], nats: mean over these tokens
    spans: np.ndarray  # int64 [F, 2]: text[start:stop] is the value as written, without quotes
    key_probability: np.ndarray  # float64 [F], of the key's own tokens, given that a key comes; NaN for items of arrays
    key_at_least: np.ndarray  # float64 [F], as at_least
    key_at_most: np.ndarray  # float64 [F]
    straddles: np.ndarray  # bool [F]: a token holds both value and structure
    complete: np.ndarray  # bool [F]: False where the text ends in the value, or before it
    expected: list[str]  # [F] the type that the schema has, such as "number or null"; empty where it has none
    notes: list[str]  # [F] what is wrong with the field: "duplicate key", "missing", "string, not number", ...
    parts: list[Path]  # [F] keys and indices of the path
    text: str  # of the answer
    problems: list[str]  # of the whole: "trailing comma (at character 17)", "cut off (at character 90)", ...

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, path: str) -> Fields:
        """The fields at a path: ``"total"``, ``"items[2]"`` with all that is in it, ``"items[].price"`` of all items.

        Raises:
            ResultError: for what is no path.
        """
        wanted = parsed_path(path)
        rows = [row for row, parts in enumerate(self.parts) if path_matches(parts, wanted)]
        return self._rows(rows)

    @property
    def starts(self) -> np.ndarray:
        """int64 [F]: the first column of ``spans``."""
        return self.spans[:, 0]

    @property
    def stops(self) -> np.ndarray:
        """int64 [F]: the second column of ``spans``."""
        return self.spans[:, 1]

    def lowest_first(self) -> Fields:
        """The same fields, those of least probability (``at_least``) first, and those without one before them."""
        order = np.argsort(np.where(np.isnan(self.at_least), -1.0, self.at_least), kind="stable")
        return self._rows(order.tolist())

    def columns(self) -> dict[str, Any]:
        """The columns, named as in :meth:`to_pandas`."""
        return {name: getattr(self, attribute) for name, attribute in COLUMNS.items()}

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per field."""
        return data_frame({**self.columns(), "value": objects(self.values)})

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready values: ``fields``, a list with one mapping each, and ``problems``.

        Numbers that are not finite are None.
        """
        plain = {name: each.tolist() if isinstance(each, np.ndarray) else each for name, each in self.columns().items()}
        rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
        return finite({"fields": rows, "problems": self.problems})

    def plot(self, ax: Any = None, *, most: int = 30) -> Any:
        """Probability of each field as a bar, with a line from the lower to the upper bound. Returns the axes.

        Args:
            ax: axes to draw on.
            most: how many fields to draw.
        """
        from vlmprobe.display.plots.fields import draw_fields

        shown = self._rows(list(range(min(most, len(self)))))
        names = [f"{path}: {_said(shown, row)}" for row, path in enumerate(shown.paths)]
        return draw_fields(names, shown.at_least, shown.at_most, ax, more=len(self) - len(shown))

    def __repr__(self) -> str:
        known = np.flatnonzero(~np.isnan(self.at_least))
        least = known[np.argmin(self.at_least[known])] if len(known) else None
        sure = "" if least is None else f", least sure {self.paths[least]} {_share(self, int(least))}"
        wrong = f", {'; '.join(self.problems)}" if self.problems else ""
        return f"Fields({counted(len(self), 'field')}{sure}{wrong})"

    def _rows(self, rows: Sequence[int]) -> Fields:
        changed: dict[str, Any] = {}
        for column in columns_of(self):
            value = getattr(self, column.name)
            if column.name in ("text", "problems"):
                changed[column.name] = value
            else:
                changed[column.name] = (
                    value[list(rows)] if isinstance(value, np.ndarray) else [value[row] for row in rows]
                )
        return Fields(**changed)

    def _overview(self) -> Overview:
        noted, typed = any(self.notes) or bool(self.straddles.any()), any(self.expected)
        columns: dict[str, Kind] = {"field": "text", "value": "token", "least sure": "token", "key": "number"}
        columns |= {"expected": "text"} if typed else {}
        columns |= {"notes": "text"} if noted else {}
        rows = []
        for row in range(len(self)):
            cells: list[Any] = [
                self.paths[row],
                (_said(self, row), float(self.at_least[row])),
                (self.least_sure[row] or DASH, float(self.least_sure_probability[row])),
                percent(float(self.key_probability[row])),
            ]
            upper = [f"at most {percent(float(self.at_most[row]))}"] if self.straddles[row] else []
            cells += [self.expected[row]] if typed else []
            cells += ["; ".join(filter(None, [self.notes[row], *upper]))] if noted else []
            rows.append(cells)
        figures = [("fields", f"{len(self):,}", "with a value of their own")]
        figures += [("JSON", each, "what is wrong with the whole") for each in self.problems]
        return Overview(columns, rows, figures=figures)


def fields(source: Source, path: str | None = None, schema: Any = None) -> Fields:
    """The fields of the JSON in an answer, each with its probability.

    The JSON may be the whole answer, stand in a fenced block, or anywhere in text (the first object, or array with one
    in it, else the first array); it may be cut off by ``max_new_tokens``. Single quotes, trailing or missing commas,
    keys without quotes, ``NaN`` and Python's constants are read, and told in ``notes`` and ``problems``.

    Args:
        source: an answer; or a table of tokens, such as one of ``Scores.tables``.
        path: which fields, as in :meth:`Fields.__getitem__`. If there is none, the result is a row of kind "missing".
        schema: JSON Schema or Pydantic model, which tells types (``expected``), and fields that are missing, are not in
            it, or are of another type or value than it allows.

    Raises:
        ResultError: if there is no JSON in the answer, or it is nested more than 100 deep; for an invalid path.
    """
    table = table_of(source)
    reader = SpanReader.of(table, source.text if isinstance(source, Result) else None)
    if reader is None:
        warnings.warn(
            "The answer's text is not among what its tokens say, so that no field has a probability: it "
            "was changed after they were generated.",
            VlmprobeWarning,
            stacklevel=2,
        )
    text = source.text if isinstance(source, Result) else text_and_spans(table.tokens, table.kinds)[0]
    wanted = None if path is None else parsed_path(path)
    document = read_json(text)
    leaves = document.leaves
    expected, missing = ([""] * len(leaves), []) if schema is None else apply_schema(leaves, schema_of(schema))
    leaves, expected = [*leaves, *missing], [*expected, *[""] * len(missing)]
    if wanted is not None:
        rows = [row for row, leaf in enumerate(leaves) if path_matches(leaf.path, wanted)]
        leaves, expected = [leaves[row] for row in rows], [expected[row] for row in rows]
        if not leaves:
            leaves, expected = [missing_leaf(wanted)], [""]
    return _made(leaves, expected, text, document.problems, reader, table)


def missing_leaf(path: Path) -> Leaf:
    """A field that is not there."""
    return Leaf(path, None, "missing", (0, 0), None, complete=False, notes=["missing"])


def _made(
    leaves: Sequence[Leaf],
    expected: list[str],
    text: str,
    problems: list[str],
    reader: SpanReader | None,
    table: TokenTable,
) -> Fields:
    found = [_measured(leaf, reader) for leaf in leaves]
    keys = [NOTHING if leaf.key is None or reader is None else reader.measure(*leaf.key) for leaf in leaves]

    def column(name: str, of: Sequence[Measured] = found) -> np.ndarray:
        return np.array([getattr(each, name) for each in of], dtype=np.float64)

    least = [each.least for each in found]
    return Fields(
        paths=[path_text(leaf.path) for leaf in leaves],
        values=[leaf.value for leaf in leaves],
        kinds=[leaf.kind for leaf in leaves],
        probability=column("probability"),
        at_least=column("at_least"),
        at_most=column("at_most"),
        least_sure=["" if row < 0 else table.tokens[row] for row in least],
        least_sure_probability=np.array([np.nan if row < 0 else np.exp(table.logprobs[row]) for row in least]),
        entropy=column("entropy"),
        spans=np.array([leaf.span for leaf in leaves], dtype=np.int64).reshape(-1, 2),
        key_probability=column("probability", keys),
        key_at_least=column("at_least", keys),
        key_at_most=column("at_most", keys),
        straddles=np.array([each.straddles for each in found], dtype=bool),
        complete=np.array([leaf.complete for leaf in leaves], dtype=bool),
        expected=expected,
        notes=["; ".join(leaf.notes) for leaf in leaves],
        parts=[leaf.path for leaf in leaves],
        text=text,
        problems=problems,
    )


def _measured(leaf: Leaf, reader: SpanReader | None) -> Measured:
    if reader is None or leaf.kind in ("none", "missing"):
        return NOTHING
    return reader.measure(*leaf.span, spaced=leaf.kind != "string")


def objects(values: list[Any]) -> np.ndarray:
    """Values of several types as one column of objects, lest pandas makes numbers of all of them."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _said(found: Fields, row: int) -> str:
    """A value as it is written, shortened."""
    start, stop = found.spans[row].tolist()
    if found.kinds[row] in ("none", "missing"):
        return DASH
    said = found.text[start : min(stop, start + LONG + 1)]
    return f"{said[:LONG]}…" if len(said) > LONG else said or '""'


def _share(found: Fields, row: int) -> str:
    sure = percent(float(found.at_least[row]))
    return f"at least {sure}" if found.straddles[row] else sure
