"""Full rows of logits on disk: written as they are computed, memory-mapped when read.

A file is an ordinary safetensors file (its header is filled in at the end), so any reader of that format can open it:
``safetensors.torch.load_file``, or :func:`load_rows`, which maps it as ``TokenTable.logits`` does.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from vlmprobe.errors import GenerationOptionError, MissingExtraError, ResultError, near
from vlmprobe.results.layouts import require_readable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OnDisk", "RowFile", "Slots", "StepRows", "load_rows", "row_files"]

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # dtype -> its name in safetensors
FORMAT = 1  # version of the layout; 0.1 wrote none, which is read as 0 and has the same layout
METADATA = "vlmprobe_rows"  # key of the header's metadata


@dataclass(frozen=True)
class OnDisk:
    """Stores full rows on disk instead of in memory: ``keep=OnDisk("rows", dtype="float16")``, or a plain ``Path``.

    Each result gets a new file ``000000.safetensors``, ``000001.safetensors``, ... in the folder, and
    ``result.meta["logits_file"]`` names it. bfloat16 is lossless if the model runs in bfloat16; float16 rounds
    each logit to about three decimal digits.
    """

    folder: str | os.PathLike[str]
    dtype: str = "float32"  # or "float16", "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in NAMES:
            raise GenerationOptionError(
                f"rows are stored as {', '.join(NAMES)}, not {self.dtype!r}.{near(str(self.dtype), NAMES)}"
            )
        numpy_dtype(self.dtype)


class RowFile:
    """A new file to which rows of several tables are written in any order, with only a few rows in memory.

    Args:
        place: folder and dtype.
        tables: name -> number of rows; the last table may be shorter when the file is closed.
    """

    def __init__(self, place: OnDisk, tables: Mapping[str, int]) -> None:
        self.dtype = place.dtype
        self.tables = dict(tables)
        self._first = dict(zip(tables, np.cumsum([0, *tables.values()]).tolist(), strict=False))  # of each table
        self.path, self._file = _new(Path(place.folder))
        self._data = 8 + 128 * (len(tables) + 1)  # offset of the rows: after the length of the header, and the header
        self._width = 0  # V, known from the first row

    def at(self, table: str, rows: Iterable[int]) -> Slots:
        """A sink whose appended rows go to these rows of a table, in order."""
        return Slots(self, [[(table, int(row))] for row in rows])

    def blank(self, table: str, rows: Iterable[int]) -> None:
        """Fill rows that have no distribution with NaN."""
        import torch

        for row in rows:
            self.write(table, row, torch.full((self._width,), torch.nan))

    def write(self, table: str, row: int, logits: Tensor) -> None:
        """Write rows [n, V] from ``row`` on."""
        self._width = self._width or int(logits.shape[-1])
        self._file.seek(self._place(table, row))
        self._file.write(_raw(logits, self.dtype))

    def close(self, counts: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
        """Finish the file; returns each table as a read-only memory-mapped array [T, V]."""
        self.tables |= counts or {}
        header: dict[str, Any] = {"__metadata__": {METADATA: json.dumps({"format": FORMAT})}}
        rows = 0
        for name, count in self.tables.items():
            offsets = [rows * self._row, (rows + count) * self._row]
            header[name] = {"dtype": NAMES[self.dtype], "shape": [count, self._width], "data_offsets": offsets}
            rows += count
        text = json.dumps(header, separators=(",", ":")).encode()
        self._file.truncate(self._data + rows * self._row)
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._data - 8) + text.ljust(self._data - 8))
        self._file.close()
        return load_rows(self.path)

    def discard(self) -> None:
        """Remove the file unless it was finished."""
        if not self._file.closed:
            self._file.close()
            self.path.unlink(missing_ok=True)

    @property
    def _row(self) -> int:
        """Bytes of a row."""
        return self._width * int(numpy_dtype(self.dtype).itemsize)

    def _place(self, table: str, row: int) -> int:
        return self._data + (self._first[table] + row) * self._row


class Slots:
    """Sequential rows, each for one or several places ``(table, row)`` of a file."""

    def __init__(self, file: RowFile, places: Sequence[Sequence[tuple[str, int]]]) -> None:
        self._file = file
        self._places = iter(places)

    def append(self, logits: Tensor) -> None:
        """Take rows [n, V]."""
        for each in logits:
            for table, row in next(self._places):
                self._file.write(table, row, each)


class StepRows:
    """Rows of a batch of N, step by step, for the ``output`` table of each sequence's file."""

    def __init__(self, files: Sequence[RowFile], first: int) -> None:
        self._files = files
        self._step = first

    def append(self, logits: Tensor) -> None:
        """Take rows [N, V] of one step."""
        for file, row in zip(self._files, logits, strict=True):
            file.write("output", self._step, row)
        self._step += 1


