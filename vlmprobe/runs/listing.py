"""The rows of a data set as they were last read: number, key, id and carried columns of each.

A record belongs to a key, and several rows may have one; the listing says which, with their ids and labels as they are
now, so that records need not be written again. It is written when the data set has been read, and replaces the one
before; a run without one (killed the first time) has the rows of its records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmprobe.runs.data import require_arrow
from vlmprobe.runs.files import UNFINISHED, put_in_place
from vlmprobe.runs.keys import Row
from vlmprobe.runs.records import column
from vlmprobe.runs.shards import Part

__all__ = ["FOLDER", "Listing", "Span", "read_listing"]

FOLDER = "rows"
TOGETHER = 10_000  # rows that are written at once
CHARACTERS = 8 * 2**20  # of their further columns
META = b"vlmprobe"


class Listing:
    """Writes the listing of a part while its rows are read: blocks of many rows, with one JSON text of their cells."""

    def __init__(self, folder: Path, part: Part) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{part.name}.parquet"
        self.count = 0
        self.last = -1  # row
        self._part = part
        self._unfinished = folder / f".{part.name}-rows{UNFINISHED}"
        self._unfinished.unlink(missing_ok=True)
        self._numbers: list[int] = []
        self._keys: list[str] = []
        self._ids: list[Any] = []
        self._carried: list[str] = []  # as JSON, without the brackets of the list
        self._characters = 0
        self._writer: Any = None

    def add(self, row: Row) -> None:
        """A row that was read."""
        self.extend([row.number], [row.key], [row.id], [row.carry])

    def extend(
        self, numbers: Sequence[int], keys: Sequence[str], ids: Sequence[Any], carried: Sequence[Mapping[str, Any]]
    ) -> None:
        """Rows that were read, one or more."""
        self._numbers += numbers
        self._keys += keys
        self._ids += ids
        self._carried.append(json.dumps(list(carried))[1:-1])
        self.count += len(numbers)
        self.last = numbers[-1]
        self._characters += len(self._carried[-1])
        if len(self._keys) >= TOGETHER or self._characters > CHARACTERS:
            self._write()

    def close(self, whole: bool, at: float) -> None:
        """Put the listing in the place of the one before.

        Args:
            whole: whether all rows were read; else a listing of more rows stays.
            at: when, in seconds since 1970: of two parts that hold the same row, the later one says what it is.
        """
        if not whole and self.count < _count(self.path):
            self.drop()
            return
        self._write()
        last = None if whole else self.last
        meta = {"number": self._part.number, "of": self._part.of, "at": at, "last": last, "count": self.count}
        self._writer.add_key_value_metadata({META.decode(): json.dumps(meta)})
        self._writer.close()
        put_in_place(self.path, self._rename)

    def _rename(self, unfinished: Path) -> None:
        self._unfinished.replace(unfinished)

    def drop(self) -> None:
        """Leave the listing before in its place."""
        if self._writer is not None:
            self._writer.close()
        self._unfinished.unlink(missing_ok=True)

    def _write(self) -> None:
        pa = require_arrow()
        from pyarrow import parquet

        kinds = pa.schema(
            [
                ("row", pa.list_(pa.int64())),
                ("key", pa.list_(pa.string())),
                ("id", pa.string()),
                ("carried", pa.string()),
            ]
        )
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._unfinished, kinds, compression="zstd")
        texts = {"id": json.dumps(self._ids), "carried": f"[{', '.join(self._carried)}]"}
        block = {"row": self._numbers, "key": self._keys, **texts}
        self._writer.write_table(pa.Table.from_pylist([block], kinds))
        self._numbers, self._keys, self._ids, self._carried = [], [], [], []
        self._characters = 0


@dataclass(frozen=True)
class Span:
    """Which rows a listing speaks for."""

    part: Part
    at: float  # when they were read, seconds since 1970
    last: int | None  # the last row that it holds; None if the data set was read to its end

    def covers(self, row: int, at: float) -> bool:
        """Whether it would hold a row that was asked at a time, if the data set still did."""
        return self.part.takes(row) and at < self.at and (self.last is None or row <= self.last)


def read_listing(folder: Path) -> tuple[Any, list[Span]] | None:
    """The rows of all parts: a ``pyarrow.Table`` of ``row``, ``key``, ``id`` and the carried columns, and which rows
    it speaks for; None if there is no listing."""
    pa = require_arrow()
    from pyarrow import parquet

    found: list[tuple[Span, list[dict[str, Any]]]] = []
    for path in folder.glob("*.parquet"):
        with parquet.ParquetFile(path) as file:
            meta = json.loads(file.metadata.metadata[META])
            span = Span(Part(meta["number"], meta["of"]), meta["at"], meta["last"])
            found.append((span, file.read().to_pylist()))
    if not found:
        return None
    rows: list[tuple[int, str, Any, dict[str, Any]]] = []
    later: list[Span] = []
    for span, blocks in sorted(found, key=lambda each: -each[0].at):
        for block in blocks:
            cells = zip(block["row"], block["key"], json.loads(block["id"]), json.loads(block["carried"]), strict=True)
            rows += [row for row in cells if not any(other.covers(row[0], span.at) for other in later)]
        later.append(span)
    rows.sort(key=lambda row: row[0])
    names = dict.fromkeys(name for row in rows for name in row[3])
    columns = {name: column([row[3].get(name) for row in rows]) for name in names}
    first = {
        "row": pa.array([row[0] for row in rows], pa.int64()),
        "key": pa.array([row[1] for row in rows], pa.string()),
    }
    return pa.table({**first, "id": column([row[2] for row in rows]), **columns}), later


def _count(path: Path) -> int:
    """How many rows a listing holds; 0 if there is none."""
    from pyarrow import parquet

    return int(json.loads(parquet.read_metadata(path).metadata[META])["count"]) if path.exists() else 0
