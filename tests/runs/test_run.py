"""What is asked again, and what is not; what a folder accepts; failures; parts, samples, limits."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from run_engine import numbers, oracle, questions

import vlmprobe
from vlmprobe.errors import (
    EngineConnectionError,
    GenerationOptionError,
    ImageError,
    MessageError,
    ResultError,
    RunError,
)
from vlmprobe.runs import limits


def pictures(folder, count=6, seed=0):
    """Image files, and rows about them, with paths relative to the folder."""
    folder.mkdir(exist_ok=True)
    draw = np.random.default_rng(seed)
    rows = []
    for place in range(count):
        Image.fromarray(draw.integers(255, size=(8, 8, 3), dtype=np.uint8)).save(folder / f"{place}.png")
        rows.append({"id": place, "image": f"{place}.png", "question": "What is it?", "answer": "two"})
    return rows


def asked(rows, out, engine=None, **how):
    """How many questions a run puts to the model."""
    probe, counted = oracle() if engine is None else engine
    before = len(counted.asked)
    vlmprobe.run(probe, rows, out=out, progress=False, **how)
    return len(counted.asked) - before


def test_the_same_call_again_asks_nothing(tmp_path):
    rows = questions(150)
    assert asked(rows, tmp_path) == 150
    assert asked(rows, tmp_path) == 0
    table = vlmprobe.open_run(tmp_path).table()
    assert table["row"].to_pylist() == list(range(150))
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    assert set(table["status"].to_pylist()) == {"ok"}
    assert not list(tmp_path.rglob("*.part"))


def test_records_hold_what_the_probe_gives(tmp_path):
    rows = questions(5)
    probe, _ = oracle()
    vlmprobe.run(probe, rows, out=tmp_path, alternatives=3)
    for row, result in zip(rows, probe.generate_many(rows, alternatives=3), strict=True):
        kept = vlmprobe.open_run(tmp_path).result(row["id"])
        assert kept.text == result.text
        assert kept.finish_reason == "stop"
        assert kept.meta["answer"] == "two"
        for name in ("logprobs", "entropy", "ranks", "logsumexp", "top_logprobs", "top_ids", "ids", "positions"):
            assert np.array_equal(getattr(kept.output, name), getattr(result.output, name)), name
        assert kept.output.tokens == result.output.tokens
        assert kept.output.top_tokens == result.output.top_tokens
        assert np.array_equal(kept.output.offsets, result.output.offsets)
        assert kept.confidence == pytest.approx(result.confidence)
        assert kept.prompt is None


def test_a_model_in_full(tmp_path):
    """The embedded model: numbers, prompt tokens and candidates are those of the probe's own methods."""
    from vlmprobe.demo import sample_images

    probe = vlmprobe.load("demo")
    rows = [{"question": "Is there a two?", "image": path, "candidates": ["yes", "no"]} for path in sample_images()]
    summary = vlmprobe.run(probe, rows, out=tmp_path, prompt_tokens=True)
    assert summary.asked == len(rows)
    opened = vlmprobe.open_run(tmp_path)
    table = opened.table().to_pylist()
    for row, kept in zip(rows, table, strict=True):
        result = probe.generate(row["question"], row["image"])
        scores = probe.score(row["question"], row["candidates"], row["image"])
        assert kept["text"] == result.text
        assert kept["best"] == scores.best
        assert np.allclose(kept["candidate_logprobs"], scores.logprobs, atol=1e-4)
        assert kept["mass"] == pytest.approx(scores.mass, abs=1e-4)
        assert kept["prompt_sum"] == pytest.approx(result.prompt.logprob, abs=1e-3)
        assert (kept["images"][0]["width"], kept["images"][0]["height"]) == result.images[0].size
        again = opened.result(kept["key"])
        assert again.prompt.tokens == result.prompt.tokens
        assert again.prompt.kinds == result.prompt.kinds
        assert np.array_equal(again.prompt.positions, result.prompt.positions)
        assert np.allclose(again.prompt.logprobs, result.prompt.logprobs, atol=1e-4, equal_nan=True)
        assert np.array_equal(again.output.positions, result.output.positions)
        assert again.output.kinds == result.output.kinds
    assert vlmprobe.run(probe, rows, out=tmp_path, prompt_tokens=True, verify=3).asked == 0


