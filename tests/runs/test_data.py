"""Data sets on disk, the names of their columns, and what is hostile in them."""

from __future__ import annotations

import json
import os
import struct
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from run_engine import oracle

import vlmprobe
from vlmprobe.errors import MessageError, VlmprobeError
from vlmprobe.runs.columns import Naming
from vlmprobe.runs.data import open_data
from vlmprobe.runs.understood import understood

ROWS = [
    {"id": "a", "question": "What is it?", "image": "one.png", "candidates": ["yes", "no"], "answer": "two", "n": 1},
    {
        "id": "b",
        "question": 'Why, "you"?\nReally?',
        "image": "sub/two.png",
        "candidates": ["a"],
        "answer": "007",
        "n": 2,
    },
]


@pytest.fixture
def folder(tmp_path):
    """A folder of images."""
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "one.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "sub" / "two.png")
    return tmp_path


def run(data, out, **how):
    """A run with the table that it leaves, as rows."""
    vlmprobe.run(oracle()[0], data, out=out, progress=False, **how)
    return vlmprobe.open_run(out).table().to_pylist()


def written(folder, kind):
    """The rows as a file of a kind."""
    path = folder / f"data.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        path.write_text("\ufeff" + "\n\n".join(map(json.dumps, ROWS)) + "\n", encoding="utf-8")
    elif kind in ("csv", "tsv"):
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",")
            writer.writerow(ROWS[0])
            writer.writerows([json.dumps(v) if isinstance(v, list) else v for v in row.values()] for row in ROWS)
    else:  # as datasets saves it
        path = folder / "saved"
        path.mkdir()
        table = pa.Table.from_pylist(ROWS)
        with pa.ipc.new_stream(str(path / "data-00000-of-00001.arrow"), table.schema) as stream:
            stream.write_table(table)
        (path / "state.json").write_text("{}")
        (path / "dataset_info.json").write_text("{}")
    return path


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv", "saved"])
def test_every_kind_of_file_gives_the_same(kind, folder):
    path = written(folder, kind)
    data = open_data(path)
    assert data.total in (2, 3)  # blank lines of JSON Lines count until they are read
    root = {"root": folder} if kind == "saved" else {}
    table = run(path, folder / "out", **root)
    assert [row["id"] for row in table] == ["a", "b"]
    assert [row["status"] for row in table] == ["ok", "ok"]
    assert [row["question"] for row in table] == [row["question"] for row in ROWS]
    assert [row["answer"] for row in table] == ["two", "007"]  # a label is no number
    assert [row["n"] for row in table] == (["1", "2"] if kind in ("csv", "tsv") else [1, 2])
    assert [row["candidates"] for row in table] == [["yes", "no"], ["a"]]
    assert [row["images"][0]["path"] for row in table] == ["one.png", "sub/two.png"]
    probe, engine = oracle()
    vlmprobe.run(probe, written(folder, "parquet"), out=folder / "out")
    assert not engine.asked  # the kind of file does not matter


def test_a_folder_of_images(folder):
    table = run(folder, folder.parent / f"{folder.name}-out", question_template="Is there a {name} in {folder}?")
    assert [row["id"] for row in table] == ["one.png", "sub/two.png"]
    assert table[1]["question"] == "Is there a two in sub?"
    assert table[0]["error"] is None or "folder" in table[0]["error"]


def test_parquet_with_images_in_it(folder):
    images = [(folder / row["image"]).read_bytes() for row in ROWS]
    held = [{"question": "What?", "image": {"bytes": image, "path": None}, "raw": image} for image in images]
    pq.write_table(pa.Table.from_pylist(held), folder / "data.parquet")
    assert open_data(folder / "data.parquet").unkept == {"image", "raw"}
    lines = "\n".join(understood(open_data(folder / "data.parquet"), Naming()))
    assert "left out, for they hold bytes: raw" in lines
    table = run(folder / "data.parquet", folder / "out")
    assert [row["images"][0]["bytes"] for row in table] == list(map(len, images))
    assert "raw" not in table[0]


