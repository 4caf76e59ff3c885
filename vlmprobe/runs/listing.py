"""The rows of a data set as they were last read: number, key, id and carried columns of each.

A record belongs to a key, and several rows may have one; the listing says which, with their ids and labels as they are
now, so that records need not be written again. It is written when the data set has been read, and replaces the one
before; a run without one (killed the first time) has the rows of its records.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmprobe.runs.data import require_arrow
from vlmprobe.runs.files import UNFINISHED, sync_folder
from vlmprobe.runs.keys import Row
from vlmprobe.runs.records import column
from vlmprobe.runs.shards import Part

__all__ = ["FOLDER", "Listing", "Span", "read_listing"]

FOLDER = "rows"
TOGETHER = 10_000  # rows that are written at once
META = b"vlmprobe"


class Listing:
    """Writes the listing of a part while its rows are read."""

    def __init__(self, folder: Path, part: Part) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{part.name}.parquet"
        self.count = 0
        self._part = part
        self._unfinished = folder / f".{self.path.name}{UNFINISHED}"
        self._unfinished.unlink(missing_ok=True)
        self._rows: list[tuple[int, str, str | None, str | None]] = []
        self._writer: Any = None

    def add(self, row: Row) -> None:
        """A row that was read."""
        own = None if row.id is None else json.dumps(row.id)
        carried = json.dumps(row.carry) if row.carry else None
        self._rows.append((row.number, row.key, own, carried))
        self.count += 1
        if len(self._rows) >= TOGETHER:
            self._write()

    def close(self, whole: bool, at: float) -> None:
        """Put the listing in the place of the one before.

        Args:
            whole: whether all rows were read; else a listing of more rows stays.
            at: when, in seconds since 1970: of two parts that hold the same row, the later one says what it is.
        """
        from pyarrow import parquet

        before = parquet.read_metadata(self.path).num_rows if self.path.exists() else 0
        if whole or self.count >= before:
            self._write()
            meta = {"number": self._part.number, "of": self._part.of, "at": at, "whole": whole}
            self._writer.add_key_value_metadata({META.decode(): json.dumps(meta)})
            self._writer.close()
            with self._unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            self._unfinished.replace(self.path)
            sync_folder(self.path.parent)
        else:
            self.drop()

    def drop(self) -> None:
        """Leave the listing before in its place."""
        if self._writer is not None:
            self._writer.close()
        self._unfinished.unlink(missing_ok=True)

    def _write(self) -> None:
        pa = require_arrow()
        from pyarrow import parquet

        kinds = {"row": pa.int64(), "key": pa.string(), "id": pa.string(), "carried": pa.string()}
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._unfinished, pa.schema(kinds.items()), compression="zstd")
        columns = list(zip(*self._rows, strict=True)) or [()] * len(kinds)
        arrays = [pa.array(cells, kind) for cells, kind in zip(columns, kinds.values(), strict=True)]
        self._writer.write_table(pa.table(dict(zip(kinds, arrays, strict=True))))
        self._rows = []


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

    found: list[tuple[Span, Any]] = []
    for path in folder.glob("*.parquet"):
        table = parquet.read_table(path)
        meta = json.loads(parquet.read_metadata(path).metadata[META])
        last = None if meta["whole"] else max(table["row"].to_pylist(), default=-1)
        part = Part(meta["number"], meta["of"])
        found.append((Span(part, meta["at"], last), table.replace_schema_metadata(None)))
    if not found:
        return None
    tables = []
    later: list[Span] = []
    for span, table in sorted(found, key=lambda each: -each[0].at):
        kept = [not any(other.covers(row, span.at) for other in later) for row in table["row"].to_pylist()]
        tables.append(table.filter(pa.array(kept, pa.bool_())))
        later.append(span)
    return _unpacked(pa.concat_tables(tables).sort_by("row")), later


def _unpacked(table: Any) -> Any:
    pa = require_arrow()
    carried = [json.loads(each) if each else {} for each in table["carried"].to_pylist()]
    names = dict.fromkeys(name for each in carried for name in each)
    own = column([None if each is None else json.loads(each) for each in table["id"].to_pylist()])
    further = {name: column([each.get(name) for each in carried]) for name in names}
    return pa.table({"row": table["row"], "key": table["key"], "id": own, **further})