class TestWhatIsAskedAgain:
    def test_duplicates_are_asked_once_and_joined(self, tmp_path):
        rows = [*questions(10), *({**row, "id": f"again {row['id']}"} for row in questions(10))]
        assert asked(rows, tmp_path) == 10
        table = vlmprobe.open_run(tmp_path).table().to_pylist()
        assert [row["id"] for row in table] == [row["id"] for row in rows]
        assert all(one["text"] == other["text"] for one, other in zip(table[:10], table[10:], strict=True))
        assert len({row["key"] for row in table}) == 10
        assert vlmprobe.open_run(tmp_path).result("again r3").text == table[3]["text"]

    def test_order_and_limit_recompute_nothing(self, tmp_path):
        rows = questions(60)
        assert asked(rows, tmp_path, limit=20) == 20
        assert asked(rows, tmp_path) == 40
        assert asked(rows[::-1], tmp_path) == 0
        assert vlmprobe.open_run(tmp_path).table()["id"].to_pylist() == [row["id"] for row in rows[::-1]]
        assert asked(rows, tmp_path, limit=20) == 0
        assert len(vlmprobe.open_run(tmp_path).table()) == 60  # a shorter look does not hide the others

    def test_labels_are_those_of_the_data_set_as_it_is_now(self, tmp_path):
        rows = questions(10)
        asked(rows, tmp_path)
        corrected = [{**row, "answer": "three", "split": "test"} for row in rows]
        assert asked(corrected, tmp_path) == 0
        table = vlmprobe.open_run(tmp_path).table()
        assert set(table["answer"].to_pylist()) == {"three"}
        assert set(table["split"].to_pylist()) == {"test"}
        without = [{name: value for name, value in row.items() if name != "answer"} for row in rows]
        assert asked(without, tmp_path) == 0
        assert "answer" not in vlmprobe.open_run(tmp_path).table().column_names

    def test_added_and_removed_rows(self, tmp_path):
        asked(questions(10), tmp_path)
        assert asked(questions(13), tmp_path) == 3
        assert len(vlmprobe.open_run(tmp_path).table()) == 13
        assert asked(questions(4), tmp_path) == 0
        assert len(vlmprobe.open_run(tmp_path).table()) == 4

    def test_a_renamed_image_is_the_same_and_a_changed_pixel_is_not(self, tmp_path):
        rows = pictures(tmp_path / "data")
        out = tmp_path / "out"
        assert asked(rows, out, root=tmp_path / "data") == 6
        (tmp_path / "data" / "3.png").rename(tmp_path / "data" / "new name.png")
        rows[3]["image"] = "new name.png"
        assert asked(rows, out, root=tmp_path / "data") == 0
        image = Image.open(tmp_path / "data" / "4.png")
        image.putpixel((0, 0), (1, 2, 3))
        image.save(tmp_path / "data" / "4.png")
        assert asked(rows, out, root=tmp_path / "data") == 1
        table = vlmprobe.open_run(out).table()
        assert len(table) == 6  # the answer about the picture as it was is no row any more

    def test_question_candidates_and_options_of_a_row(self, tmp_path):
        rows = questions(8, candidates=["yes", "no"])
        assert asked(rows, tmp_path) == 8
        rows[1]["question"] += " Really?"
        rows[2]["candidates"] = ["yes", "no", "maybe"]
        rows[3]["chat_template_kwargs"] = {"enable_thinking": False}
        assert asked(rows, tmp_path) == 3
        assert asked(rows, tmp_path) == 0

    def test_equal_conversations_have_one_key_however_they_are_written(self, tmp_path):
        image = Image.new("RGB", (8, 8), "red")
        text, part = {"type": "text", "text": "What?"}, {"type": "image", "image": image}
        rows = [
            {"question": "What?", "image": image},
            {"question": "What?", "images": [image]},
            {"messages": [{"role": "user", "content": [part, text]}]},
            {"messages": [{"role": "user", "content": [{"type": "image"}, text]}], "image": image},
            {"messages": [{"role": "user", "content": "What?"}], "image": image},
            ("What?", image),
            vlmprobe.Request("What?", image),
        ]
        assert asked(rows, tmp_path) == 1
        assert len(vlmprobe.open_run(tmp_path).table()) == len(rows)

    def test_bytes_in_the_data_set_are_the_file(self, tmp_path):
        rows = pictures(tmp_path / "data", 2)
        held = [{**row, "image": {"bytes": (tmp_path / "data" / row["image"]).read_bytes()}} for row in rows]
        assert asked(rows, tmp_path / "out", root=tmp_path / "data") == 2
        assert asked(held, tmp_path / "out") == 0

    def test_hashes_of_images_are_remembered(self, tmp_path, monkeypatch):
        from vlmprobe.runs import images

        rows = pictures(tmp_path / "data")
        for row in rows:
            os.utime(tmp_path / "data" / row["image"], (1e9, 1e9))
        asked(rows, tmp_path / "out", root=tmp_path / "data")
        monkeypatch.setattr(images, "_hash", lambda held: pytest.fail("read again"))
        assert asked(rows, tmp_path / "out", root=tmp_path / "data") == 0


