"""``open_run``: what a run has found, as a table of its rows, as single results, and the failed ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmprobe.errors import ResultError
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable, empty_numbers, joined
from vlmprobe.runs.data import require_arrow
from vlmprobe.runs.description import read_description
from vlmprobe.runs.fields import PROMPT, RESERVED, TOKENS, schema
from vlmprobe.runs.listing import FOLDER, Span, read_listing
from vlmprobe.runs.records import together
from vlmprobe.runs.shards import RESULTS, read_key, read_meta, read_records

__all__ = ["OpenedRun", "open_run"]

FROM_ROWS = ("key", "row", "id")


def open_run(folder: str | Path) -> OpenedRun:
    """The run in a folder, also while it is written.

    Raises:
        RunError: if there is none.
        MissingExtraError: without pyarrow.
    """
    require_arrow()
    folder = Path(folder)
    return OpenedRun(folder, read_description(folder))


class OpenedRun:
    """A run over a data set. It reads the folder anew with every call."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.about = about  # run.json: the model and the options

    def table(self, columns: list[str] | None = None) -> Any:
        """A ``pyarrow.Table``, one row per row of the data set (and sample): equal rows have the same answer.

        Ids and carried columns are those of the data set as it was last read to its end. A row that was never asked
        is not there.

        Args:
            columns: to read; all if None.
        """
        return self._table(columns)

    def _table(self, columns: list[str] | None, without: Collection[str] = ()) -> Any:
        pa = require_arrow()
        listed = read_listing(self.folder / FOLDER)
        wanted = None if columns is None else list(dict.fromkeys([*columns, *FROM_ROWS, "status", "at"]))
        records = read_records(self.folder / RESULTS, wanted, without)
        if records is None:
            empty = schema().empty_table()
            return empty if columns is None else empty.select([each for each in columns if each in empty.column_names])
        if listed is not None:
            records = _per_row(records, *listed, columns)
        missing = [name for name in columns or () if name not in records.column_names]
        if missing:
            raise ResultError(
                f"the run has no column {missing[0]!r}; it has {', '.join(map(repr, records.column_names))}"
            )
        assert isinstance(records, pa.Table)
        return records if columns is None else records.select(columns)

    def to_pandas(self, columns: list[str] | None = None) -> DataFrame:
        """:meth:`table` as a ``pandas.DataFrame``."""
        data_frame({})  # for the error that says what to install
        return self.table(columns).to_pandas()

    def failed(self) -> Any:
        """The rows that failed, a ``pyarrow.Table``: row, key, id, question, images, error_type and error."""
        table = self.table(["row", "key", "id", "status", "question", "images", "error_type", "error"])
        return table.filter(require_arrow().compute.equal(table["status"], "failed")).drop_columns("status")

    def result(self, which: Any) -> Result:
        """The answer to one row, with its tokens, from its key or its id.

        It has no images, nor where they stand in the prompt; the prompt's tokens only with ``prompt_tokens``.

        Raises:
            ResultError: if there is no such row, several of that id have other answers, or it failed.
        """
        table = self.overview_table()
        keys, ids = table["key"].to_pylist(), table["id"].to_pylist()
        found = [place for place, key in enumerate(keys) if key == which]
        found = found or [place for place, id in enumerate(ids) if id == which and id is not None]
        found = found or [place for place, id in enumerate(ids) if id is not None and str(id) == str(which)]
        if not found:
            raise ResultError(f"the run has no row of key or id {which!r}")
        if len({keys[place] for place in found}) > 1:
            raise ResultError(
                f"{len(found)} rows have the id {which!r}, with several answers: name one by its key, "
                f"such as {keys[found[0]]!r}"
            )
        row = table.slice(found[0], 1).to_pylist()[0]
        if row["status"] != "ok":
            raise ResultError(f"row {row['row']} failed: {row['error_type']}: {row['error']}")
        return self.results_of([row])[0]

    def overview_table(self) -> Any:
        """:meth:`table` without the columns of tokens."""
        return self._table(None, without={*TOKENS, *PROMPT})

    def results_of(self, rows: Sequence[Mapping[str, Any]]) -> list[Result]:
        """The answers to those of the rows, of :meth:`overview_table`, that did not fail."""
        rows = [row for row in rows if row["status"] == "ok"]
        if not rows:
            return []
        found = read_key(self.folder / RESULTS, *(row["key"] for row in rows)).to_pylist()
        records = {record["key"]: record for record in found}
        return [_result({**records[row["key"]], **row}, self.about) for row in rows]

    def report(
        self,
        out: str | Path,
        *,
        answers: Any = None,
        against: str | Path | OpenedRun | None = None,
        root: str | Path | None = None,
    ) -> Path:
        """Write a folder with a page of figures, a table of all rows to filter, and a page of each telling row.

        Args:
            out: the folder. If it holds anything, it must be of an earlier report, whose files are replaced.
            answers: right answers by id, instead of those of the data set: a data set with the columns ``id`` and
                ``answer``, as :func:`vlmprobe.run` takes it, or a mapping. Rows that it does not name keep theirs.
            against: another run, whose answers to the same questions are compared.
            root: where paths of images start, if they have been moved since the run.

        Returns:
            The path of ``index.html``.

        Raises:
            ResultError: for a folder with other files, answers without ids, or a run without any row.
            RunError: if there is no run in ``against``.
        """
        from vlmprobe.runs.report import write_report

        other = open_run(against) if isinstance(against, (str, Path)) else against
        return write_report(self, Path(out), answers, other, None if root is None else Path(root))

    def shards(self) -> list[dict[str, Any]]:
        """What each shard says of the process that wrote it: host, device, versions; of several, once merged."""
        paths = sorted((self.folder / RESULTS).glob("*.parquet"))
        return [{"file": path.name, **each} for path in paths for each in _writers(read_meta(path))]

    def __repr__(self) -> str:
        return f"OpenedRun({str(self.folder)!r}, model={self.about.get('model')!r})"


