"""Shards on disk: which record counts, merging, and readers beside a writer."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from run_engine import oracle, questions

import vlmprobe
from vlmprobe.errors import RunError
from vlmprobe.runs import records, shards
from vlmprobe.runs.keys import Row
from vlmprobe.runs.shards import Part, Shards, read_key, read_meta, read_records, states, valid

START = datetime(2025, 1, 1, tzinfo=UTC)


def record(key, status="ok", at=0, row=0, **carry):
    """A record as a run writes it."""
    made = Row(row, key, None, carry, "What?", (), lambda: None)
    return {**records.failed(made, key, ValueError("no")), "status": status, "at": START + timedelta(seconds=at)}


def table(*made):
    return records.table_of(made)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_ok_beats_failed_and_then_the_latest_counts(order):
    made = [record("a", "ok", 1, row=5), record("a", "failed", 2), record("a", "ok", 0), record("b", "failed", 1)]
    made.append(record("b", "failed", 3, row=7))
    found = valid(table(*(made[place] for place in order), made[4])).to_pylist()
    assert [(each["key"], each["status"], each["row"]) for each in found] == [("a", "ok", 5), ("b", "failed", 7)]
    assert len(valid(table(made[0], made[0]))) == 1  # as after a merge that was killed
    assert len(valid(table(made[0]).slice(0, 0))) == 0


def test_a_merge_keeps_what_counts_and_says_who_wrote_it(tmp_path):
    for place in range(7):
        written = Shards(tmp_path, meta={"host": f"h{place % 2}"})
        made = record("same", "failed" if place else "ok", place), record(f"k{place}", row=place, n=place)
        written.write(table(*made), {"decode": 2.0, f"part{place % 2}": 0.5})
    before = read_records(tmp_path)
    Shards(tmp_path, Part(1, 2)).merge(0)  # of another part: nothing of ours
    assert len(list(tmp_path.iterdir())) == 7
    Shards(tmp_path, meta={"host": "h9"}).merge(3)
    (path,) = tmp_path.iterdir()
    assert path.name == "0of1-000008.parquet"
    assert read_records(tmp_path).equals(before)
    assert len(pa.parquet.read_table(path)) == 8
    assert read_meta(path)["merged"] == [
        {"host": "h0", "seconds": {"decode": 8.0, "part0": 2.0}},
        {"host": "h1", "seconds": {"decode": 6.0, "part1": 1.5}},
    ]
    assert Shards(tmp_path)._next().name == "0of1-000009.parquet"


def test_full_shards_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "FULL", 5)
    written = Shards(tmp_path)
    written.write(table(*(record(f"full{n}") for n in range(5))))
    for place in range(4):
        written.write(table(record(f"k{place}")))
    written.merge(3)
    assert sorted(path.name[5:11] for path in tmp_path.iterdir()) == ["000001", "000006"]
    assert len(states(tmp_path)) == 9


def test_many_small_shards_of_a_run_are_merged(tmp_path, monkeypatch):
    from vlmprobe.runs import writer

    monkeypatch.setattr(writer, "ROWS", 1)
    vlmprobe.run(oracle()[0], questions(150), out=tmp_path, progress=False, batch_size=1)
    assert len(list((tmp_path / "results").iterdir())) <= shards.MANY + 1
    assert len(vlmprobe.open_run(tmp_path).table()) == 150
    assert vlmprobe.open_run(tmp_path).shards()[0]["device"] == "cpu"


def test_readers_beside_a_writer_that_merges(tmp_path):
    done = threading.Event()

    def write():
        written = Shards(tmp_path)
        for place in range(120):
            written.write(table(record(f"k{place}", row=place)))
            written.merge(3)
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    known = 0
    while not done.is_set():
        found = read_records(tmp_path, ["key", "row", "status", "at"])
        now = 0 if found is None else len(found)
        assert now >= known
        known = now
    thread.join()
    assert len(read_records(tmp_path)) == 120
    assert read_key(tmp_path, "k7")["row"].to_pylist() == [7]
    assert read_key(tmp_path, "none") is None


def test_a_damaged_shard_is_named(tmp_path):
    (tmp_path / "0of1-000001.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(RunError, match=r"0of1-000001\.parquet is damaged"):
        read_records(tmp_path)


class TestArraysInRecords:
    """A record holds the numbers of its tokens as arrays; a table is the same as from lists."""

    @pytest.mark.parametrize("shape", [(), (3,)])
    @pytest.mark.parametrize(("name", "kind"), [("top_ids", np.int64), ("top_logprobs", np.float32)])
    def test_cells_of_arrays_are_those_of_lists(self, name, kind, shape):
        name = name if shape else {"top_ids": "token_id", "top_logprobs": "token_logprob"}[name]
        numbers = np.random.default_rng(0).normal(size=(6, *shape)) * 9
        given = [None, numbers[:2].astype(kind), numbers[:0].astype(kind), None, numbers[2:].astype(kind)]
        listed = [None if each is None else each.tolist() for each in given]
        found, due = (
            records.table_of([{**record(str(place)), name: cell} for place, cell in enumerate(cells)])[name]
            for cells in (given, listed)
        )
        found.validate(full=True)
        assert (found.type, found.to_pylist()) == (due.type, due.to_pylist())
        assert found.null_count == 2

    def test_an_id_that_does_not_fit_is_an_error(self):
        with pytest.raises(pa.ArrowInvalid, match="not in range"):
            records.table_of([{**record("a"), "token_id": np.array([2**40])}])