class TestTheFolder:
    def test_another_option_is_an_error_that_names_it(self, tmp_path):
        asked(questions(3), tmp_path, max_new_tokens=5)
        with pytest.raises(RunError, match="max_new_tokens is 5 there, and 6 now"):
            asked(questions(3), tmp_path, max_new_tokens=6)
        with pytest.raises(RunError, match="alternatives is None there, and 3 now"):
            asked(questions(3), tmp_path, max_new_tokens=5, alternatives=3)

    def test_another_model_dtype_or_weights(self, tmp_path):
        from dataclasses import replace

        import torch

        probe = vlmprobe.load("demo")
        rows = questions(2)
        vlmprobe.run(probe, rows, out=tmp_path, max_new_tokens=1)
        with pytest.raises(RunError, match=r"dtype is 'float32' there, and 'bfloat16' now\. Ask"):
            vlmprobe.run(vlmprobe.load("demo", dtype="bfloat16"), rows, out=tmp_path, max_new_tokens=1)
        moved = replace(probe, meta={**probe.meta, "model": "the same in another folder"})
        assert vlmprobe.run(moved, rows, out=tmp_path, max_new_tokens=1).asked == 0
        changed = vlmprobe.load("demo")
        with torch.no_grad():
            next(iter(changed.model.parameters()))[0, 0] += 1
        with pytest.raises(RunError, match="weights is another one"):
            vlmprobe.run(changed, rows, out=tmp_path, max_new_tokens=1)
        changed = vlmprobe.load("demo")
        changed.processor.chat_template += "{# changed #}"
        with pytest.raises(RunError, match="template is another one"):
            vlmprobe.run(changed, rows, out=tmp_path, max_new_tokens=1)
        probe, _ = oracle()
        with pytest.raises(RunError, match="model is 'demo' there, and 'oracle' now"):
            vlmprobe.run(probe, rows, out=tmp_path, max_new_tokens=1)

    def test_a_second_writer_is_refused(self, tmp_path):
        probe, _ = oracle()
        inside = []

        def rows():
            yield from questions(3)
            with pytest.raises(RunError, match="another process is writing part 0/1"):
                vlmprobe.run(probe, questions(3), out=tmp_path)
            inside.append(True)

        vlmprobe.run(probe, rows(), out=tmp_path)
        assert inside
        assert asked(questions(3), tmp_path) == 0

    def test_files_have_the_mode_of_the_umask(self, tmp_path):
        before = os.umask(0o027)
        try:
            asked(questions(3), tmp_path / "out")
        finally:
            os.umask(before)
        for path in (tmp_path / "out").rglob("*"):
            if path.is_file() and not path.name.startswith(".lock"):
                assert path.stat().st_mode & 0o777 == 0o640, path

    def test_leftovers_of_the_part_are_removed(self, tmp_path):
        asked(questions(3), tmp_path)
        left, other = (tmp_path / "results" / f".{name}-000009.parquet.part" for name in ("0of1", "1of2"))
        left.write_bytes(b"half")
        other.write_bytes(b"half")
        asked(questions(3), tmp_path)
        assert not left.exists()
        assert other.exists()

    def test_no_run(self, tmp_path):
        with pytest.raises(RunError, match="holds no run"):
            vlmprobe.open_run(tmp_path)
        asked(questions(0), tmp_path)
        assert len(vlmprobe.open_run(tmp_path).table()) == 0

    def test_shards_say_who_wrote_them(self, tmp_path):
        asked(questions(3), tmp_path)
        held = json.loads(pq.read_metadata(next((tmp_path / "results").iterdir())).metadata[b"vlmprobe"])
        assert held["device"] == "cpu"
        assert held["host"]
        assert held["part"] == "0of1"


