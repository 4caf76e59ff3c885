"""The report of a run: a folder of a page of figures, a table of all rows, and pages of the most telling rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from vlmprobe.analysis import calibration
from vlmprobe.analysis.confidences import normal_text
from vlmprobe.analysis.paired import paired_metrics
from vlmprobe.display import run_report as pages
from vlmprobe.errors import MissingExtraError, ResultError
from vlmprobe.probe.tables import plain
from vlmprobe.runs.data import data_of, require_arrow
from vlmprobe.runs.fields import RESERVED
from vlmprobe.runs.overview import ANSWERS, judged_each, metrics_of, overview
from vlmprobe.runs.records import column
from vlmprobe.runs.report_images import Found

__all__ = ["write_report"]

MARKER = ".vlmprobe-report"  # of a folder whose files a report may replace
OWN = re.compile(r"index\.html|report\.css|(report|keys)\.js|rows-\d+\.js|row-\d+\.html|image-\d+-\d+\.(png|jpg)")
PIECE = 2_000  # rows of the table in one file
TELLING = 50  # rows with a page
VALUES = 20  # a column of more values is not divided by
GROUPS = 12  # columns that rows are divided by
FLIPPED = 20  # rows that are listed on the first page
LONGEST = 400  # characters of a cell of the table


@dataclass
class Judged:
    """What is known of each of N rows."""

    answers: list[str | None]  # [N]
    sure: np.ndarray  # float64 [N], NaN where unknown
    right: np.ndarray  # int8 [N]: 1 right, 0 wrong, -1 not judged
    ok: np.ndarray  # bool [N]

    @property
    def known(self) -> np.ndarray:
        """bool [N]: those with a confidence and a verdict, of which figures are made."""
        return (self.right >= 0) & ~np.isnan(self.sure)


def write_report(run: Any, folder: Path, answers: Any, against: Any, root: Path | None) -> Path:
    """Write the report of an ``OpenedRun``; see ``OpenedRun.report``."""
    table = run.overview_table()
    if not len(table):
        raise ResultError(f"{run.folder} has no rows yet: vlmprobe run asks them")
    relabelled = 0
    if answers is not None:
        table, relabelled = _relabelled(table, answers)
    judged = _judged(table)
    other = None if against is None else _other(table, judged, against)
    places = _telling(table, judged)
    view = _figures(run, table, judged, relabelled)
    telling: dict[str, list[dict[str, Any]]] = {}
    for row in _listed(table, judged, places):
        telling.setdefault(row["why"], []).append(row)
    view |= {"carried": _by_column(table, judged), "telling": telling}
    view |= {"pieces": -(-len(table) // PIECE), "against": _comparison(table, judged, other, places)}
    page = pages.index_page(view)
    prepared = _prepared(folder)  # after all figures: what they raise leaves an earlier report as it is
    _assets(prepared)
    _rows(prepared, table, judged, other, places)
    _row_pages(prepared, run, table, judged, other, places, root)
    return _new(prepared / "index.html", page)


def _prepared(folder: Path) -> Path:
    """The folder, without the files of an earlier report.

    Raises:
        ResultError: if it holds files and no report made it.
    """
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise ResultError(f"{folder} is no folder: name another one")
    if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
        raise ResultError(f"{folder} holds files that no report made: name a new folder, or an empty one")
    folder.mkdir(parents=True, exist_ok=True)
    marker.write_text("vlmprobe report replaces its own files in this folder.\n", encoding="utf-8")
    for path in [each for each in folder.iterdir() if OWN.fullmatch(each.name)]:
        path.unlink()  # of a link, the link
    return folder


def _new(path: Path, text: str) -> Path:
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
    return path


def _assets(folder: Path) -> None:
    for name, text in pages.assets().items():
        _new(folder / name, text)


def _relabelled(table: Any, answers: Any) -> tuple[Any, int]:
    """The table with the right answers of another data set, and how many rows have one of those.

    Raises:
        ResultError: if it has no ids or no answers, two of one id, or none of the run's ids.
    """
    known: dict[str, Any] = {}
    for place, (id, answer) in enumerate(_labels(answers)):
        if id is None or answer is None:
            continue
        if known.setdefault(str(id), answer) != answer:
            raise ResultError(f"row {place} of the answers has another answer for the id {str(id)[:200]!r} than before")
    own = next((name for name in ANSWERS if name in table.column_names), "answer")
    held = table[own].to_pylist() if own in table.column_names else [None] * len(table)
    ids = [None if id is None else str(id) for id in table["id"].to_pylist()]
    changed = sum(id in known for id in ids)
    if not changed:
        raise ResultError(f"none of the {len(known):,} ids of the answers is one of the run's")
    labels = [known.get(id, old) if id is not None else old for id, old in zip(ids, held, strict=True)]
    if any(isinstance(each, list) for each in labels):  # several answers that count; a column has one type
        several = (each if each is None or isinstance(each, list) else [each] for each in labels)
        labels = [None if each is None else list(map(str, each)) for each in several]
    new = column(labels)
    if own in table.column_names:
        return table.set_column(table.column_names.index(own), own, new), changed
    return table.append_column(own, new), changed


def _labels(answers: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(answers, Mapping):
        yield from answers.items()
        return
    for place, row in enumerate(data_of(answers).rows()):
        if isinstance(row, Exception):
            raise ResultError(f"row {place} of the answers cannot be read: {row}")
        name = next((each for each in ANSWERS if isinstance(row, Mapping) and each in row), None)
        if name is None or "id" not in row:
            raise ResultError(f"row {place} of the answers has no 'id' or no 'answer': both columns are needed")
        yield plain(row["id"], "id"), plain(row[name], name)


def _pieces(table: Any) -> Iterator[dict[str, list[Any]]]:
    """The columns of the table as lists, of ``PIECE`` rows at a time."""
    for start in range(0, len(table), PIECE):
        yield table.slice(start, PIECE).to_pydict()


def _judged(table: Any) -> Judged:
    answers, sure, right, ok = [], [], [], []
    for columns in _pieces(table):
        for answer, confidence, verdict in judged_each(columns):
            answers.append(answer)
            sure.append(np.nan if confidence is None else confidence)
            right.append(-1 if verdict is None else int(verdict))
        ok += [status == "ok" for status in columns["status"]]
    return Judged(answers, np.array(sure, dtype=np.float64), np.array(right, dtype=np.int8), np.array(ok))


def _other(table: Any, judged: Judged, against: Any) -> dict[str, Any]:
    """What another run says to the same questions, in the order of this one's rows: right or wrong by these labels."""
    pa = require_arrow()
    theirs = against.overview_table()
    place_of = {key: place for place, key in enumerate(theirs["key"].to_pylist())}
    at = np.array([place_of.get(key, -1) for key in table["key"].to_pylist()], dtype=np.int64)
    taken = theirs.take(pa.array([int(each) if each >= 0 else None for each in at], pa.int64()))
    own = next((name for name in ANSWERS if name in table.column_names), None)
    taken = taken.drop_columns([name for name in ANSWERS if name in taken.column_names])
    if own is not None:
        taken = taken.append_column(own, table[own])
    if not (at >= 0).any():
        raise ResultError(f"{against.folder} has none of the questions of this run: nothing can be compared")
    found = _judged(taken)
    both = judged.ok & found.ok
    differ = np.array([b and _differ(x, y) for b, x, y in zip(both, judged.answers, found.answers, strict=True)])
    known = judged.known & found.known
    return {
        "folder": against.folder,
        "about": against.about,
        "judged": found,
        "asked": at >= 0,
        "both": both,
        "differ": differ,
        "known": known,
        "flipped": known & (judged.right != found.right),
    }


