"""The shards of a run: Parquet files of records that appear whole, are read by column, and are merged when many."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmprobe.errors import GenerationOptionError, RunError
from vlmprobe.runs.data import require_arrow
from vlmprobe.runs.files import UNFINISHED, put_in_place, sync_folder
from vlmprobe.runs.records import together

__all__ = ["META", "RESULTS", "Part", "Shards", "added", "read_key", "read_meta", "read_records", "states", "valid"]

RESULTS = "results"
META = b"vlmprobe"  # the key of a shard's metadata
FULL = 1000  # rows of a shard that is not merged with others
MANY = 100  # shards that are not full
GROUP = 10_000  # rows that a merged shard holds together
TRIES = 5  # to list and read shards while another process merges its own


@dataclass(frozen=True)
class Part:
    """Which rows a process takes: those whose number, divided by ``of``, leaves ``number``."""

    number: int = 0
    of: int = 1
    actor: int | None = None  # that writes records of this part beside others

    @classmethod
    def read(cls, given: Any) -> Part:
        """A part from ``"3/8"`` or ``(3, 8)``.

        Raises:
            GenerationOptionError: for anything else.
        """
        if isinstance(given, Part):
            return given
        pair = re.fullmatch(r"(\d+)/(\d+)", given.strip()) if isinstance(given, str) else None
        numbers: Any = tuple(map(int, pair.groups())) if pair else given
        if not (isinstance(numbers, tuple) and len(numbers) == 2 and all(type(each) is int for each in numbers)):
            raise GenerationOptionError(f"a part is written I/N, such as 0/8, not {given!r}")
        number, of = numbers
        if of < 1 or not 0 <= number < of:
            raise GenerationOptionError(
                f"the parts of {of} are numbered from 0 to {max(of - 1, 0)}: {number}/{of} is none"
            )
        return cls(number, of)

    @property
    def name(self) -> str:
        """For names of files."""
        return f"{'' if self.actor is None else f'actor{self.actor}-'}{self.number}of{self.of}"

    def takes(self, row: int) -> bool:
        """Whether a row is of this part."""
        return row % self.of == self.number


@dataclass
class Shards:
    """The shards that one process writes, the holder of the part's lock."""

    folder: Path  # of the results
    part: Part = field(default_factory=Part)
    meta: Mapping[str, Any] = field(default_factory=dict)  # written into every shard

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f".{self.part.name}-*{UNFINISHED}"):
            left.unlink(missing_ok=True)
        self._small = [path for path in self.own() if _rows(path) < FULL]  # those that are merged when they are many
        self._last = max((_number(path) for path in self.own()), default=0)

    def own(self) -> list[Path]:
        """The files of this part, oldest first."""
        return sorted(self.folder.glob(f"{self.part.name}-*.parquet"), key=_number)

    def write(self, table: Any, seconds: Mapping[str, float] | None = None) -> Path:
        """Write records as the next shard, and merge if there are too many; ``seconds`` says what they took."""
        path = self._next()
        meta = {**self.meta, **({"seconds": dict(seconds)} if seconds else {})}
        put_in_place(path, lambda unfinished: self._write(unfinished, [table], meta))
        if len(table) < FULL:
            self._small.append(path)
        self.merge()
        return path

    def merge(self, most: int = MANY) -> None:
        """Join the shards that are not full into one, if there are more than ``most``; beaten records are dropped.

        The joined shard appears before the others go: in between, and after a kill there, records are there twice,
        and readers take one of each.
        """
        small = self._small
        if len(small) <= most:
            return
        best = _best(_columns(small))
        path = self._next()
        written_by = _distinct(map(read_meta, small))
        meta = written_by[0] if len(written_by) == 1 else {**self.meta, "merged": written_by}
        put_in_place(path, lambda unfinished: self._write(unfinished, _chosen(small, best), meta))
        self._small = [path] if _rows(path) < FULL else []
        for each in small:
            each.unlink(missing_ok=True)
        sync_folder(self.folder)

    def _next(self) -> Path:
        self._last += 1
        return self.folder / f"{self.part.name}-{self._last:06d}.parquet"

    def _write(self, path: Path, tables: Any, meta: Mapping[str, Any]) -> None:
        require_arrow()
        from pyarrow import parquet

        writer = None
        try:
            for table in tables:
                table = table.replace_schema_metadata({META: json.dumps(dict(meta), default=str)})
                writer = writer or parquet.ParquetWriter(path, table.schema, compression="zstd")
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()


def read_meta(path: Path) -> dict[str, Any]:
    """What a shard says of the process that wrote it; of several, if it was merged, under ``merged``."""
    require_arrow()
    from pyarrow import parquet

    return dict(json.loads((parquet.read_metadata(path).metadata or {}).get(META, b"{}")))


def read_records(folder: Path, columns: Sequence[str] | None = None, without: Collection[str] = ()) -> Any:
    """The records of a run that count, of all parts: of one key, ok before failed, then the latest.

    Args:
        folder: of the results.
        columns: to read; all if None. Those that no shard has are left out.
        without: columns that are not read.

    Returns:
        A ``pyarrow.Table``, in the order of the rows.
    """
    found = _listed(folder, lambda paths: list(_read(paths, columns, without)))
    if not found:
        return None
    return valid(together(found))