class TestFailures:
    def bad(self, conversation):
        return ValueError("the model stumbles") if "What is 3?" in conversation.question else None

    def test_the_guilty_row_is_recorded_and_not_asked_again(self, tmp_path):
        engine = oracle(fails=self.bad)
        assert asked(questions(20), tmp_path, engine) == 19
        for _ in range(5):
            assert asked(questions(20), tmp_path, engine) == 0
        records = pq.read_table(tmp_path / "results")
        assert len(records) == 20
        failed = vlmprobe.open_run(tmp_path).failed().to_pylist()
        assert [(row["id"], row["error_type"], row["error"]) for row in failed] == [
            ("r3", "ValueError", "the model stumbles")
        ]
        with pytest.raises(ResultError, match="failed: ValueError: the model stumbles"):
            vlmprobe.open_run(tmp_path).result("r3")
        assert asked(questions(20), tmp_path, retry_failed=True) == 1
        assert not len(vlmprobe.open_run(tmp_path).failed())
        assert vlmprobe.open_run(tmp_path).result("r3").text

    def test_an_answer_is_never_beaten_by_a_failure(self, tmp_path):
        asked(questions(20), tmp_path, oracle(fails=self.bad))
        asked(questions(20), tmp_path, retry_failed=True)
        shards = sorted((tmp_path / "results").iterdir())
        first, second = (pq.read_table(path) for path in shards)
        late = second.filter(second["id"].to_numpy(zero_copy_only=False) == "r3")
        early = late.set_column(late.column_names.index("at"), "at", first["at"].slice(0, 1))
        pq.write_table(early, shards[1])
        assert vlmprobe.open_run(tmp_path).result("r3").text

    def test_ten_in_a_row_end_the_run(self, tmp_path):
        def fails(conversation):
            number = int(conversation.question.removeprefix("What is ").rstrip("?"))
            return RuntimeError("broken") if number >= 25 else None

        engine = oracle(fails=fails)
        with pytest.raises(RunError, match="10 rows in a row failed, the last one with RuntimeError: broken") as error:
            asked(questions(100), tmp_path, engine, batch_size=1)
        assert error.value.begun
        assert sum(state["status"] == "ok" for state in numbers(tmp_path).values()) == 25
        assert asked(questions(100), tmp_path, batch_size=1) == 65  # the others, without the ten

    def test_a_server_that_is_away_fails_no_row(self, tmp_path):
        engine = oracle(fails=lambda conversation: EngineConnectionError("refused"))
        with pytest.raises(RunError, match="10 rows in a row"):
            asked(questions(30), tmp_path, engine)
        assert asked(questions(30), tmp_path) == 30

    def test_a_device_that_does_not_work_any_more(self, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "_device_works", lambda device: False)
        engine = oracle(
            fails=lambda each: RuntimeError("CUDA error: device-side assert") if "5" in each.question else None
        )
        with pytest.raises(RunError, match="the device does not work any more"):
            asked(questions(30), tmp_path, engine, batch_size=1)
        monkeypatch.undo()
        assert asked(questions(30), tmp_path) == 24

    def test_out_of_memory_halves_the_batch_and_fails_nothing(self, tmp_path):
        probe, engine = oracle()
        answer = engine.generate

        def generate(conversations, options):
            if len(conversations) > 3:
                raise MemoryError("out of memory")
            return answer(conversations, options)

        engine.generate = generate
        assert asked(questions(40), tmp_path, (probe, engine)) == 40
        assert not len(vlmprobe.open_run(tmp_path).failed())

    def test_too_many_failures(self, tmp_path):
        engine = oracle(fails=lambda each: ValueError("no") if each.question.endswith("7?") else None)
        with pytest.raises(RunError, match=r"rows failed, more than 5\.0%"):
            asked(questions(400), tmp_path, engine, max_failed="5%", batch_size=1)
        assert asked(questions(400), tmp_path, engine, max_failed=0.2) > 100
        with pytest.raises(GenerationOptionError, match=r"5% or 0\.05"):
            asked(questions(4), tmp_path, max_failed="many")

    def test_rows_that_cannot_be_asked(self, tmp_path):
        rows = [*questions(3), {"question": None}, {"id": 7}, {"question": "x", "candidates": ["a", "a"]}, 5]
        assert asked(rows, tmp_path) == 3
        assert asked(rows, tmp_path) == 0
        failed = vlmprobe.open_run(tmp_path).failed().to_pylist()
        assert [row["row"] for row in failed] == [3, 4, 5, 6]
        assert "repeats candidate" in failed[2]["error"]
        assert failed[1]["id"] == "7"

    def test_an_error_of_the_callers_iterator_ends_the_run_and_loses_nothing(self, tmp_path):
        def rows():
            yield from questions(5)
            raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            asked(rows(), tmp_path)
        assert asked(questions(5), tmp_path) == 0

    def test_results_that_cannot_be_written_end_the_run(self, tmp_path, monkeypatch):
        from vlmprobe.runs import shards

        def full(path, write):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shards, "put_in_place", full)
        with pytest.raises(RunError, match=r"cannot be written: .*No space left"):
            asked(questions(5), tmp_path)
        monkeypatch.undo()
        assert asked(questions(5), tmp_path) == 5