class TestColumns:
    def test_they_are_found_by_name_or_named(self):
        found = Naming().columns(["prompt", "images", "candidates", "id", "split", "answer"])
        assert dict(found.of) == {"question": "prompt", "image": "images", "candidates": "candidates", "id": "id"}
        assert list(found.carried) == ["split", "answer"]
        named = Naming(question="ask", image="scan", answer="label", id="key_", carry=("split",))
        found = named.columns(["ask", "question", "scan", "label", "key_", "split", "more"])
        assert dict(found.of) == {"question": "ask", "image": "scan", "id": "key_"}
        assert dict(found.carried) == {"split": "split", "answer": "label"}

    @pytest.mark.parametrize(
        ("naming", "names", "told"),
        [
            (Naming(), ["quesiton", "image"], "no column 'question', 'prompt' or 'messages'. Did you mean quesiton"),
            (Naming(), ["question", "prompt"], "columns 'question' and 'prompt': name the one of the question"),
            (Naming(question="asks"), ["ask", "image"], "no column 'asks'. Did you mean ask?"),
            (Naming(carry=("splits",)), ["question", "split"], "no column 'splits'. Did you mean split?"),
            (Naming(template="Is there a {thing}?"), ["things", "image"], "column 'thing'. Did you mean things?"),
            (Naming(), ["question", "text"], "column 'text' has a name that the results have themselves"),
            (Naming(), ["question", "max_new_tokens"], "option of generation"),
            (Naming(), ["question", "img_path"], "not read as an image"),
        ],
    )
    def test_what_is_wrong_is_told_with_the_remedy(self, naming, names, told):
        with pytest.raises(MessageError) as error:
            naming.columns(names)
        assert told in str(error.value)

    @pytest.mark.parametrize("template", ["{a.__class__}", "{a[0]}", "{a!r}", "{a:>9}", "{}", "{0.x}", "{a", "}"])
    def test_templates_only_name_columns(self, template):
        with pytest.raises(MessageError, match="template"):
            Naming(template=template)

    def test_a_template_is_filled_from_columns(self, tmp_path):
        rows = [{"thing": "cat", "n": 2}, {"thing": None, "n": 1}]
        table = run(rows, tmp_path, question_template="Are there {n} {{{thing}}}?")
        assert table[0]["question"] == "Are there 2 {cat}?"
        assert "column 'thing' is empty" in table[1]["error"]

    def test_a_template_wins_over_a_column_of_questions(self, tmp_path):
        table = run([{"question": "why"}], tmp_path, question_template="Tell me {question}!")
        assert table[0]["question"] == "Tell me why!"