@contextmanager
def row_files(place: OnDisk | None, tables: Sequence[Mapping[str, int]]) -> Iterator[list[RowFile]]:
    """A new file for each of ``tables``, or none without a place; files not closed at the end are removed."""
    files: list[RowFile] = []
    try:
        for each in tables if place is not None else ():
            assert place is not None
            files.append(RowFile(place, each))
        yield files
    finally:
        for file in files:
            file.discard()


def load_rows(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tables of a file of rows by name, each [T, V], read-only and memory-mapped: rows are read on access.

    Args:
        path: such as ``result.meta["logits_file"]``; tables are ``"prompt"`` and ``"output"``, or candidates by number.

    Raises:
        ResultError: if there is no such file, or a later vlmprobe wrote it.
        MissingExtraError: for bfloat16 without ``ml_dtypes``.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as opened:  # checks the header against the file's length
            described = json.loads((opened.metadata() or {}).get(METADATA, "{}"))
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        layout = described.get("format", 0)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise ResultError(f"{path} is not a file of rows ({type(error).__name__}: {error}).") from error
    require_readable(path, layout, FORMAT, oldest=0)
    header.pop("__metadata__", None)
    types = {table["dtype"] for table in header.values()}
    shapes = [table["shape"] for table in header.values()]
    names = {stored: name for name, stored in NAMES.items()}
    alike = len(types) == 1 and types <= set(names) and {len(shape) for shape in shapes} == {2}
    if not alike or len({width for _, width in shapes}) > 1 or not sum(count * width for count, width in shapes):
        raise ResultError(f"{path} is not a file of rows: its tables differ in dtype or vocabulary.")
    dtype, width = numpy_dtype(names[types.pop()]), shapes[0][1]
    shape = (sum(count for count, _ in shapes), width)
    mapped = np.memmap(path, dtype=dtype, mode="r", offset=8 + length, shape=shape)
    starts = {name: table["data_offsets"][0] // (width * dtype.itemsize) for name, table in header.items()}
    return {name: mapped[start : start + header[name]["shape"][0]] for name, start in starts.items()}


def numpy_dtype(name: str) -> Any:
    """The NumPy dtype of that name; bfloat16 comes from ``ml_dtypes``."""
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise MissingExtraError("ml_dtypes", "bfloat16") from error
    return np.dtype(ml_dtypes.bfloat16)


def _raw(logits: Tensor, dtype: str) -> bytes:
    import torch

    held = logits.detach().to(getattr(torch, dtype)).cpu().contiguous()
    return bytes((held.view(torch.int16) if dtype == "bfloat16" else held).numpy().tobytes())


def _new(folder: Path) -> tuple[Path, BinaryIO]:
    """The next numbered file of a folder, created exclusively."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise GenerationOptionError(f"rows are kept in a folder, and {folder} is a file") from error
    held = [int(path.stem) for path in folder.glob("*.safetensors") if path.stem.isdigit()]
    number = max(held, default=-1) + 1
    while True:
        path = folder / f"{number:06d}.safetensors"
        try:
            return path, path.open("xb")
        except FileExistsError:
            number += 1