class TestParts:
    def test_two_at_once_equal_one_process(self, tmp_path):
        rows = questions(101)
        asked(rows, tmp_path / "one")
        counts = {}

        def run(part):
            counts[part] = asked(rows, tmp_path / "two", part=part)

        threads = [threading.Thread(target=run, args=(part,)) for part in ("0/2", "1/2")]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert counts == {"0/2": 51, "1/2": 50}
        assert numbers(tmp_path / "two") == numbers(tmp_path / "one")
        both = [vlmprobe.open_run(tmp_path / name).table(["row", "id", "text"]) for name in ("one", "two")]
        assert both[0].equals(both[1])
        assert asked(rows, tmp_path / "two") == 0  # and in one process

    @pytest.mark.parametrize("part", ["8/8", "0/0", "1", "a/b", "-1/4", (1, 2, 3), 5])
    def test_parts_that_are_none(self, part, tmp_path):
        told = "numbered from 0 to 7: 8/8 is none" if part == "8/8" else "part"
        with pytest.raises(GenerationOptionError, match=told):
            asked(questions(3), tmp_path, part=part)
        assert not list(tmp_path.iterdir())

    def test_rows_of_a_part_that_is_not_finished_are_shown(self, tmp_path):
        rows = questions(10)
        asked(rows, tmp_path, part="1/2", limit=5)
        asked(rows, tmp_path, part="0/2")
        assert len(vlmprobe.open_run(tmp_path).table()) == 7


class TestSamples:
    def test_seeds_come_from_the_row_and_more_samples_add_to_the_first(self, tmp_path):
        probe, engine = oracle()
        assert asked(questions(4), tmp_path, (probe, engine), samples=2) == 8
        assert len(set(engine.seeds)) == 8
        assert asked(questions(4)[::-1], tmp_path, (probe, engine), samples=3) == 4
        assert len(set(engine.seeds)) == 12
        table = vlmprobe.open_run(tmp_path).table()
        assert len(table) == 12
        assert sorted(key[-2:] for key in table["key"].to_pylist()) == ["-0"] * 4 + ["-1"] * 4 + ["-2"] * 4
        again, other = oracle()
        asked(questions(4), tmp_path / "again", (again, other), samples=3)
        assert set(other.seeds) == set(engine.seeds)

    def test_samples_and_one_answer_do_not_mix(self, tmp_path):
        asked(questions(2), tmp_path)
        with pytest.raises(RunError, match="samples is None there"):
            asked(questions(2), tmp_path, samples=2)
        with pytest.raises(GenerationOptionError, match="samples"):
            asked(questions(2), tmp_path / "other", samples=2, seed=1)


class TestVerify:
    def test_the_same_model(self, tmp_path):
        engine = oracle()
        asked(questions(30), tmp_path, engine)
        assert asked(questions(40), tmp_path, engine, verify=5) == 15

    def test_numbers_that_moved(self, tmp_path):
        asked(questions(30), tmp_path)
        with pytest.raises(RunError, match=r"row 0: a log-probability moved by 0\.01"):
            asked(questions(40), tmp_path, oracle(moved=0.01), verify=5)
        assert asked(questions(40), tmp_path) == 10

    def test_candidates_are_scored_for_new_rows_only(self, tmp_path):
        probe, engine = oracle()
        rows = questions(70, candidates=["yes", "no"])
        asked(rows[:3], tmp_path, (probe, engine))
        asked(rows, tmp_path, (probe, engine), verify=2)
        assert len(engine.scored) == 70
        assert set(vlmprobe.open_run(tmp_path).table()["best"].to_pylist()) == {"yes", "no"}


