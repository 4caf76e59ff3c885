"""Timed tasks of runs over data sets: what a run adds to the model, bytes of a row, and the time of a start."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

__all__ = ["MEASURED", "over_many", "with_candidates"]

Variants = Mapping[str, Callable[[], Any] | str]
SHARD = 1000  # rows, as a run writes them
TEMPLATE_ROWS = 100  # that are really asked, and whose records the others repeat


def _rows(number: int, folder: Path, **more: Any) -> list[dict[str, Any]]:
    """Rows about files of pictures of the embedded model's kind, all different."""
    from vlmprobe.demo.scenes import scene_at

    rows = []
    for place in range(number):
        path = folder / f"{place}.png"
        scene_at(11, place).picture.save(path)
        rows.append({"id": place, "question": "Describe the picture.", "image": str(path), **more})
    return rows


def over_many(rows: int = 256, new: int = 8) -> Variants:
    """The same rows asked by ``generate_many`` and by ``run``, into a new folder each time."""
    import vlmprobe

    probe = vlmprobe.load("demo")
    folder = Path(mkdtemp())
    listed, numbers = _rows(rows, folder), count()
    options: dict[str, Any] = {"max_new_tokens": new, "do_sample": False}

    def bare() -> list[str]:
        return [each.text for each in probe.generate_many(listed, progress=False, **options)]

    def over() -> Any:
        return vlmprobe.run(probe, listed, out=folder / f"run-{next(numbers)}", progress=False, **options)

    summary = over()
    assert (summary.asked, summary.failed) == (rows, 0)
    assert vlmprobe.open_run(summary.folder).table()["text"].to_pylist() == bare(), (
        "the same answers; and both have run"
    )
    return {"generate_many": bare, "run": over}


def with_candidates(rows: int = 256, new: int = 8) -> Variants:
    """A run over rows with two candidates each, and over the same rows without."""
    import vlmprobe

    probe = vlmprobe.load("demo")
    folder = Path(mkdtemp())
    bare, numbers = _rows(rows, folder), count()
    scored = [{**row, "candidates": ["yes", "no"]} for row in bare]

    def over(listed: list[dict[str, Any]]) -> Any:
        out = folder / f"run-{next(numbers)}"
        return vlmprobe.run(probe, listed, out=out, progress=False, max_new_tokens=new, do_sample=False)

    return {"run": lambda: over(bare), "run with candidates": lambda: over(scored)}


def bytes_per_row(rows: int = 1000, tokens: int = 5, alternatives: int = 10) -> dict[str, Any]:
    """Bytes that a run's folder takes for each row, of answers of ``tokens`` tokens with their alternatives."""
    import vlmprobe

    folder = Path(mkdtemp())
    probe = vlmprobe.load("demo")
    how = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "alternatives": alternatives}
    try:
        out = folder / "run"
        vlmprobe.run(probe, _rows(rows, folder), out=out, progress=False, **how)
        counted = vlmprobe.open_run(out).table()["n_tokens"].to_pylist()
        assert counted == [tokens] * rows, "answers of that length"
        return {"bytes": sum(each.stat().st_size for each in out.rglob("*") if each.is_file()) / rows}
    finally:
        shutil.rmtree(folder)


