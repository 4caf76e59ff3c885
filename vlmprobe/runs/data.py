"""Data sets as rows: Parquet, JSON Lines and CSV files, folders of ``datasets``, folders of images, frames, iterables.

Files are read piece by piece. A cell is what the file holds; what a column means is decided in ``columns``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmprobe.errors import MessageError, MissingExtraError, near
from vlmprobe.inputs.image_names import SUFFIXES
from vlmprobe.probe.tables import is_table, records_of
from vlmprobe.runs.blocks import Batch, Block, Listed

__all__ = ["Data", "data_of", "open_data", "require_arrow"]

BATCH = 64  # rows of a file that are converted at once: a row may hold an image
BLOCK = 1024  # if no column holds bytes
BLOCK_BYTES = 8 * 2**20  # of lines
CSV_BLOCK = 64 * 2**20  # bytes; a longer line of a CSV file is an error
LINE_BYTES = 64 * 2**20  # a longer line of JSON fails its row
KINDS = "a .parquet, .jsonl or .csv file, a folder that datasets saved, or a folder of images"


@dataclass(frozen=True)
class Data:
    """A data set that can be read, several times if it is a file, a table or a list."""

    rows: Callable[[], Iterator[Any]]  # the rows from the beginning; an error among them fails its row
    total: int | None = None  # how many, if known
    names: list[str] | None = None  # the columns, if all rows have the same
    unkept: frozenset[str] = field(default_factory=frozenset)  # columns that hold bytes: not carried unless asked for
    root: Path | None = None  # the folder that paths start from and must not leave; None for rows from Python
    what: str = "rows"
    blocks: Callable[[], Iterator[Block]] | None = None  # the same rows many at a time, if they are light


def require_arrow() -> Any:
    """The module ``pyarrow``.

    Raises:
        MissingExtraError: if it, or filelock, is not installed.
    """
    try:
        import filelock  # noqa: F401
        import pyarrow
        import pyarrow.compute  # an attribute of pyarrow only once it is imported
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    return pyarrow


def data_of(rows: Any, root: Path | None = None) -> Data:
    """What ``vlmprobe.run`` is given: the path of a data set, a table, or an iterable of requests.

    Raises:
        MessageError: for anything else.
    """
    if isinstance(rows, (str, Path)):
        return open_data(rows, root)
    if is_table(rows):
        names, _ = records_of(rows) or ([], None)
        total = len(rows) if isinstance(rows, Sized) else None
        return Data(lambda: (records_of(rows) or ((), iter(())))[1], total, [str(name) for name in names], root=root)
    if isinstance(rows, (Mapping, bytes)) or not isinstance(rows, Iterable):
        raise MessageError(f"run takes a data set, a table or a list of requests, not {type(rows).__name__}")
    total = len(rows) if isinstance(rows, Sized) else None
    held = rows if isinstance(rows, list) else None
    return Data(lambda: iter(rows), total, root=root, blocks=None if held is None else lambda: _pieces(held))


def open_data(path: str | Path, root: Path | None = None) -> Data:
    """A data set on disk; see the module. ``root`` is the folder of the images, where it is another one.

    Raises:
        MessageError: if there is none at ``path``, or it cannot be read.
    """
    path = Path(path).expanduser()
    if not path.exists():
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise MessageError(f"There is no data set {path}.{near(path.name, beside)} It is {KINDS}.")
    folder = root or (path if path.is_dir() else path.parent)
    kind = path.suffix.lower()
    try:
        if path.is_dir():
            return _folder(path, folder)
        if kind in (".parquet", ".pq"):
            return _parquet([path], folder)
        if kind in (".jsonl", ".ndjson"):
            what = f"JSON Lines file {path}"
            return Data(
                lambda: _json_lines(path), _lines(path), root=folder, what=what, blocks=lambda: _blocks_of_lines(path)
            )
        if kind in (".csv", ".tsv"):
            return _csv(path, folder, "\t" if kind == ".tsv" else ",")
    except OSError as error:
        raise MessageError(f"{path} cannot be read: {error}") from error
    except require_arrow().ArrowException as error:
        raise MessageError(f"{path} cannot be read: {error}") from error
    raise MessageError(f"{path} is no data set that can be read: it is {KINDS}.")


def _folder(path: Path, root: Path) -> Data:
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8")).get("splits", [])
        raise MessageError(f"{path} holds several splits: name one, {', '.join(str(path / each) for each in splits)}.")
    if (path / "state.json").is_file():
        return _saved(path, root)
    if parquet := sorted(path.glob("*.parquet")):
        return _parquet(parquet, root)
    found = sorted(each.relative_to(path) for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
    if not found:
        raise MessageError(f"{path} holds no images and no data set: DATA is {KINDS}.")
    rows = [
        {"id": each.as_posix(), "image": each.as_posix(), "name": each.stem, "folder": each.parent.name}
        for each in found
    ]
    what = f"folder of images {path}"
    return Data(lambda: iter(rows), len(rows), list(rows[0]), root=path, what=what, blocks=lambda: _pieces(rows))


def _parquet(paths: list[Path], root: Path) -> Data:
    require_arrow()
    from pyarrow import parquet

    schema = parquet.read_schema(paths[0])
    total = sum(parquet.read_metadata(path).num_rows for path in paths)

    heavy = _heavy(schema)

    def blocks() -> Iterator[Block]:
        for path in paths:
            with parquet.ParquetFile(path) as file:
                yield from map(Batch, file.iter_batches(batch_size=BATCH if heavy else BLOCK))

    what = f"Parquet file {paths[0]}" if len(paths) == 1 else f"{len(paths)} Parquet files of {paths[0].parent}"
    return Data(lambda: _rows(blocks()), total, list(schema.names), heavy, root, what, None if heavy else blocks)


def _saved(path: Path, root: Path) -> Data:
    """A folder of ``Dataset.save_to_disk``: Arrow streams, numbered."""
    pyarrow = require_arrow()
    files = sorted(path.glob("data-*.arrow"))
    if not files:
        raise MessageError(f"{path} was saved by datasets, and its data-*.arrow files are gone.")

    def batches() -> Iterator[Any]:
        for file in files:
            with pyarrow.memory_map(str(file)) as source:
                yield from pyarrow.ipc.open_stream(source)

    def blocks() -> Iterator[Block]:
        for batch in batches():
            yield from map(Batch, _slices(batch, BATCH if heavy else BLOCK))

    with pyarrow.memory_map(str(files[0])) as source:
        schema = pyarrow.ipc.open_stream(source).schema
    heavy = _heavy(schema)
    total = sum(len(batch) for batch in batches())
    what = f"folder of datasets {path}"
    return Data(lambda: _rows(blocks()), total, list(schema.names), heavy, root, what, None if heavy else blocks)


def _csv(path: Path, root: Path, delimiter: str) -> Data:
    """Every cell is a text: a file without types cannot say whether 007 is a number."""
    require_arrow()
    from pyarrow import csv, string

    def opened(names: list[str]) -> Any:
        return csv.open_csv(
            path,
            read_options=csv.ReadOptions(block_size=CSV_BLOCK),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, string())),
        )

    with opened([]) as reader:
        names = list(reader.schema.names)
    with opened(names) as reader:
        total = sum(len(batch) for batch in reader)

    def blocks() -> Iterator[Block]:
        with opened(names) as reader:
            for batch in reader:
                yield from (Batch(each, empty=True) for each in _slices(batch, BLOCK))

    return Data(lambda: _rows(blocks()), total, names, root=root, what=f"CSV file {path}", blocks=blocks)


def _rows(blocks: Iterator[Block]) -> Iterator[Any]:
    for block in blocks:
        yield from block.rows()


def _slices(batch: Any, count: int) -> Iterator[Any]:
    for start in range(0, len(batch), count):
        yield batch.slice(start, count)


def _pieces(rows: list[Any]) -> Iterator[Block]:
    for start in range(0, len(rows), BLOCK):
        yield Listed(rows[start : start + BLOCK])


def _blocks_of_lines(path: Path) -> Iterator[Block]:
    waiting: list[Any] = []
    size = 0
    for row, characters in _measured_lines(path):
        waiting.append(row)
        size += characters
        if len(waiting) >= BLOCK or size > BLOCK_BYTES:
            yield Listed(waiting)
            waiting, size = [], 0
    if waiting:
        yield Listed(waiting)


def _lines(path: Path) -> int:
    """How many lines a file has, also the last one if nothing ends it; blank ones count."""
    count, last = 0, b"\n"
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(2**20), b""):
            count, last = count + piece.count(b"\n"), piece[-1:]
    return count + (last != b"\n")


def _json_lines(path: Path) -> Iterator[Any]:
    return (row for row, _ in _measured_lines(path))


def _measured_lines(path: Path) -> Iterator[tuple[Any, int]]:
    """What each line holds, and its length in bytes."""
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
            if len(line) >= LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_BYTES)
                yield MessageError(f"line {number} is longer than {LINE_BYTES // 2**20} MB"), 0
                continue
            text = line.strip().removeprefix(b"\xef\xbb\xbf")
            if not text:
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                yield MessageError(f"line {number} is not JSON: {error}"), 0
                continue
            whole = isinstance(row, Mapping)
            yield row if whole else MessageError(f"line {number} is not a JSON object"), len(text)


def _heavy(schema: Any) -> frozenset[str]:
    """Columns that hold bytes anywhere, such as images."""
    return frozenset(each.name for each in schema if "binary" in str(each.type))
