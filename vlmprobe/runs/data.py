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

__all__ = ["Data", "data_of", "open_data", "require_arrow"]

BATCH = 64  # rows of a file that are converted at once: a row may hold an image
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


def require_arrow() -> Any:
    """The module ``pyarrow``.

    Raises:
        MissingExtraError: if it, or filelock, is not installed.
    """
    try:
        import filelock  # noqa: F401
        import pyarrow
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
    return Data(lambda: iter(rows), total, root=root)


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
            return Data(lambda: _json_lines(path), _lines(path), root=folder, what=f"JSON Lines file {path}")
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
    return Data(lambda: iter(rows), len(rows), list(rows[0]), root=path, what=f"folder of images {path}")


def _parquet(paths: list[Path], root: Path) -> Data:
    require_arrow()
    from pyarrow import parquet

    schema = parquet.read_schema(paths[0])
    total = sum(parquet.read_metadata(path).num_rows for path in paths)

    def rows() -> Iterator[Any]:
        for path in paths:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=BATCH if _heavy(schema) else BATCH * 16):
                    yield from batch.to_pylist()

    what = f"Parquet file {paths[0]}" if len(paths) == 1 else f"{len(paths)} Parquet files of {paths[0].parent}"
    return Data(rows, total, list(schema.names), _heavy(schema), root, what)


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

    def rows() -> Iterator[Any]:
        for batch in batches():
            for start in range(0, len(batch), BATCH):
                yield from batch.slice(start, BATCH).to_pylist()

    with pyarrow.memory_map(str(files[0])) as source:
        schema = pyarrow.ipc.open_stream(source).schema
    total = sum(len(batch) for batch in batches())
    return Data(rows, total, list(schema.names), _heavy(schema), root, f"folder of datasets {path}")


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

    def rows() -> Iterator[Any]:
        with opened(names) as reader:
            for batch in reader:
                for start in range(0, len(batch), BATCH):
                    yield from map(_without_empty, batch.slice(start, BATCH).to_pylist())

    return Data(rows, total, names, root=root, what=f"CSV file {path}")


def _without_empty(row: Mapping[str, Any]) -> dict[str, Any]:
    """A cell without text holds nothing."""
    return {name: None if cell == "" else cell for name, cell in row.items()}


def _lines(path: Path) -> int:
    """How many lines a file has, also the last one if nothing ends it; blank ones count."""
    count, last = 0, b"\n"
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(2**20), b""):
            count, last = count + piece.count(b"\n"), piece[-1:]
    return count + (last != b"\n")


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), b""), 1):
            if len(line) >= LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = file.readline(LINE_BYTES)
                yield MessageError(f"line {number} is longer than {LINE_BYTES // 2**20} MB")
                continue
            text = line.strip().removeprefix(b"\xef\xbb\xbf")
            if not text:
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                yield MessageError(f"line {number} is not JSON: {error}")
                continue
            yield row if isinstance(row, Mapping) else MessageError(f"line {number} is not a JSON object")


def _heavy(schema: Any) -> frozenset[str]:
    """Columns that hold bytes anywhere, such as images."""
    return frozenset(each.name for each in schema if "binary" in str(each.type))