def _differ(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and normal_text(one) != normal_text(other)


def _telling(table: Any, judged: Judged) -> list[tuple[int, str]]:
    """The places of the rows that get a page, and why: the first of each kind, then the second of each, ..."""
    sure = judged.sure
    order = np.argsort(sure, kind="stable")  # NaN last
    least = [int(place) for place in order if not np.isnan(sure[place])]
    if (judged.right >= 0).any():
        kinds = {
            "confident and wrong": [place for place in reversed(least) if judged.right[place] == 0],
            "unsure and right": [place for place in least if judged.right[place] == 1],
        }
    else:
        kinds = {"least confident": least}
    kinds["failed"] = [int(place) for place in np.flatnonzero(~judged.ok)]
    keys = table["key"].to_pylist()
    seen: set[str] = set()
    found: list[tuple[int, str]] = []
    for places in zip_longest(*kinds.values()):
        for kind, place in zip(kinds, places, strict=True):
            if place is not None and keys[place] not in seen and len(found) < TELLING:
                seen.add(keys[place])
                found.append((place, kind))
    order_of = list(kinds)
    return sorted(found, key=lambda each: order_of.index(each[1]))


def _rows(folder: Path, table: Any, judged: Judged, other: Any, places: Sequence[tuple[int, str]]) -> None:
    """``rows-0.js``, ``rows-1.js``, ...: each calls a function with an array of rows, since a page that is opened from
    a disk may load a script, but not fetch a file."""
    with_page = {place for place, _ in places}
    gold = next((name for name in ANSWERS if name in table.column_names), None)
    for number, columns in enumerate(_pieces(table)):
        rows = []
        for place in range(len(columns["key"])):
            at = number * PIECE + place
            sure, right = float(judged.sure[at]), int(judged.right[at])
            error = f"{columns['error_type'][place]}: {columns['error'][place]}"
            row = [
                columns["row"][place],
                _cell(columns["id"][place]),
                _cell(columns["question"][place]),
                _cell(judged.answers[at] if judged.ok[at] else error),
                _cell(columns[gold][place]) if gold else "",
                None if np.isnan(sure) else round(sure, 6),
                right if judged.ok[at] else 2,
                at if at in with_page else -1,
            ]
            if other is not None:
                row += [_cell(other["judged"].answers[at]), int(other["differ"][at]), int(other["flipped"][at])]
            rows.append(row)
        _new(folder / f"rows-{number}.js", pages.rows_script(number, rows))


def _cell(value: Any) -> str:
    text = pages.written(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _row_pages(
    folder: Path, run: Any, table: Any, judged: Judged, other: Any, places: Sequence[tuple[int, str]], root: Path | None
) -> None:
    rows = [table.slice(place, 1).to_pylist()[0] for place, _ in places]
    results = dict(zip((r["key"] for r in rows if r["status"] == "ok"), run.results_of(rows), strict=True))
    found = Found(run.folder, rows, root)
    known = {*RESERVED, *ANSWERS}
    gold = next((name for name in ANSWERS if name in table.column_names), None)
    for index, ((place, why), row) in enumerate(zip(places, rows, strict=True)):
        images, words = found.write(row, folder, place)
        view = {
            "why": why,
            "row": row["row"],
            "id": row["id"],
            "question": row["question"],
            "key": row["key"],
            "images": images,
            "gone": words,
            "result": results.get(row["key"]),
            "error": None if row["status"] == "ok" else f"{row['error_type']}: {row['error']}",
            "answer": judged.answers[place],
            "confidence": float(judged.sure[place]),
            "right": int(judged.right[place]),
            "label": row[gold] if gold else None,
            "candidates": row["candidates"],
            "candidate_logprobs": row["candidate_logprobs"],
            "mass": row["mass"],
            "carried": {name: value for name, value in row.items() if name not in known},
            "other": None if other is None else other["judged"].answers[place],
            "before": f"row-{places[index - 1][0]}.html" if index else None,
            "after": f"row-{places[index + 1][0]}.html" if index + 1 < len(places) else None,
        }
        _new(folder / f"row-{place}.html", pages.row_page(view))


def _figures(run: Any, table: Any, judged: Judged, relabelled: int) -> dict[str, Any]:
    known = judged.known
    sure, right = judged.sure[known], judged.right[known] == 1
    view: dict[str, Any] = {
        "about": run.about,
        "folder": run.folder.name,
        "overview": overview(run, table, judged=False),
        "judged": int(known.sum()),
        "right": int(right.sum()),
        "relabelled": relabelled,
        "metrics": metrics_of(sure, right),
        "reliability": None,
        "risk": None,
    }
    if len(right):
        view["reliability"] = calibration.reliability(sure, right)
        view["risk"] = calibration.risk_coverage(sure, right)
    return view


def _by_column(table: Any, judged: Judged) -> list[dict[str, Any]]:
    """Rows divided by each further column of few values."""
    pa = require_arrow()
    found: list[dict[str, Any]] = []
    for name in [each for each in table.column_names if each not in RESERVED and each not in ANSWERS][: 10 * GROUPS]:
        kind = table[name].type
        if not any(of(kind) for of in (pa.types.is_string, pa.types.is_integer, pa.types.is_boolean)):
            continue
        count = pa.compute.count_distinct(table[name]).as_py()
        if 2 <= count <= VALUES and len(found) < GROUPS:
            values = table[name].to_pylist()
            groups = [
                _group(value, np.array([each == value for each in values]), judged)
                for value in sorted({each for each in values if each is not None}, key=lambda each: str(each))
            ]
            found.append({"name": name, "groups": groups})
    return found


def _group(value: Any, of: np.ndarray, judged: Judged) -> dict[str, Any]:
    known = of & judged.known
    return {
        "value": value,
        "rows": int(of.sum()),
        "failed": int((of & ~judged.ok).sum()),
        "judged": int(known.sum()),
        "accuracy": float((judged.right[known] == 1).mean()) if known.any() else float("nan"),
        "confidence": float(judged.sure[known].mean()) if known.any() else float("nan"),
    }


def _listed(table: Any, judged: Judged, places: Iterable[tuple[int, str]]) -> list[dict[str, Any]]:
    """What the first page says of rows."""
    found = []
    gold = next((name for name in ANSWERS if name in table.column_names), None)
    for place, why in places:
        row = table.slice(place, 1).to_pylist()[0]
        found.append(
            {
                "why": why,
                "page": f"row-{place}.html",
                "row": row["row"],
                "id": row["id"],
                "question": row["question"],
                "answer": judged.answers[place] if judged.ok[place] else f"{row['error_type']}: {row['error']}",
                "label": row[gold] if gold else None,
                "confidence": float(judged.sure[place]),
            }
        )
    return found


def _comparison(table: Any, judged: Judged, other: Any, places: Sequence[tuple[int, str]]) -> dict[str, Any] | None:
    if other is None:
        return None
    known, theirs = other["known"], other["judged"]
    counts = {name: int(other[name].sum()) for name in ("asked", "both", "differ")}
    found: dict[str, Any] = {
        "folder": other["folder"].name,
        "about": other["about"],
        **counts,
        "known": int(known.sum()),
    }
    if known.sum() > 1:
        sides = (theirs.sure[known], judged.sure[known]), (theirs.right[known] == 1, judged.right[known] == 1)
        found["metrics"], found["test"] = _or_none(lambda: paired_metrics(*sides))
    pages_of = {place for place, _ in places}
    flipped = np.flatnonzero(other["flipped"])
    found["flipped"] = len(flipped)
    rows = _listed(table, judged, [(int(place), "") for place in flipped[:FLIPPED]])
    for place, row in zip(flipped, rows, strict=False):
        row |= {"theirs": theirs.answers[place], "right": bool(judged.right[place] == 1)}
        row["page"] = row["page"] if int(place) in pages_of else None
    return found | {"rows": rows}


def _or_none(found: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """Without SciPy there is no test, and all else of the report."""
    try:
        return found()
    except MissingExtraError:
        return None, None