def _writers(meta: dict[str, Any]) -> list[dict[str, Any]]:
    merged: list[dict[str, Any]] = meta.get("merged", [meta])
    return merged


def _per_row(records: Any, rows: Any, spans: Sequence[Span], wanted: Sequence[str] | None) -> Any:
    """Records joined to the rows of the data set, and those of rows that came after it was read."""
    pa = require_arrow()
    keys = [key.partition("-")[0] for key in records["key"].to_pylist()]
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    pairs = [(row, place) for row, key in enumerate(rows["key"].to_pylist()) for place in places.get(key, ())]
    listed = set(rows["key"].to_pylist())
    at = pa.compute.cast(records["at"], pa.int64()).to_pylist()
    numbers = records["row"].to_pylist()
    later = [
        place
        for place, key in enumerate(keys)
        if key not in listed and not any(span.covers(numbers[place], at[place] / 1e6) for span in spans)
    ]
    of_row = pa.array([row for row, _ in pairs], pa.int64())
    of_record = pa.array([place for _, place in pairs], pa.int64())
    known = records.take(of_record)
    own = rows.take(of_row)
    for name in [each for each in own.column_names if each != "key"]:
        if name in known.column_names:
            known = known.set_column(known.column_names.index(name), name, own[name])
        elif wanted is None or name in wanted:  # the data set has got a new column
            known = known.append_column(name, own[name])
    gone = [name for name in known.column_names if name not in RESERVED and name not in own.column_names]
    known = known.drop_columns(gone)
    if not later:
        return known
    return together([known, records.take(pa.array(later, pa.int64()))])


def _result(row: Mapping[str, Any], about: Mapping[str, Any]) -> Result:
    meta: dict[str, Any] = {name: about.get(name) for name in ("model", "revision", "adapter", "dtype", "engine")}
    meta |= {"question": row["question"], "finish_reason": row["finish_reason"], "batch_size": row["batch_size"]}
    meta |= {"value_kind": row["value_kind"], "timings": {"row_s": row["seconds"]}}
    meta |= {"image_sizes": [[each["width"], each["height"]] for each in row["images"] or ()]}
    known = {*schema(prompt=True).names, "id"}
    meta |= {name: value for name, value in row.items() if name not in known}
    meta |= {} if row["id"] is None else {"id": row["id"]}
    meta |= {} if row["candidates"] is None else {"candidates": row["candidates"]}
    first = int(row["n_prompt"] or 0)
    positions = np.arange(first, first + row["n_tokens"], dtype=np.int64)
    prompt: TokenTable | None = None
    if row.get("prompt_token") is not None:
        prompt = _tokens(row, PROMPT, np.array(row["prompt_token_position"], dtype=np.int64))
    return Result(row["text"], prompt, _tokens(row, TOKENS, positions), None, meta)


def _tokens(row: Mapping[str, Any], columns: Mapping[str, tuple[str, str]], positions: np.ndarray) -> TokenTable:
    held: dict[str, Any] = {of: row[name] for name, (of, _) in columns.items() if of != "positions"}
    count = len(held["tokens"])
    wide = max((len(each) for each in held["top_ids"] or ()), default=0)
    numbers: dict[str, Any] = empty_numbers(count, wide)
    for name, array in numbers.items():
        if held[name]:
            array[:] = np.array(held[name], dtype=array.dtype)
    ids = None if held["ids"] is None else np.array(held["ids"], dtype=np.int64)
    return TokenTable(
        ids=ids,
        tokens=held["tokens"],
        kinds=held["kinds"],
        positions=positions,
        offsets=joined(held["tokens"]),
        top_tokens=held["top_tokens"],
        **numbers,
    )
