"""Boxes of many answers in one table, and which of them are right: for average precision, calibration and gating.

>>> rows = box_frame(results, "objects")
>>> gating.accept_for_accuracy(rows["score"], rows["correct"], 0.95)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vlmprobe.analysis.box_confidence import boxes
from vlmprobe.analysis.box_overlap import overlap
from vlmprobe.analysis.box_table import Boxes
from vlmprobe.analysis.confidences import CalibrationError, Gold, gold_answer, listed_gold
from vlmprobe.analysis.failures import results_in, without_failures
from vlmprobe.results.failure import Failure
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.result import Result

__all__ = ["box_frame"]

NAN = float("nan")
Truth = tuple[np.ndarray, "str | None"]  # [4], and its label


def box_frame(
    results: Iterable[Result | Failure],
    gold: Gold | None = None,
    *,
    iou: float = 0.5,
    normal: Callable[[str], str] = str,
    **options: Any,
) -> DataFrame:
    """A ``pandas.DataFrame``, one row per box or point of every answer.

    Boxes are compared with the right ones as for average precision: those of the greatest score first, each with the
    right one that it overlaps most of those that are left. A right box that none was found for has a row too: ``kind``
    is "missing", and ``score`` NaN, so that ``rows.dropna(subset="score")`` are the boxes that have a confidence.

    Args:
        results: answers, or failures, which are left out.
        gold: the right boxes of each answer, ``[{"box": [x1, y1, x2, y2], "label": "dog"}, ...]`` in pixels of the
            upright image, or only the four numbers: a list in the order of the results, a mapping by id, or the key of
            ``meta`` that holds them. None judges nothing.
        iou: the least overlap (intersection over union) with a right box. A point is right if it lies in one.
        normal: normalises labels before they are compared, such as ``confidences.normal_text``; by default they must be
            the same. A right box without a label goes with any.
        **options: arguments of :func:`~vlmprobe.analysis.boxes`, the same for all results.

    Returns:
        ``answer`` (place among the results), ``id``, the columns of :meth:`Boxes.to_pandas`, and with ``gold`` also
        ``truth`` (number of the right box, -1 for none), ``overlap`` with it (NaN of points), and ``correct``.

    Raises:
        CalibrationError: for right boxes that are missing, or are none.
        ResultError: as :func:`~vlmprobe.analysis.boxes`.
    """
    given = list(results_in(results, "box_frame"))
    known = None if gold is None else listed_gold(gold, len(given))
    parts: list[dict[str, Any]] = []
    for result, place in without_failures(given, range(len(given))):
        found = boxes(result, **options)
        about = {"answer": place, "id": result.meta.get("id")}
        columns: dict[str, Any] = {name: [each] * len(found) for name, each in about.items()} | found.columns()
        if known is not None:
            truths = _truths(gold_answer(known, place, [result.meta]))
            columns |= _judged(found, truths, iou, normal)
            columns = _with_missing(columns, about, set(range(len(truths))) - set(columns["truth"]), truths)
        parts.append(columns)
    names = list(parts[0]) if parts else ["answer", "id"]
    made = data_frame({name: [each for part in parts for each in part[name]] for name in names})
    return made if known is None or not parts else made.astype({"correct": bool})


def _truths(right: Any) -> list[Truth]:
    """Right boxes and their labels."""
    if not isinstance(right, Sequence) or isinstance(right, (str, bytes)):
        raise CalibrationError(f"the right boxes {right!r} are no list: give [{{'box': [x1, y1, x2, y2]}}, ...]")
    found: list[Truth] = []
    for each in right:
        held = isinstance(each, Mapping)
        box, label = (each.get("box"), each.get("label")) if held else (each, None)
        try:
            place = np.array(box, dtype=np.float64)
        except (TypeError, ValueError):
            place = np.zeros(0)
        if place.shape != (4,) or not np.isfinite(place).all():
            raise CalibrationError(f"the right box {each!r} is no {{'box': [x1, y1, x2, y2], 'label': '...'}}")
        found.append((place, None if label is None else str(label)))
    return found


def _judged(found: Boxes, truths: Sequence[Truth], iou: float, normal: Callable[[str], str]) -> dict[str, Any]:
    """Which right box each one is, and how far they overlap."""
    matched = [-1] * len(found)
    overlaps = [NAN] * len(found)
    left = set(range(len(truths)))
    for row in np.argsort(-np.nan_to_num(found.scores, nan=-1.0), kind="stable").tolist():
        box = found.xyxy[row]
        candidates = []
        for place in sorted(left):
            right, label = truths[place]
            if label is not None and normal(label) != normal(found.labels[row]):
                continue
            if found.kinds[row] == "point":
                if right[0] <= box[0] <= right[2] and right[1] <= box[1] <= right[3]:
                    candidates.append((1.0, place, NAN))
            elif not np.isnan(box).any() and (shared := float(overlap(box, right[None])[0])) >= iou:
                candidates.append((shared, place, shared))
        if candidates:
            _, matched[row], overlaps[row] = max(candidates, key=lambda each: (each[0], -each[1]))
            left.discard(matched[row])
    return {"truth": matched, "overlap": overlaps, "correct": [place >= 0 for place in matched]}


def _with_missing(
    columns: dict[str, Any], about: dict[str, Any], missing: set[int], truths: Sequence[Truth]
) -> dict[str, Any]:
    """The columns, and a row for each right box that was not found."""
    grown = {name: list(column) for name, column in columns.items()}
    for place in sorted(missing):
        told = {**about, "kind": "missing", "label": truths[place][1] or "", "notes": "missing", "truth": place}
        told |= {"correct": False, "complete": False, "straddles": False, "start": 0, "stop": 0}
        for name, column in grown.items():
            column.append(told.get(name, NAN))
    return grown