class TestHostile:
    def test_a_path_or_a_link_out_of_the_folder_fails_its_row(self, folder):
        data = folder / "data"
        data.mkdir()
        Image.new("RGB", (8, 8)).save(data / "in.png")
        Image.new("RGB", (8, 8)).save(folder / "data-secret.png")
        (data / "link.png").symlink_to(folder / "one.png")
        (data / "folder").symlink_to(folder / "sub")
        (data / "inner.png").symlink_to(data / "in.png")
        inside = ["in.png", "inner.png", "./in.png", "folder/../in.png", str(data / "in.png")]
        outside = [
            "../one.png",
            "link.png",
            "folder/two.png",
            str(folder / "one.png"),
            "../data-secret.png",
            "/etc/passwd",
        ]
        part = [{"type": "image", "path": "../one.png"}, {"type": "image_url", "image_url": {"url": "../one.png"}}]
        rows = [{"question": "What?", "image": each} for each in (*inside[:3], inside[4], *outside)]
        rows += [
            {"messages": [{"role": "user", "content": [each, {"type": "text", "text": "What?"}]}]} for each in part
        ]
        (data / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        table = run(data / "data.jsonl", folder / "out")
        assert [row["status"] for row in table] == ["ok"] * 4 + ["failed"] * 8
        assert all("outside of the folder" in row["error"] for row in table[4:])
        again = run(data / "data.jsonl", folder / "out2", root=folder)
        assert all("outside" in row["error"] for row in again if row["status"] == "failed" and row["row"] == 9)

    def test_a_chat_template_of_a_row_is_no_path(self, folder):
        (folder / "secret").write_text("{{ secret }}")
        rows = [{"question": "What?", "chat_template": str(folder / "secret")}]
        (folder / "data.jsonl").write_text(json.dumps(rows[0]))
        table = run(folder / "data.jsonl", folder / "out")
        assert "not the path of a file" in table[0]["error"]

    def test_a_bomb_in_row_17(self, folder):
        def chunk(kind, data):
            held = kind + data
            return struct.pack(">I", len(data)) + held + struct.pack(">I", zlib.crc32(held))

        size = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
        (folder / "bomb.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", size)
            + chunk(b"IDAT", zlib.compress(b"\0" * 100))
            + chunk(b"IEND", b"")
        )
        rows = [{"question": f"What is {n}?", "image": "bomb.png" if n == 17 else "one.png"} for n in range(30)]
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        table = run(folder / "data.jsonl", folder / "out")
        assert [row["row"] for row in table if row["status"] == "failed"] == [17]
        assert table[17]["error_type"] == "ImageError"
        assert len(run(folder / "data.jsonl", folder / "out")) == 30

    def test_images_that_cannot_be_read(self, folder):
        os.mkfifo(folder / "pipe.png")
        (folder / "empty.png").write_bytes(b"")
        names = ["gone.png", "pipe.png", "empty.png", "sub", "a\0b.png", "", "x" * 5000 + ".png", "ftp://x/y.png"]
        rows = [{"id": place, "question": "What?", "image": name} for place, name in enumerate(names)]
        (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        table = run(folder / "data.jsonl", folder / "out")
        assert [row["status"] for row in table] == ["failed"] * len(names)
        assert all(row["error"] for row in table)

    def test_an_image_that_is_deleted_between_runs(self, folder):
        path = written(folder, "jsonl")
        assert [row["status"] for row in run(path, folder / "out")] == ["ok", "ok"]
        held = (folder / "one.png").read_bytes()
        (folder / "one.png").unlink()
        table = run(path, folder / "out")
        assert [row["status"] for row in table] == ["failed", "ok"]
        assert "There is no file" in table[0]["error"]
        (folder / "one.png").write_bytes(held)
        probe, engine = oracle()
        vlmprobe.run(probe, path, out=folder / "out")
        assert not engine.asked  # its answer is still known
        assert [row["status"] for row in vlmprobe.open_run(folder / "out").table().to_pylist()] == ["ok", "ok"]

    def test_lines_that_are_no_rows(self, folder):
        lines = ['{"question": "a"}', "{", "[1]", '{"q": 1}', "\udcff", "9" * 100, "[" * 100_000, '{"question": 7}']
        (folder / "data.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
        table = run(folder / "data.jsonl", folder / "out")
        assert [row["status"] for row in table] == ["ok"] + ["failed"] * 7
        assert "line 2 is not JSON" in table[1]["error"]
        assert "no column 'question'" in table[3]["error"]

    def test_cells_of_mixed_types_and_missing_ones(self, folder):
        nan = float("nan")
        values = [1, "two", None, nan, [1, 2], {"a": "</script><b>"}, True, 2**70, "=cmd|' /C calc'!A0", "\ud800", b"x"]
        rows = [{"question": f"q{n}", "label": value, "id": value} for n, value in enumerate(values)]
        table = run(rows, folder / "out")
        assert [row["status"] for row in table] == ["ok"] * 10 + ["failed"]
        assert [row["label"] for row in table[:3]] == ["1", "two", None]
        assert table[3]["label"] is None
        assert table[5]["label"] == '{"a": "</script><b>"}'
        assert table[8]["label"] == "=cmd|' /C calc'!A0"
        shards = run([{"question": "late", "label": 2.5}], folder / "out")
        assert shards[0]["label"] == 2.5

    def test_types_that_differ_from_shard_to_shard(self, folder):
        for place, label in enumerate([1, 1.5, "x", None, ["y"]]):
            probe, _ = oracle()
            vlmprobe.run(probe, [{"question": f"q{place}", "label": label}], out=folder / "out", progress=False)
        from vlmprobe.runs.shards import Shards, read_records

        before = read_records(folder / "out" / "results").sort_by("question")["label"].to_pylist()
        assert before == ["1", "1.5", "x", None, '["y"]']
        Shards(folder / "out" / "results").merge(2)
        assert len(list((folder / "out" / "results").iterdir())) == 1
        assert read_records(folder / "out" / "results").sort_by("question")["label"].to_pylist() == before

    def test_a_cell_of_fifty_megabytes(self, folder):
        rows = [{"question": f"q{n}", "note": "x" * (50_000_000 if n == 1 else 5)} for n in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "data.parquet")
        table = run(folder / "data.parquet", folder / "out")
        assert [len(row["note"]) for row in table] == [5, 50_000_000, 5, 5]
        assert (folder / "out" / "results" / "0of1-000001.parquet").stat().st_size < 10_000_000

    def test_ids_name_no_files(self, folder):
        rows = [{"id": id, "question": f"q{id}"} for id in ("../x", "/etc/passwd", "<img src=x onerror=alert(1)>", "")]
        run(rows, folder / "out" / "deep")
        assert vlmprobe.open_run(folder / "out" / "deep").result("../x").meta["id"] == "../x"
        assert {path.name for path in (folder / "out").rglob("*") if path.is_file()} == {
            ".lock-0of1",
            ".lock-run",
            "run.json",
            "0of1-000001.parquet",
            "0of1.parquet",
        }

    @pytest.mark.parametrize("name", ["gone.jsonl", "one.png", "broken.parquet", "sub", "splits", "wide.csv", "lost"])
    def test_what_is_no_data_set(self, name, folder):
        (folder / "broken.parquet").write_bytes(b"PAR1 nothing")
        (folder / "splits").mkdir()
        (folder / "splits" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        (folder / "lost").mkdir()
        (folder / "lost" / "state.json").write_text("{}")
        (folder / "wide.csv").write_text('a,b\n1,2,3\n"')
        (folder / "sub" / "two.png").unlink()
        with pytest.raises(VlmprobeError) as error:
            open_data(folder / name)
        assert "\n" not in str(error.value).strip()


def test_what_is_understood(folder):
    lines = understood(open_data(written(folder, "jsonl")), Naming())
    text = "\n".join(lines)
    for part in (
        "question (question): What is it?",
        "image (image): one.png",
        "candidates",
        "id: a",
        "answer two",
        "n 1",
    ):
        assert part in text
    (folder / "one.png").unlink()
    lines = understood(open_data(written(folder, "csv")), Naming())
    assert f"cannot be read, looked for in {folder}" in "\n".join(lines)
    (folder / "none.jsonl").write_text("\n")
    with pytest.raises(MessageError, match="has no rows"):
        understood(open_data(folder / "none.jsonl"), Naming())