class TestSignals:
    def test_the_first_ctrl_c_finishes_what_is_begun(self, tmp_path):
        probe, engine = oracle()
        answer = engine.generate

        def generate(conversations, options):
            if not engine.asked:
                os.kill(os.getpid(), signal.SIGINT)
            return answer(conversations, options)

        engine.generate = generate
        told = []
        handler = signal.getsignal(signal.SIGINT)
        summary = vlmprobe.run(probe, questions(5000), out=tmp_path, tell=told.append)
        assert signal.getsignal(signal.SIGINT) is handler
        assert summary.interrupted
        assert 64 <= summary.asked <= 128
        assert len(numbers(tmp_path)) == summary.asked
        assert any("Ctrl-C again leaves at once" in line for line in told)

    def test_the_second_ctrl_c_leaves_and_keeps_what_is_finished(self, tmp_path):
        probe, engine = oracle()
        answer = engine.generate

        def generate(conversations, options):
            if len(engine.asked) >= 32:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return answer(conversations, options)

        engine.generate = generate
        with pytest.raises(KeyboardInterrupt):
            vlmprobe.run(probe, questions(5000), out=tmp_path, batch_size=16)
        assert len(numbers(tmp_path)) == 32


def test_frames(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(questions(6)).rename(columns={"question": "ask", "id": "name"})
    assert asked(frame, tmp_path, question="ask", id="name") == 6
    table = vlmprobe.open_run(tmp_path).to_pandas()
    assert list(table["id"]) == list(frame["name"])
    with pytest.raises(MessageError, match="there is no column 'question'"):
        asked(frame, tmp_path / "other")
    import pyarrow

    assert asked(pyarrow.Table.from_pandas(frame), tmp_path, question="ask", id="name") == 0


def test_polars_and_datasets_are_read_where_they_are_installed(tmp_path):
    polars = pytest.importorskip("polars")
    assert asked(polars.DataFrame(questions(6)), tmp_path) == 6


class TestQueriesOfThePage:
    """A row that failed once, and then was retried, is ok in each of them."""

    @pytest.fixture
    def query(self, tmp_path, monkeypatch):
        from common import DOCS

        engine = oracle(fails=lambda each: ValueError("no") if "3" in each.question else None)
        asked(questions(6), tmp_path / "answers", engine)
        asked(questions(6), tmp_path / "answers", retry_failed=True)
        monkeypatch.chdir(tmp_path)
        page = (DOCS / "use" / "datasets.md").read_text(encoding="utf-8")
        return lambda kind: re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1]

    def test_duckdb(self, query):
        duckdb = pytest.importorskip("duckdb")
        rows = duckdb.sql(query("sql")).fetchnumpy()
        assert sorted(rows["id"]) == [f"r{n}" for n in range(6)]
        assert set(rows["status"]) == {"ok"}

    def test_polars(self, query, capsys):
        polars = pytest.importorskip("polars")
        known: dict = {}
        exec(query("py"), known)
        kept = known["records"].unique("key", keep="last")
        assert len(known["records"]) == 7
        assert sorted(kept["id"]) == [f"r{n}" for n in range(6)]
        assert set(kept["status"]) == {"ok"}
        assert isinstance(kept, polars.DataFrame)
        assert "(6, 3)" in capsys.readouterr().out


def test_how_long_the_whole_takes_is_told_after_the_first_rows(tmp_path, monkeypatch):
    from vlmprobe.runs import running

    monkeypatch.setattr(running, "SHOWN_AFTER", 0.05)
    told = []
    asked(questions(400), tmp_path, oracle(seconds=0.02), tell=told.append)
    (line,) = [each for each in told if "rows a second" in each]
    assert int(line.rpartition("the other ")[2].replace(",", "")) < 400


def test_where_the_time_went(tmp_path):
    summary = vlmprobe.run(oracle(seconds=0.01)[0], questions(64, candidates=["a", "b"]), out=tmp_path)
    assert summary.seconds["model"] == pytest.approx(0.64, abs=0.01)
    assert summary.seconds["score"] == pytest.approx(0.064, abs=0.001)
    assert str(summary).startswith("64 rows: 64 asked, 0 of them failed (")


def test_parts_that_took_next_to_nothing_are_left_out():
    from vlmprobe.runs.spent import told

    assert told({"load": 0.01, "decode": 1234.56, "write": 0.07}) == "decode 1,234.6 s, write 0.1 s"
    assert told({}) == ""