def read_key(folder: Path, *keys: str) -> Any:
    """The records of keys that count, a ``pyarrow.Table`` or None; other shards than their own are not read but for
    their keys."""
    pa = require_arrow()
    wanted = pa.array(keys, pa.string())

    def holding(paths: Sequence[Path]) -> list[Any]:
        held = [path for path in paths if pa.compute.any(pa.compute.is_in(_keys(path), wanted)).as_py()]
        return [table.filter(pa.compute.is_in(table["key"], wanted)) for table in _read(held, None)]

    found = _listed(folder, holding)
    return valid(together(found)) if found else None


def valid(table: Any) -> Any:
    """The records that count among several of the same keys: ok before failed, then the latest; by row."""
    pa = require_arrow()
    order = pa.compute.sort_indices(
        pa.table({"key": table["key"], "bad": _bad(table), "at": table["at"]}),
        sort_keys=[("key", "ascending"), ("bad", "ascending"), ("at", "descending")],
    )
    keys = table["key"].take(order).combine_chunks()
    if len(keys) > 1:
        first = pa.compute.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1))
        order = order.filter(pa.concat_arrays([pa.array([True]), _plain(first)]))
    kept = table.take(order)
    return kept.take(pa.compute.sort_indices(kept, sort_keys=[("row", "ascending"), ("key", "ascending")]))


def states(folder: Path) -> dict[str, bool]:
    """The keys of a run, of all parts, and whether each is answered (else it failed)."""
    known: dict[str, bool] = {}
    for table in _listed(folder, lambda paths: list(_read(paths, ["key", "status"]))):
        bad = _bad(table)
        for key in table["key"].filter(bad).to_pylist():
            known.setdefault(key, False)
        known |= dict.fromkeys(table["key"].filter(require_arrow().compute.invert(bad)).to_pylist(), True)
    return known


def _listed(folder: Path, read: Any) -> Any:
    """What ``read`` makes of the shards, listed again where one went away meanwhile: another process merged it."""
    for _ in range(TRIES - 1):
        try:
            return read(sorted(folder.glob("*.parquet")))
        except FileNotFoundError:
            continue
    return read(sorted(folder.glob("*.parquet")))


def _keys(path: Path) -> Any:
    return next(_read([path], ["key"]))["key"]


def _distinct(metas: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the processes say that wrote shards, each once, with the sums of their seconds."""
    found: dict[str, dict[str, Any]] = {}
    for meta in metas:
        for each in meta.get("merged", [meta]):
            about = {name: value for name, value in each.items() if name != "seconds"}
            held = found.setdefault(json.dumps(about, sort_keys=True), about)
            if "seconds" in each:
                held["seconds"] = added(held.get("seconds", {}), each["seconds"])
    return list(found.values())


def added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Seconds by part, of both."""
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}


def _read(paths: Sequence[Path], columns: Sequence[str] | None, without: Collection[str] = ()) -> Iterator[Any]:
    pa = require_arrow()
    from pyarrow import parquet

    for path in paths:
        try:
            with parquet.ParquetFile(path, memory_map=True) as file:
                held = file.schema_arrow.names
                names = held if columns is None else [name for name in columns if name in held]
                names = [name for name in names if name not in without]
                yield file.read(columns=names).replace_schema_metadata(None)
        except pa.ArrowException as error:
            raise RunError(
                f"the shard {path} is damaged ({error}): move it away, and the next run asks its rows again"
            ) from error


def _columns(paths: Sequence[Path]) -> Any:
    """Keys, states and times of shards, with the place of each record: shard and row in it."""
    pa = require_arrow()
    found = []
    for place, table in enumerate(_read(paths, ["key", "status", "at", "row"])):
        shard, row = pa.array([place] * len(table), pa.int32()), pa.array(range(len(table)), pa.int32())
        found.append(table.append_column("shard", shard).append_column("place", row))
    return together(found)


def _best(table: Any) -> dict[int, list[int]]:
    """Of each shard, the places of its records that count among them all."""
    found: dict[int, list[int]] = {}
    kept = valid(table)
    for shard, place in zip(kept["shard"].to_pylist(), kept["place"].to_pylist(), strict=True):
        found.setdefault(shard, []).append(place)
    return found


def _chosen(paths: Sequence[Path], best: Mapping[int, list[int]]) -> Iterator[Any]:
    """The records of shards that count, in tables of the same columns."""
    pa = require_arrow()
    from pyarrow import parquet

    whole = together([parquet.read_schema(path).empty_table() for path in paths])
    pending: list[Any] = []
    for place, table in enumerate(_read(paths, None)):
        kept = table.take(pa.array(sorted(best.get(place, ())), pa.int64()))
        pending.append(together([whole, kept]).select(whole.column_names))
        if sum(map(len, pending)) >= GROUP:
            yield together(pending).cast(whole.schema)
            pending = []
    if pending:
        yield together(pending).cast(whole.schema)


def _bad(table: Any) -> Any:
    pa = require_arrow()
    return pa.compute.not_equal(table["status"], "ok")


def _plain(array: Any) -> Any:
    return array.combine_chunks() if hasattr(array, "combine_chunks") else array


def _rows(path: Path) -> int:
    require_arrow()
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)


def _number(path: Path) -> int:
    found = path.stem.rpartition("-")[2]
    return int(found) if found.isdigit() else 0
