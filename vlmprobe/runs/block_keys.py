"""Keys of many rows at once, column by column; they are those that :class:`~vlmprobe.runs.keys.Reader` gives."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vlmprobe.errors import VlmprobeError
from vlmprobe.probe.tables import plain, scalar
from vlmprobe.runs.blocks import Block
from vlmprobe.runs.columns import Columns
from vlmprobe.runs.keys import Reader, Row, candidates_text, hash_of, plain_text

__all__ = ["Keyed", "keyed"]

PLAIN = {"question", "image", "candidates", "id"}  # what a block may ask with; options of prompts are read row by row


@dataclass
class Keyed:
    """Rows with what a start needs of them: no request, and no row, is made of those that are answered."""

    numbers: range  # places in the data set
    keys: list[str]
    ids: list[Any]
    carried: list[Mapping[str, Any]]
    row: Callable[[int], Row]  # the row at a place of these lists


def keyed(reader: Reader, block: Block, first: int, places: range) -> Keyed | None:
    """Rows of a block with their keys; None if one of them needs the closer look of :meth:`Reader.row`.

    Args:
        reader: that makes rows.
        block: that holds them.
        first: the number of its first row.
        places: of the rows that are wanted, in the block.
    """
    names = block.names
    if names is None or not places:
        return None
    try:
        columns = reader.columns(names)
        if not set(columns.of) <= PLAIN:
            return None
        chosen = slice(places.start, None, places.step)
        cells = {name: block.column(column)[chosen] for name, column in columns.of.items()}
        keys = _keys(reader, cells, _questions(columns, cells, block, chosen), len(places))
        if keys is None:
            return None
        ids = [id if type(id) is str else plain(scalar(id), "id") for id in cells.get("id", [None] * len(places))]
        carried = _carried(columns, block, chosen, len(places))
    except (VlmprobeError, LookupError):  # of a row: it is found again where rows are read one by one
        return None
    numbers = range(first + places.start, first + len(block), places.step)
    return Keyed(numbers, keys, ids, carried, lambda at: reader.row(numbers[at], block.row(places[at])))


def _questions(columns: Columns, cells: Mapping[str, list[Any]], block: Block, chosen: slice) -> list[Any]:
    """The questions, with None for one that is not simply a text."""
    if columns.template is None:
        return [cell if type(cell) is str and cell[:1] != "[" else None for cell in cells["question"]]
    parsed = list(string.Formatter().parse(columns.template))
    fields = {field: block.column(field)[chosen] for _, field, _, _ in parsed if field is not None}
    if any(type(cell) is not str for held in fields.values() for cell in held):
        return [None]
    count = len(block.rows()[chosen]) if not fields else len(next(iter(fields.values())))
    pieces = [
        piece
        for text, field, _, _ in parsed
        for piece in ([[text] * count] if field is None else [[text] * count, fields[field]])
    ]
    return ["".join(each) for each in zip(*pieces, strict=True)]


def _keys(reader: Reader, cells: Mapping[str, list[Any]], questions: list[Any], count: int) -> list[str] | None:
    images = cells.get("image", [None] * count)
    written = _written(cells.get("candidates", [None] * count))
    if written is None or None in questions or not {*map(type, images)} <= {str, type(None)}:
        return None
    different = set(images) - {None}
    if any(each[:1] == "[" for each in different):
        return None
    hashes = reader.images.hashes(different)
    return [
        hash_of(plain_text(question, None if image is None else hashes[image], listed))
        for question, image, listed in zip(questions, images, written, strict=True)
    ]


def _written(candidates: list[Any]) -> list[str | None] | None:
    """Candidates as they stand in keys, None for a row without; None if some are not lists of texts."""
    found: list[str | None] = []
    known: dict[tuple[Any, ...], str] = {}  # most rows have the same
    for each in candidates:
        if each is None:
            found.append(None)
            continue
        try:
            text = known.get(tuple(each)) if type(each) is list else None
        except TypeError:  # something that cannot be compared
            text = None
        if text is None:
            text = candidates_text(each)
            if text is None:
                return None
            known[tuple(each)] = text
        found.append(text)
    return found


def _carried(columns: Columns, block: Block, chosen: slice, count: int) -> list[Mapping[str, Any]]:
    cells = {
        name: [cell if type(cell) is str else plain(cell, name) for cell in block.column(column)[chosen]]
        for name, column in columns.carried.items()
    }
    names = tuple(cells)
    return [dict(zip(names, each, strict=True)) for each in zip(*cells.values(), strict=True)] or [{}] * count