@contextmanager
def finished(rows: int, pictures: int, at: Path | None = None) -> Iterator[tuple[Any, Path, Path]]:
    """A probe, a data set of ``rows`` rows about ``pictures`` files, and a run in which all of them are answered.

    Some rows are asked; the records of the others repeat theirs, under their own keys.
    """
    import pyarrow as pa
    from pyarrow import parquet

    import vlmprobe
    from vlmprobe.runs import remembered
    from vlmprobe.runs.block_keys import Keyed
    from vlmprobe.runs.columns import Naming
    from vlmprobe.runs.data import open_data
    from vlmprobe.runs.images import Images
    from vlmprobe.runs.keys import Reader
    from vlmprobe.runs.reading import blocks_of
    from vlmprobe.runs.shards import META, Part

    folder = Path(mkdtemp(dir=at))
    try:
        (folder / "images").mkdir()
        content = next((Path(vlmprobe.__file__).parent / "demo" / "pictures").glob("*.png")).read_bytes()
        for place in range(pictures):
            own = str(place).encode()  # after the end of the picture; those that are not asked need none
            held = content + own if place < TEMPLATE_ROWS else own
            (folder / "images" / f"{place:07d}.png").write_bytes(held)
        data, out = folder / "data.parquet", folder / "out"
        columns = {
            "id": [f"row-{place}" for place in range(rows)],
            "image": [f"images/{place % pictures:07d}.png" for place in range(rows)],
            "question": [f"Is there a two, question {place // pictures}?" for place in range(rows)],
            "candidates": [["yes", "no"]] * rows,
            "answer": ["yes", "no"] * (rows // 2),
        }
        parquet.write_table(pa.table(columns), data)
        probe = vlmprobe.load("demo")
        vlmprobe.run(probe, data, out=out, limit=TEMPLATE_ROWS, max_new_tokens=5, progress=False)
        (asked,) = (out / "results").glob("*.parquet")
        record = pa.concat_tables([parquet.read_table(asked)] * (SHARD // TEMPLATE_ROWS))
        meta = parquet.read_metadata(asked).metadata[META]
        asked.unlink()
        found = open_data(data)
        time.sleep(2.1)  # younger files are not remembered
        images = Images(found.root)
        for shard, block in enumerate(_shards(blocks_of(found, Reader(Naming(), images), Part(), None), Keyed), 1):
            numbers, keys, ids = zip(*block, strict=True)
            table = record.slice(0, len(keys))
            for name, cells in {"key": keys, "row": numbers, "id": ids}.items():
                place = table.column_names.index(name)
                table = table.set_column(place, name, pa.array(list(cells), table.schema.field(name).type))
            table = table.replace_schema_metadata({META: meta})
            parquet.write_table(table, out / "results" / f"0of1-{shard:06d}.parquet", compression="zstd")
        remembered.write_known(out / remembered.FOLDER, Part(), images.known)
        yield probe, data, out
    finally:
        shutil.rmtree(folder)


def _shards(blocks: Iterator[Any], kind: type) -> Iterator[list[tuple[int, str, Any]]]:
    waiting: list[tuple[int, str, Any]] = []
    for block in blocks:
        assert isinstance(block, kind)
        waiting += zip(block.numbers, block.keys, block.ids, strict=True)
        while len(waiting) >= SHARD:
            yield waiting[:SHARD]
            waiting = waiting[SHARD:]
    if waiting:
        yield waiting


def start(rows: int = 1_000_000, pictures: int = 100_000, times: int = 3) -> dict[str, Any]:
    """Seconds of calls of ``run`` that find every row answered."""
    import vlmprobe

    spent: dict[str, list[float]] = {"wall": [], "cpu": []}
    with finished(rows, pictures) as (probe, data, out):
        for turn in range(times + 1):
            wall, cpu = time.perf_counter(), time.process_time()
            summary = vlmprobe.run(probe, data, out=out, max_new_tokens=5, progress=False)
            assert (summary.rows, summary.asked) == (rows, 0)
            if turn:
                spent["cpu"].append(time.process_time() - cpu)
                spent["wall"].append(time.perf_counter() - wall)
        size = sum(each.stat().st_size for each in (out / "results").iterdir()) / rows
    return {"rows": rows, "pictures": pictures, "seconds": {"start": spent}, "record_bytes": size}


class Repeats:
    """An engine that answers at once, with one answer of a model to everything."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def check(self, conversations: Any, options: Any) -> None:
        """Nothing is refused."""

    def batch_size(self, wanted: int, options: Any) -> int:
        """As many as wanted."""
        return wanted

    def generate(self, conversations: Any, options: Any) -> list[Any]:
        """The answer for each."""
        return [self.answer] * len(conversations)


def memory(sizes: tuple[int, ...] = (1_000, 100_000)) -> dict[str, Any]:
    """Peak bytes of runs over so many rows, above what the process held before; the model itself does not run."""
    import vlmprobe
    from benchmarks.memory import peak

    answer = vlmprobe.load("demo").generate("Describe the picture.", max_new_tokens=5, prompt=False)
    about = ("model", "dtype", "device", "adapter", "engine", "versions")
    meta = {name: value for name, value in answer.meta.items() if name in about}
    own = {name: value for name, value in answer.meta.items() if name in ("timings", "finish_reason", "value_kind")}
    probe = vlmprobe.Probe(Repeats(replace(answer, meta=own)), meta)
    folder = Path(mkdtemp())

    def run(count: int) -> None:
        rows = ({"id": place, "question": f"What is {place}?"} for place in range(count))
        assert vlmprobe.run(probe, rows, out=folder / str(count), progress=False).asked == count

    try:
        run(100)
        return {"peak": {"run": {count: peak(lambda count=count: run(count)) for count in sizes}}}
    finally:
        shutil.rmtree(folder)


MEASURED: Mapping[str, Callable[[], dict[str, Any]]] = {
    "run_bytes": bytes_per_row,
    "run_memory": memory,
    "run_start": start,
}
