"""Answers that were saved before, or those of a run over a data set, to be looked at and gone on from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from vlmprobe.engines.base import GivesPromptIds
from vlmprobe.engines.recorded_prompt import holds_images
from vlmprobe.errors import ResultError, VlmprobeError
from vlmprobe.inputs.images import load_image
from vlmprobe.results.files import load_result, load_results
from vlmprobe.results.result import Result
from vlmprobe.results.saved import DOCUMENT

if TYPE_CHECKING:
    from vlmprobe.probe import Probe

__all__ = ["ORDERS", "Entry", "Saved", "differs", "open_saved"]

ORDERS = ("place", "confidence")
RUN = "run.json"
LONGEST = 300  # characters of a question or an answer in the list
SMALL = "The images were saved only downscaled for display, so nothing new can be computed about them."
OTHER_PROMPT = (
    "Its prompt held more than this question, such as a system message or earlier turns, which were not saved: nothing "
    "new can be computed about it."
)


@dataclass(frozen=True)
class Entry:
    """A saved answer, opened."""

    result: Any  # a Result or Scores
    images: tuple[Image, ...] = ()  # those it is about
    names: tuple[str, ...] = ()  # of their files, as far as known
    why: str = ""  # why nothing new can be computed about it; empty if it can


class Saved:
    """A list of answers: a row of each, and the answer of one row."""

    def __init__(self, name: str, rows: Sequence[Mapping[str, Any]], entry: Callable[[int], Entry]) -> None:
        """Each row has place, id, question, answer, confidence and error; ``entry`` opens the answer at a place."""
        self.name, self.rows, self.entry = name, rows, entry

    def listed(self, find: str, order: str, start: int, count: int) -> dict[str, Any]:
        """Some rows in an order, of those that hold a text in id, question or answer."""
        words = find.casefold()
        rows = [row for row in self.rows if not words or words in _searched(row)]
        if order == "confidence":
            rows = sorted(rows, key=lambda row: 2.0 if row["confidence"] is None else row["confidence"])
        return {"name": self.name, "count": len(rows), "start": start, "rows": rows[start : start + count]}


def differs(probe: Probe, entry: Entry) -> str:
    """Why a probe cannot go on from a saved answer: it is of another model, or of another prompt. Empty if it can."""
    result = entry.result
    model = result.meta.get("model")
    if model != probe.meta.get("model"):
        return f"This is an answer of {model}, and another model is open."
    if not isinstance(result, Result) or not isinstance(probe.engine, GivesPromptIds) or not len(result.output):
        return ""
    conversation = probe.conversation(str(result.meta.get("question") or "?"), list(entry.images) or None)
    ids = probe.engine.prompt_ids(conversation)
    given = result.input_ids  # a run keeps only how many there are
    same = len(ids) == int(result.output.positions[0]) if given is None else np.array_equal(ids, given)
    return "" if same else OTHER_PROMPT


def _searched(row: Mapping[str, Any]) -> str:
    return "\n".join(str(row[name] or "") for name in ("id", "question", "answer", "error")).casefold()


def open_saved(path: Path, root: Path | None = None) -> Saved:
    """The answers in a folder of a run, in a folder of saved results, or in the file or folder of one.

    Args:
        path: of it.
        root: where paths of images of a run start, if they have been moved.

    Raises:
        ResultError: if nothing is there that vlmprobe saved.
        MissingExtraError: for a run, without pyarrow.
    """
    if (path / RUN).is_file():
        run = _Run(path, root)
        return Saved(path.name, run.rows, run.entry)
    single = path.is_file() or (path / DOCUMENT).is_file()
    results = [each for found in ([load_result(path)] if single else load_results(path)) for each in _flat(found)]
    return Saved(path.name, [_row(place, each) for place, each in enumerate(results)], lambda at: _entry(results[at]))


def _flat(result: Any) -> list[Any]:
    """A result, or each of several typed answers."""
    return list(result.values()) if isinstance(result, Mapping) else [result]


def _row(place: int, result: Any) -> dict[str, Any]:
    scores = not isinstance(result, Result)
    share = max(result.probabilities.tolist()) if scores else result.confidence
    answer = (result.best if result.decided else "") if scores else result.text
    return _shown(place, result.meta.get("id"), result.meta.get("question"), answer, share)


def _shown(place: int, id: Any, question: Any, answer: Any, confidence: Any, error: str = "") -> dict[str, Any]:
    return {
        "place": place,
        "id": None if id is None else str(id)[:LONGEST],
        "question": str(question or "")[:LONGEST],
        "answer": str(answer or "")[:LONGEST],
        "confidence": confidence,
        "error": error[:LONGEST],
    }


def _entry(result: Any) -> Entry:
    whole = holds_images(result)
    return Entry(result, tuple(result.images), why="" if whole else SMALL)


class _Run:
    """The rows of a run."""

    def __init__(self, folder: Path, root: Path | None) -> None:
        from vlmprobe.runs import open_run

        self.run, self.root = open_run(folder), root
        self.held: list[dict[str, Any]] = self.run.overview_table().to_pylist()

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One for each row of the data set."""
        return [
            _shown(
                place,
                row["id"] if row["id"] is not None else row["row"],
                row["question"],
                row["text"] or row["best"],
                row["confidence"],
                "" if row["status"] == "ok" else f"{row['error_type']}: {row['error']}",
            )
            for place, row in enumerate(self.held)
        ]

    def entry(self, place: int) -> Entry:
        """The answer to a row, with its images as they are found now."""
        from vlmprobe.runs.report_images import Found

        row = self.held[place]
        if row["status"] != "ok":
            raise ResultError(f"row {row['row']} failed: {row['error_type']}: {row['error']}")
        (result,) = self.run.results_of([row])
        images: list[Image] = []
        names: list[str] = []
        found = Found(self.run.folder, [row], self.root)
        for image in row["images"] or ():
            path, why = found.path(image)
            if path is None:
                return Entry(result, tuple(images), tuple(names), why)
            try:
                images.append(load_image(path))
            except (VlmprobeError, OSError) as error:
                return Entry(result, tuple(images), tuple(names), str(error))
            names.append(str(path))
        return Entry(result, tuple(images), tuple(names))
