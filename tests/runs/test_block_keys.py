"""Rows read in blocks have the keys, ids and carried columns that they have one by one, whatever is in them."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from run_engine import oracle, questions

import vlmprobe
from vlmprobe.runs.block_keys import Keyed
from vlmprobe.runs.columns import Naming
from vlmprobe.runs.data import data_of
from vlmprobe.runs.images import Images
from vlmprobe.runs.keys import Reader
from vlmprobe.runs.reading import blocks_of, rows_of
from vlmprobe.runs.shards import Part

ROW = {"id": "a", "question": 'What "is"\n\u2028 é\\ it?', "image": "0.png", "candidates": ["yes", 'n"o'], "split": "x"}
# What other rows have instead; whether a block of them is read by column.
OTHERS = {
    "a number as id": ({"id": 7}, True),
    "no id": ({"id": None}, True),
    "no image": ({"image": None}, True),
    "no candidates": ({"candidates": None}, True),
    "an empty question": ({"question": ""}, True),
    "numbers": ({"split": 1.5}, True),
    "missing cells": ({"split": None}, True),
    "nested cells": ({"split": [{"a": 1}]}, True),
    "no file": ({"image": "gone.png"}, True),
    "a path out of the folder": ({"image": "../x.png"}, True),
    "a link": ({"image": "sub/link.png"}, True),
    "a longer way": ({"image": "./sub/../1.png"}, True),
    "an address": ({"image": "data:image/png;base64,abc"}, True),
    "a home": ({"image": "~/1.png"}, True),
    "a folder": ({"image": "sub"}, True),
    "an empty path": ({"image": ""}, True),
    "no question": ({"question": None}, False),
    "a list in a text": ({"candidates": '["yes", "no"]'}, False),
    "several images in a text": ({"image": '["0.png", "1.png"]'}, False),
    "several images": ({"image": ["0.png", "1.png"]}, False),
    "candidates that are none": ({"candidates": []}, False),
    "numbers as candidates": ({"candidates": [1, 2]}, False),
    "messages": ({"question": [{"role": "user", "content": "What?"}]}, False),
    "a number as question": ({"question": 5}, False),
    "NaN": ({"question": float("nan")}, False),
    "other columns": ({"further": 1}, False),
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for place in range(2):
        path = tmp_path / f"{place}.png"
        Image.fromarray(np.full((8, 8, 3), place, np.uint8)).save(path)
        os.utime(path, (1e9, 1e9))
    (tmp_path / "sub" / "link.png").symlink_to(tmp_path / "1.png")
    return tmp_path


def both(data, folder, naming=None, part=None, limit=None):
    """(number, key, id, carried, question) of every row, one by one and in blocks; and how many were read by column."""
    part = part or Part()
    reader = Reader(naming or Naming(), Images(folder), data.unkept)
    one = [(each.number, each.key, each.id, each.carry) for each in rows_of(data, reader, part, limit)]
    many, columns = [], 0
    for _ in range(2):  # the second time files are known
        many, columns = [], 0
        for read in blocks_of(data, reader, part, limit):
            if isinstance(read, Keyed):
                columns += len(read.keys)
                many += zip(read.numbers, read.keys, read.ids, read.carried, strict=True)
                made = [read.row(place) for place in range(len(read.keys))]
                assert [each.key for each in made] == read.keys
                assert [each.number for each in made] == list(read.numbers)
            else:
                many.append((read.number, read.key, read.id, read.carry))
        assert many == one
    return one, columns


@pytest.mark.parametrize("what", OTHERS)
def test_keys_of_mixed_rows(what, folder):
    other, by_column = OTHERS[what]
    rows = [ROW, {**ROW, **other}, {**ROW, "image": "1.png", "id": "b"}]
    found, columns = both(data_of(rows, folder), folder)
    assert len({key for _, key, _, _ in found}) > 1
    assert columns == (3 if by_column else 0)


@pytest.mark.parametrize("what", OTHERS)
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_keys_of_mixed_files(what, kind, folder):
    other, by_column = OTHERS[what]
    rows = [ROW, {**ROW, **other}, {**ROW, "image": "1.png", "id": "b"}]
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    else:
        try:
            pq.write_table(pa.Table.from_pylist([{"further": None, **row} for row in rows]), path)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            pytest.skip("a column of one type only")
        by_column = by_column or what == "other columns"
    _, columns = both(data_of(path), folder)
    assert columns == (3 if by_column else 0)


def test_a_csv_file(folder):
    (folder / "data.csv").write_text("id,question,image,split\n1,What?,0.png,\n,Who?,,x\n")
    found, columns = both(data_of(folder / "data.csv"), folder)
    assert columns == 2
    assert found[0][2:] == ("1", {"split": None})


@pytest.mark.parametrize("template", ["Is there a {thing} on the {side}?", "{{What}}?", "{thing}"])
def test_a_template(template, folder):
    rows = [{"thing": f"cat {place}", "side": "left"} for place in range(5)]
    _, columns = both(data_of(rows), folder, Naming(template=template))
    assert columns == 5
    rows[3]["thing"] = 5
    _, columns = both(data_of(rows), folder, Naming(template=template))
    assert columns == (0 if "thing" in template else 5)


@pytest.mark.parametrize("limit", [None, 0, 1, 1024, 1500, 2048, 5000])
@pytest.mark.parametrize("part", ["0/1", "0/3", "2/3", "7/2000"])
def test_parts_and_limits(part, limit, folder):
    part = Part.read(part)
    found, columns = both(data_of(questions(2500)), folder, part=part, limit=limit)
    wanted = [number for number in range(2500)[:limit] if part.takes(number)]
    assert [number for number, _, _, _ in found] == wanted
    assert columns == len(wanted)


def test_a_file_that_changes_is_read_again(folder):
    images = Images(folder)
    before = images.hashes(["0.png", "1.png"])
    Image.fromarray(np.full((9, 9, 3), 9, np.uint8)).save(folder / "1.png")
    again = Images(folder, images.known)
    again.hashes(["0.png"])
    now = again.hashes(["0.png", "1.png"])
    assert now["0.png"] == before["0.png"]
    assert now["1.png"] != before["1.png"]
    assert again.hashed == 1


def test_rows_without_answers_are_the_only_ones_that_are_made(tmp_path, monkeypatch):
    probe, _ = oracle(fails=lambda each: RuntimeError("no") if " 7?" in each.question else None)
    rows = questions(40)
    vlmprobe.run(probe, rows, out=tmp_path)
    rows[3]["question"] = "Another one?"
    made = []
    row = Reader.row
    monkeypatch.setattr(Reader, "row", lambda self, number, raw: made.append(number) or row(self, number, raw))
    assert vlmprobe.run(probe, rows, out=tmp_path).asked == 1
    assert made == [3]
    assert vlmprobe.run(probe, rows, out=tmp_path, retry_failed=True).asked == 1
    assert made == [3, 7]
    assert vlmprobe.run(probe, rows, out=tmp_path / "drawn", samples=2).asked == 80
    made.clear()
    assert vlmprobe.run(probe, rows, out=tmp_path / "drawn", samples=2).asked == 0
    assert made == []
