"""Fields of many answers in one table, and which of them are right: for calibration and gating by field.

>>> rows = field_frame(results, "receipt", path="total")
>>> gating.accept_for_accuracy(rows["at_least"], rows["correct"], 0.99)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from vlmprobe.analysis.confidences import CalibrationError, Gold, gold_answer, listed_gold
from vlmprobe.analysis.failures import results_in, without_failures
from vlmprobe.analysis.json_fields import COLUMNS, fields, objects
from vlmprobe.analysis.json_paths import parsed_path, path_matches, path_text
from vlmprobe.analysis.json_reader import DEEPEST, Path
from vlmprobe.errors import ResultError
from vlmprobe.results.failure import Failure
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.result import Result

__all__ = ["field_frame"]

ABSENT = {"value": None, "probability": np.nan, "at_least": np.nan, "at_most": np.nan, "complete": False}


def field_frame(
    results: Iterable[Result | Failure],
    gold: Gold | None = None,
    *,
    path: str | None = None,
    schema: Any = None,
    normal: Callable[[str], str] = str,
) -> DataFrame:
    """A ``pandas.DataFrame``, one row per field of every answer.

    A field that is in the right answer and not in the model's has a row too: ``kind`` is "missing", and ``at_least``
    NaN, so that ``rows.dropna(subset="at_least")`` are the fields that have a confidence. Where a key is given twice,
    each of its fields is compared with the truth.

    Args:
        results: answers, or failures, which are left out.
        gold: the right answers, as objects such as ``{"total": 12.5, "items": [{"price": 3}]}``: a list in the order of
            the results, a mapping by id, or the key of ``meta`` that holds them. None judges nothing.
        path, schema: as in :func:`~vlmprobe.analysis.json_fields.fields`.
        normal: normalises strings before they are compared, such as ``confidences.normal_text``; by default they must
            be the same. Numbers are equal whatever they are written as (12.5 and 12.50).

    Returns:
        ``answer`` (place among the results), ``id``, the columns of :meth:`Fields.to_pandas`, and with ``gold`` also
        ``truth`` (None for a field that should not be there) and ``correct``.

    Raises:
        CalibrationError: for a right answer that is missing, or is no object or array.
        ResultError: for an invalid path.
    """
    given = list(results_in(results, "field_frame"))
    known = None if gold is None else listed_gold(gold, len(given))
    rows: list[dict[str, Any]] = []
    for result, place in without_failures(given, range(len(given))):
        about = {"answer": place, "id": result.meta.get("id")}
        truths = None if known is None else _truths(gold_answer(known, place, [result.meta]), path)
        rows += [{**about, **row} for row in _rows(result, truths, path, schema, normal)]
    judged = [] if gold is None else ["truth", "correct"]
    made = data_frame({name: _column(rows, name) for name in ["answer", "id", *COLUMNS, *judged]})
    return made.astype({"correct": bool}) if judged else made


def _rows(
    result: Result, truths: dict[str, Any] | None, path: str | None, schema: Any, normal: Callable[[str], str]
) -> list[dict[str, Any]]:
    try:
        columns = fields(result, path, schema).columns()
    except ResultError as error:
        if path is not None:
            parsed_path(path)  # raises if that was what is wrong
        columns = {name: [] for name in COLUMNS}
        unread = str(error)
    else:
        unread = "missing"
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if truths is None:
        return rows
    there = {row["path"] for row in rows if row["kind"] != "missing"}
    rows = [row for row in rows if row["kind"] != "missing" or row["path"] not in truths]
    for row in rows:
        row["truth"] = truths.get(row["path"])
        right = row["path"] in truths and row["kind"] != "missing" and _equal(row["value"], row["truth"], normal)
        row["correct"] = bool(right and row["complete"])
    absent = [name for name in truths if name not in there]
    more = {"kind": "missing", "notes": unread, "correct": False}
    return rows + [{"path": name, **ABSENT, **more, "truth": truths[name]} for name in absent]


def _truths(right: Any, path: str | None) -> dict[str, Any]:
    """The right values by path."""
    if not isinstance(right, Mapping | list | tuple):
        raise CalibrationError(
            f"the right answer {right!r} is no object: give the right fields as in {{'total': 12.5}}, for each result"
        )
    found: dict[str, Any] = {}
    waiting: list[tuple[Path, Any]] = [((), right)]
    while waiting:
        place, value = waiting.pop()
        if len(place) > DEEPEST:
            raise CalibrationError(f"the right answer is nested more than {DEEPEST} deep")
        inner: list[tuple[Any, Any]] = []
        if isinstance(value, Mapping):
            inner = list(value.items())
        elif isinstance(value, list | tuple):
            inner = list(enumerate(value))
        if inner:
            waiting += [((*place, part), each) for part, each in reversed(inner)]
        else:
            found[path_text(place)] = value
    if path is None:
        return found
    wanted = parsed_path(path)
    return {name: value for name, value in found.items() if path_matches(parsed_path(name), wanted)}


def _equal(value: Any, truth: Any, normal: Callable[[str], str]) -> bool:
    if isinstance(value, str) and isinstance(truth, str):
        return normal(value) == normal(truth)
    if isinstance(value, bool) or isinstance(truth, bool):
        return value is truth
    return bool(value == truth or (value != value and truth != truth))


def _column(rows: list[dict[str, Any]], name: str) -> Any:
    column = [row.get(name) for row in rows]
    return objects(column) if name in ("value", "truth") else column