def test_where_the_time_of_a_model_went(tmp_path):
    from vlmprobe.demo import sample_images
    from vlmprobe.runs.overview import overview

    rows = [{"question": "Describe the picture.", "image": path} for path in sample_images()]
    for limit in (2, None):
        summary = vlmprobe.run(vlmprobe.load("demo"), rows, out=tmp_path, limit=limit, max_new_tokens=4)
        assert {"start", "load", "preprocess", "vision", "prefill", "decode", "write"} <= set(summary.seconds)
        assert "model" not in summary.seconds
    shown = overview(vlmprobe.open_run(tmp_path)).spent
    assert shown["decode"] > summary.seconds["decode"], "of both calls"
    for name in ("vision", "prefill", "preprocess"):
        assert shown[name] >= summary.seconds[name]


@pytest.mark.parametrize("rows", [5, {"question": "x"}, b"x", None])
def test_no_rows(rows, tmp_path):
    with pytest.raises(MessageError, match="run takes"):
        asked(rows, tmp_path)


def test_image_error_is_of_the_row():
    assert ImageError in limits.OF_THE_ROW


def test_the_short_way_to_a_key_gives_the_long_ways_key(tmp_path):
    from vlmprobe.runs.columns import Naming
    from vlmprobe.runs.images import Images
    from vlmprobe.runs.keys import Reader

    pictures(tmp_path / "data", 2)
    (tmp_path / "data" / "sub").mkdir()
    (tmp_path / "data" / "sub" / "é.png").symlink_to(tmp_path / "data" / "1.png")
    texts = ('What "is"\n\u2028 it?', "\\ \x00 \x7f é 猫", "\ud800", "")
    files = ("0.png", "sub/é.png", "./1.png", "sub/../1.png", "gone.png", "../out.png", "sub/", ".", "x" * 9999)
    keys = set()
    for text in texts:
        for candidates in (None, ["yes", 'n"o é']):
            for image in (None, *files):
                asked = {"question": text, "image": image, "candidates": candidates}
                asked = {name: value for name, value in asked.items() if value is not None}
                reader = Reader(Naming(), Images(tmp_path / "data"))
                short, long = reader._plain_key(asked), reader._key(asked)
                assert short == long, asked
                assert all(len(seen.hash) < 320 for seen in short[2])
                keys.add(short[0])
    assert len(keys) == len(texts) * 2 * (len(files) + 1 - 2)  # three of the files have one content
    for other in ({"image": ["0.png"]}, {"candidates": [1]}, {"chat_template_kwargs": {"a": 1}}):
        assert Reader(Naming(), Images())._plain_key({"question": "x", **other}) is None


def test_options_of_the_prompt_are_those_of_the_run(tmp_path):
    probe = vlmprobe.load("demo")
    rows = [{"question": "Is there a two?", "candidates": ["yes", "no"]}]
    how = {"chat_template": "{{ messages[0].content[0].text }} Say", "max_new_tokens": 1}
    vlmprobe.run(probe, rows, out=tmp_path / "one", **how)
    kept = vlmprobe.open_run(tmp_path / "one").table().to_pylist()[0]
    template = how["chat_template"]
    assert kept["text"] == probe.generate("Is there a two?", **how).text
    scores = probe.score("Is there a two?", ["yes", "no"], chat_template=template)
    assert kept["candidate_logprobs"] == pytest.approx(scores.logprobs.tolist(), abs=1e-4)
    with pytest.raises(RunError, match="chat_template is "):
        vlmprobe.run(probe, rows, out=tmp_path / "one", max_new_tokens=1)
    vlmprobe.run(probe, rows, out=tmp_path / "drawn", samples=2, **how)
    assert set(vlmprobe.open_run(tmp_path / "drawn").table()["status"].to_pylist()) == {"ok"}
    with pytest.raises(GenerationOptionError, match="keep is no option of a run"):
        vlmprobe.run(probe, rows, out=tmp_path / "two", keep="logits")


def test_a_schema_is_recorded_by_what_it_says(tmp_path):
    file, out = tmp_path / "schema.json", tmp_path / "run"
    file.write_text('{"enum": ["one"]}')
    assert asked(questions(3), out, schema=file) == 3
    assert json.loads((out / "run.json").read_text())["options"]["schema"] == {"enum": ["one"]}
    assert asked(questions(3), out, schema={"enum": ["one"]}) == 0
    file.write_text('{"enum": ["two"]}')
    with pytest.raises(RunError, match="schema is"):
        asked(questions(3), out, schema=file)
    with pytest.raises(GenerationOptionError, match="prefix_allowed_tokens_fn is no option of a run"):
        asked(questions(3), out, prefix_allowed_tokens_fn=len)


def test_a_session_asks_about_its_images(tmp_path):
    from vlmprobe.demo import sample_images

    probe = vlmprobe.load("demo")
    rows = [{"question": "Which digit is on the left?"}]
    one, other = sample_images()[:2]
    with probe.session(one) as session:
        vlmprobe.run(session, rows, out=tmp_path, max_new_tokens=4)
    kept = vlmprobe.open_run(tmp_path).table().to_pylist()[0]
    assert kept["text"] == probe.generate(rows[0]["question"], one, max_new_tokens=4).text
    with probe.session(other) as session, pytest.raises(RunError, match="session_images"):
        vlmprobe.run(session, rows, out=tmp_path, max_new_tokens=4)


def test_base64_in_a_message(tmp_path):
    import base64
    import io

    def message(colour):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(file, "PNG")
        part = {"type": "image", "base64": base64.b64encode(file.getvalue()).decode()}
        return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]}

    assert asked([message("red"), message("blue"), message("red")], tmp_path, root=tmp_path) == 2
    images = vlmprobe.open_run(tmp_path).table()["images"].to_pylist()
    assert [each[0]["path"] for each in images] == ["data:image/*;base64"] * 3


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        engine = oracle(fails=lambda each: os.kill(os.getpid(), signal.SIGINT))
        assert asked(questions(20), tmp_path, engine) == 20
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_model_on_a_server(tmp_path):
    import wire_engines as wire
    from wire_server import WireServer

    from vlmprobe.demo import checkpoint, sample_images

    local = vlmprobe.load("demo", dtype="float32", device="cpu")
    served = {**wire.facts("sglang", "facts"), "/generate": wire.sglang(wire.Model(local, "Describe the picture."))}
    rows = [{"question": "Describe the picture.", "image": sample_images()[-1]}] * 2
    for _ in range(2):  # on another port the second time
        with WireServer(served) as server:
            probe = vlmprobe.connect(server.url, processor=str(checkpoint()))
            summary = vlmprobe.run(probe, rows, out=tmp_path, progress=False)
    assert summary.asked == 0
    table = vlmprobe.open_run(tmp_path).table().to_pylist()
    assert [row["status"] for row in table] == ["ok", "ok"], table[0]["error"]
    assert table[0]["text"] == local.generate("Describe the picture.", sample_images()[-1]).text
    assert "weights" not in vlmprobe.open_run(tmp_path).about
    assert vlmprobe.open_run(tmp_path).shards()[0]["url"].startswith("http://127.0.0.1")


def test_an_overview(tmp_path):
    from vlmprobe.runs.overview import overview

    rows = [*questions(40, candidates=["yes", "no"]), {"id": "bad", "question": ""}]
    asked(rows, tmp_path)
    table = vlmprobe.open_run(tmp_path).table().to_pylist()
    rows = [
        {**row, "answer": kept["best"] if place % 4 else "no such"}
        for place, (row, kept) in enumerate(zip(rows, table, strict=True))
    ]
    rows[0]["answer"] = None  # no label
    assert asked(rows, tmp_path) == 0
    found = overview(vlmprobe.open_run(tmp_path))
    assert (found.rows, found.answers, found.failed, found.judged) == (41, 40, 1, 39)
    assert found.figures["accuracy"] == pytest.approx(30 / 39)
    best = [
        np.exp(each["candidate_logprobs"] - np.logaddexp.reduce(each["candidate_logprobs"])) for each in table[1:40]
    ]
    assert found.figures["mean confidence"] == pytest.approx(np.mean([each.max() for each in best]))
    assert found.tokens == sum(row["n_tokens"] or 0 for row in table)
    assert len(found.slowest) == 5
    assert found.reasons[0]["count"] == 1
    assert found.reasons[0]["id"] == "bad"
    assert found.machines[0]["device"] == "cpu"


def test_a_new_process_reads_a_run_that_has_no_listing(tmp_path):
    """``pyarrow.compute`` is there only once it is imported, which reading a listing does by the way."""
    asked(questions(3), tmp_path)
    shutil.rmtree(tmp_path / "rows")
    code = f"import vlmprobe; assert len(vlmprobe.open_run({str(tmp_path)!r}).table()) == 3"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
