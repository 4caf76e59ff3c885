"""Results on disk: what is saved comes back the same; what is damaged is a ``ResultError``; nothing can be changed."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import struct
import threading
import zlib

import numpy as np
import pytest
from common import QUESTION, picture
from safetensors.numpy import load_file, save_file

import vlmprobe
from vlmprobe.analysis.linear_head import LinearHead
from vlmprobe.errors import MessageError, ResultError, VlmprobeError, VlmprobeWarning
from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.results.files import file_name
from vlmprobe.results.table import TokenTable

FILES = ["folder", "one.safetensors", "new/folder/deep", "new/folder/one.safetensors"]


@pytest.fixture(scope="module")
def result(probe_of):
    return probe_of("internvl").generate(
        "图片里有什么？ 🐯",
        image=[picture(), picture(2, 70, 30)],
        max_new_tokens=4,
        do_sample=True,
        temperature=0.8,
        seed=1,
        keep={"logits", "hidden"},
    )


@pytest.fixture(scope="module")
def scores(probe_of):
    return probe_of("llava_next").score(
        QUESTION, ["yes", "老虎 🐯", "a tiger in the grass"], image=picture(), keep="logits"
    )


@pytest.fixture
def lean(probe_of):
    return probe_of("internvl").generate("Hi", max_new_tokens=2, do_sample=False, prompt=False)


def assert_tables_equal(one: TokenTable | None, other: TokenTable | None):
    assert (one is None) == (other is None)
    if one is None or other is None:
        return
    for field in dataclasses.fields(one):
        held, wanted = getattr(one, field.name), getattr(other, field.name)
        if isinstance(wanted, np.ndarray):
            assert held.dtype == wanted.dtype, field.name
            assert np.array_equal(held, wanted, equal_nan=wanted.dtype.kind == "f"), field.name
        else:
            assert held == wanted, field.name
    assert one.perplexity == other.perplexity


def assert_same_images(one, other):
    assert len(one) == len(other)
    for held, wanted in zip(one, other, strict=True):
        assert np.array_equal(np.asarray(held), np.asarray(wanted))


@pytest.mark.parametrize("place", FILES)
def test_a_result_comes_back_as_it_was(place, result, tmp_path):
    path = result.save(tmp_path / place)
    again = vlmprobe.load_result(path)
    assert type(again) is type(result)
    assert again.text == result.text
    assert again.meta == result.meta
    assert np.array_equal(again.input_ids, result.input_ids)
    assert_tables_equal(again.prompt, result.prompt)
    assert_tables_equal(again.output, result.output)
    assert_same_images(again.images, result.images)
    assert again.finish_reason == result.finish_reason
    assert again.confidence == result.confidence
    assert again.prompt.image_spans[0] == result.prompt.image_spans[0]
    assert isinstance(again.prompt.image_spans[0], ImageSpan)


@pytest.mark.parametrize("place", FILES)
def test_scores_come_back_as_they_were(place, scores, tmp_path):
    again = vlmprobe.load_result(str(scores.save(str(tmp_path / place))))
    assert type(again) is type(scores)
    assert again.candidates == scores.candidates
    assert again.boundaries == scores.boundaries
    assert any(again.boundaries), "llava_next's template ends in a space, which merges"
    assert again.meta == scores.meta
    assert np.array_equal(again.logprobs, scores.logprobs)
    assert again.best == scores.best
    for one, other in zip(again.tables, scores.tables, strict=True):
        assert_tables_equal(one, other)
    assert_same_images(again.images, scores.images)


def test_what_was_not_kept_is_absent(lean, tmp_path):
    again = vlmprobe.load_result(lean.save(tmp_path / "lean"))
    assert again.prompt is None
    assert again.images == ()
    for column in ("logits", "hidden", "scores"):
        assert getattr(again.output, column) is None
    assert_tables_equal(again.output, lean.output)


def test_saved_files_are_safetensors_and_json(result, tmp_path):
    folder = result.save(tmp_path / "folder")
    assert sorted(os.listdir(folder)) == ["arrays.safetensors", "result.json"]
    document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert document["text"] == result.text
    assert document["type"] == "Result"
    arrays = load_file(folder / "arrays.safetensors")
    assert np.array_equal(arrays["output.logits"], result.output.logits)


def test_saving_twice_writes_over(result, lean, tmp_path):
    for place in ("folder", "one.safetensors"):
        result.save(tmp_path / place)
        lean.save(tmp_path / place)
        assert vlmprobe.load_result(tmp_path / place).text == lean.text


def test_many_candidates_keep_their_order(probe_of, tmp_path):
    candidates = [f"{number} people" for number in range(24)]
    scores = probe_of("internvl").score("How many?", candidates)
    again = vlmprobe.load_result(scores.save(tmp_path / "scores"))
    assert again.candidates == candidates
    assert [len(each) for each in again.tables] == [len(each) for each in scores.tables]
    assert np.array_equal(again.logprobs, scores.logprobs)


@pytest.mark.parametrize("mark", ["a string", 5, None, ["a", 1], {"page": 3}])
def test_marks_of_requests_are_saved(mark, probe_of, tmp_path):
    (result,) = probe_of("internvl").generate_many([vlmprobe.Request("Hi", id=mark)], max_new_tokens=1, do_sample=False)
    assert vlmprobe.load_result(result.save(tmp_path / "marked")).meta.get("id") == mark


def test_a_mark_that_json_cannot_hold_is_told_before_anything_is_written(probe_of, tmp_path):
    (result,) = probe_of("internvl").generate_many(
        [vlmprobe.Request("Hi", id=object())], max_new_tokens=1, do_sample=False
    )
    with pytest.raises(ResultError, match="JSON"):
        result.save(tmp_path / "marked")
    assert not (tmp_path / "marked").exists()


def test_text_without_utf8_is_told_before_anything_is_written(result, tmp_path):
    for name in ("folder", "one.safetensors"):
        result.save(tmp_path / name)
        with pytest.raises(ResultError, match="JSON"):
            dataclasses.replace(result, text="\ud800").save(tmp_path / name)
        assert vlmprobe.load_result(tmp_path / name).text == result.text
    assert json.loads(dataclasses.replace(result, text="\ud800").to_json())["text"] == "\ud800"


# Damaged files


def rewritten(change):
    def damage(folder):
        document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        change(document)
        (folder / "result.json").write_text(json.dumps(document), encoding="utf-8")

    return damage


def rearranged(change):
    def damage(folder):
        arrays = dict(load_file(folder / "arrays.safetensors"))
        change(arrays)
        save_file(arrays, folder / "arrays.safetensors")

    return damage


def text(content):
    return lambda folder: (folder / "result.json").write_text(content, encoding="utf-8")


def giant():
    """A PNG of a few bytes that asks for 40,000 by 40,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return np.frombuffer(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + b"\0" * 4, np.uint8)


DAMAGE = {
    "no arrays": lambda folder: (folder / "arrays.safetensors").unlink(),
    "no document": lambda folder: (folder / "result.json").unlink(),
    "truncated arrays": lambda folder: os.truncate(folder / "arrays.safetensors", 100),
    "empty arrays": lambda folder: os.truncate(folder / "arrays.safetensors", 0),
    "other bytes": lambda folder: (folder / "arrays.safetensors").write_bytes(b"\x80\x04K\x05." * 50),
    "cut document": lambda folder: os.truncate(folder / "result.json", 60),
    "empty document": text(""),
    "a list": text("[]"),
    "null": text("null"),
    "a number": text("3"),
    "a deep document": text("[" * 100_000),
    "not UTF-8": lambda folder: (folder / "result.json").write_bytes(b"\xff\xfe{}"),
    "another layout": rewritten(lambda held: held.update(format=99)),
    "no layout": rewritten(lambda held: held.pop("format")),
    "another type": rewritten(lambda held: held.update(type="Pickle")),
    "a type that is a list": rewritten(lambda held: held.update(type=["Result"])),
    "no output": rewritten(lambda held: held.pop("output")),
    "output is null": rewritten(lambda held: held.update(output=None)),
    "output is a list": rewritten(lambda held: held.update(output=[1, 2])),
    "tokens are a number": rewritten(lambda held: held["output"].update(tokens=5)),
    "too few tokens": rewritten(lambda held: held["output"]["tokens"].pop()),
    "spans that are no spans": rewritten(lambda held: held["prompt"].update(image_spans=[[1, 2]])),
    "spans of words": rewritten(lambda held: held["prompt"].update(image_spans=[["a", "b", "c", "d"]])),
    "alternatives are numbers": rewritten(lambda held: held["output"].update(top_tokens=[1, 2, 3, 4])),
    "meta is a word": rewritten(lambda held: held.update(meta="x")),
    "a missing column": rearranged(lambda held: held.pop("output.logprobs")),
    "a column too many": rearranged(lambda held: held.update({"output.luck": held["output.logprobs"]})),
    "a column that is a list in the document": rearranged(lambda held: held.update({"output.tokens": np.zeros(4)})),
    "a short column": rearranged(lambda held: held.update({"output.entropy": held["output.entropy"][:2].copy()})),
    "a column without rows": rearranged(lambda held: held.update({"output.ids": np.array(3)})),
    "a column of another type": rearranged(lambda held: held.update({"output.ids": np.zeros(4, np.float32)})),
    "a matrix for a column": rearranged(lambda held: held.update({"output.logprobs": np.zeros((4, 4), np.float32)})),
    "no ids": rearranged(lambda held: held.pop("input_ids")),
    "a picture of the wrong shape": rearranged(lambda held: held.update({"image.0": np.zeros(5, np.uint8)})),
    "a picture of the wrong type": rearranged(lambda held: held.update({"image.0": np.zeros((2, 2, 3))})),
    "a picture without an end": rearranged(lambda held: held.update({"image.0": held["image.0"][:80].copy()})),
    "a picture of a giant size": rearranged(lambda held: held.update({"image.0": giant()})),
    "pictures out of count": rearranged(lambda held: held.update({"image.7": held["image.0"]})),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_result(name, result, tmp_path):
    folder = result.save(tmp_path / "result")
    DAMAGE[name](folder)
    with pytest.raises(ResultError) as raised:
        vlmprobe.load_result(folder)
    assert str(folder) in str(raised.value)


def test_a_damaged_file(result, tmp_path):
    path = result.save(tmp_path / "one.safetensors")
    whole = path.read_bytes()
    for data in (b"", b"\x80\x04K\x05.", whole[:50], whole[: len(whole) // 2], whole[1:]):
        path.write_bytes(data)
        with pytest.raises(ResultError, match=r"one\.safetensors"):
            vlmprobe.load_result(path)
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ResultError, match=r"one\.safetensors"):
        vlmprobe.load_result(path)
    save_file({"a": np.zeros(3)}, path, metadata={"vlmprobe": "{}"})
    with pytest.raises(ResultError, match=r"one\.safetensors"):
        vlmprobe.load_result(path)


def test_nothing_there(tmp_path):
    with pytest.raises(ResultError, match="No file"):
        vlmprobe.load_result(tmp_path / "missing.safetensors")
    with pytest.raises(ResultError, match=r"result\.json"):
        vlmprobe.load_result(tmp_path)


def test_text_is_only_text(result, tmp_path):
    """What a model says never becomes code or a path."""
    odd = dataclasses.replace(
        result, text="../../x\0<script>\ud7ff", meta={**result.meta, "question": "__import__('os')"}
    )
    again = vlmprobe.load_result(odd.save(tmp_path / "odd"))
    assert again.text == odd.text
    assert again.meta["question"] == odd.meta["question"]


# Frozen


def test_results_cannot_be_changed(result, scores, tmp_path):
    loaded = vlmprobe.load_result(result.save(tmp_path / "one.safetensors"))
    for each in (result, loaded):
        with pytest.raises(dataclasses.FrozenInstanceError):
            each.text = "other"
        arrays = [each.input_ids]
        for table in (each.prompt, each.output):
            with pytest.raises(dataclasses.FrozenInstanceError):
                table.logprobs = None
            arrays += [value for value in vars(table).values() if isinstance(value, np.ndarray)]
        for array in arrays:
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.candidates = []
    with pytest.raises(ValueError, match="read-only"):
        scores.tables[0].logprobs[0] = 0
    derived = result.output.confidence
    derived[0] = 2.0
    assert result.output.confidence[0] != 2.0


@pytest.mark.parametrize("again", [lambda each: pickle.loads(pickle.dumps(each)), copy.deepcopy, copy.copy])
def test_arrays_stay_read_only_after_pickling(again, result, scores, probe_of, tmp_path):
    """NumPy restores a read-only array as a writable one."""
    mapped = probe_of("llava").generate("Hi", keep=tmp_path, max_new_tokens=2, do_sample=False)
    yes_no = probe_of("llava").yes_no(QUESTION, image=picture())
    choices = result.top(3)
    head = LinearHead(np.ones((2, 3)), np.zeros(2))
    copies = [again(each) for each in (result, mapped, scores, yes_no, choices, head)]
    tables = [copies[0].prompt, copies[0].output, mapped.output, copies[1].output, *copies[2].tables]
    tables += [*copies[3].tables, *copies[3].spellings.tables]
    held = [value for each in (*copies, *tables) for value in vars(each).values() if isinstance(value, np.ndarray)]
    assert len(held) > 60
    for array in held:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert_tables_equal(copies[0].prompt, result.prompt)
    assert_tables_equal(copies[1].output, mapped.output)
    assert np.array_equal(copies[0].input_ids, result.input_ids)
    assert copies[2].best == scores.best
    assert copies[3].probability == yes_no.probability
    assert_same_images(copies[0].images, result.images)


def test_a_table_leaves_the_arrays_that_it_was_made_from_alone(result):
    columns = {field.name: getattr(result.output, field.name) for field in dataclasses.fields(result.output)}
    own = np.array(columns["logprobs"])
    table = TokenTable(**{**columns, "logprobs": own})
    assert own.flags.writeable
    assert not table.logprobs.flags.writeable


# Tables


def test_a_run_of_rows_is_a_table(result):
    part = result.prompt[2:7]
    assert len(part) == 5
    assert part.ids.tolist() == result.prompt.ids[2:7].tolist()
    assert part.tokens == result.prompt.tokens[2:7]
    assert part.image_spans == result.prompt.image_spans
    with pytest.raises(TypeError, match="slice"):
        result.prompt[3]


def test_derived_columns(result):
    table = result.prompt
    assert np.allclose(table.confidence[table.scored], np.exp(table.logprobs[table.scored]))
    assert np.allclose(table.margin[table.scored], (table.top_logprobs[:, 0] - table.top_logprobs[:, 1])[table.scored])
    assert np.isclose(table.logprob, table.logprobs[table.scored].sum(dtype=np.float64))
    assert np.isclose(table.perplexity, np.exp(-table.logprobs[table.scored].mean(dtype=np.float64)))
    assert np.isclose(result.confidence, np.exp(result.output.logprobs.sum(dtype=np.float64)))
    empty = table[:1]
    assert np.isnan(empty.perplexity)
    assert np.isnan(empty.logprob)
    narrow = dataclasses.replace(table, top_logprobs=table.top_logprobs[:, :1], top_ids=table.top_ids[:, :1])
    with pytest.raises(ResultError, match="alternatives"):
        _ = narrow.margin


def test_columns_must_have_one_length(result):
    with pytest.raises(ResultError, match="entropy"):
        dataclasses.replace(result.output, entropy=result.output.entropy[:1])


def test_to_pandas(result):
    pandas = pytest.importorskip("pandas")
    frame = result.prompt.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(result.prompt)
    assert frame["token"].tolist() == result.prompt.tokens
    assert np.array_equal(frame["logprob"], result.prompt.logprobs, equal_nan=True)
    assert frame["top_tokens"][1] == result.prompt.top_tokens[1]
    assert "score" not in frame
    assert "score" in result.output.to_pandas()


def test_to_arrow(result):
    pytest.importorskip("pyarrow")
    table = result.output.to_arrow()
    assert table.num_rows == len(result.output)
    assert table["token"].to_pylist() == result.output.tokens
    assert np.allclose(table["logprob"].to_numpy(), result.output.logprobs)
    assert table["top_ids"].to_pylist() == result.output.top_ids.tolist()


def test_errors_of_results_are_of_the_family():
    assert issubclass(ResultError, VlmprobeError)
    assert issubclass(ResultError, ValueError)


# Folders, interrupted saves, images


def test_images_are_kept_as_png(result, tmp_path):
    from safetensors.numpy import load_file

    kept = load_file(result.save(tmp_path / "a.safetensors"))["image.0"]
    assert kept[:8].tobytes() == b"\x89PNG\r\n\x1a\n"
    again = vlmprobe.load_result(tmp_path / "a.safetensors")
    assert [np.array(each).tolist() for each in again.images] == [np.array(each).tolist() for each in result.images]


@pytest.mark.parametrize(
    ("name", "step"), [("folder", 0), ("folder", 1), ("folder", 2), ("one.safetensors", 0), ("one.safetensors", 1)]
)
def test_an_interrupted_save_leaves_the_former_result(result, tmp_path, monkeypatch, name, step):
    """``step`` writes and replacements happen, the next one does not."""
    import safetensors.numpy

    from vlmprobe.results import replacing

    dataclasses.replace(result, text="former", input_ids=result.input_ids[:2]).save(tmp_path / name)
    left = [step]

    def dying(call):
        def counted(*args, **kwargs):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return call(*args, **kwargs)

        return counted

    with monkeypatch.context() as patched:
        patched.setattr(safetensors.numpy, "save_file", dying(safetensors.numpy.save_file))
        patched.setattr(replacing.os, "replace", dying(replacing.os.replace))
        with pytest.raises(KeyboardInterrupt):
            result.save(tmp_path / name)
    kept = vlmprobe.load_result(tmp_path / name)
    assert (kept.text, len(kept.input_ids)) == ("former", 2)
    assert not list(tmp_path.rglob("*unfinished*"))
    result.save(tmp_path / name)
    assert vlmprobe.load_result(tmp_path / name).text == result.text


def test_saving_again_replaces_and_leaves_one_result(result, tmp_path):
    for text in ("one", "two", "three"):
        dataclasses.replace(result, text=text).save(tmp_path / "folder")
        assert vlmprobe.load_result(tmp_path / "folder").text == text
        assert len(list((tmp_path / "folder").iterdir())) == 2


def test_threads_save_to_one_place(lean, tmp_path):
    errors = []

    def save():
        try:
            for _ in range(10):
                lean.save(tmp_path / "one.safetensors")
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not errors
    assert vlmprobe.load_result(tmp_path / "one.safetensors").text == lean.text
    assert [path.name for path in tmp_path.iterdir()] == ["one.safetensors"]


def test_saved_files_have_the_mode_of_the_umask(result, tmp_path):
    import os

    before = os.umask(0o027)
    try:
        result.save(tmp_path / "folder")
        result.save(tmp_path / "one.safetensors")
        result.to_html(tmp_path / "page.html")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


IDS = ["../up", "/etc/passwd", "a/b", "", "..", "猫 1", None, 7, "x" * 300, "nul\x00", "猫" * 300, "a\\..\\b", ["c"]]
NAMES = ["up", "etc_passwd", "a_b", "", "", "猫_1", "", "7", "x" * 100, "nul", "猫" * 33, "a_.._b", "c"]


def test_a_file_is_named_after_place_and_id():
    names = [file_name(place, each) for place, each in enumerate(IDS)]
    assert names == [f"{place:06d}{f'-{name}' if name else ''}" for place, name in enumerate(NAMES)]


def test_no_id_leads_out_of_the_folder(result, tmp_path):
    results = [
        dataclasses.replace(result, text=str(place), meta={**result.meta, "id": each}) for place, each in enumerate(IDS)
    ]
    files = vlmprobe.save_results(iter(results), tmp_path / "run")
    assert {file.parent for file in files} == {tmp_path / "run"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    read = list(vlmprobe.load_results(tmp_path / "run"))
    assert [each.text for each in read] == [str(place) for place in range(len(IDS))]
    assert [each.meta["id"] for each in read] == IDS
    with pytest.raises(ResultError, match="holds results already"):
        vlmprobe.save_results(results, tmp_path / "run")


def test_a_folder_is_read_one_by_one(result, tmp_path):
    vlmprobe.save_results([result, result], tmp_path / "run")
    result.save(tmp_path / "run" / "zz")
    (tmp_path / "run" / "notes.txt").write_text("no result")
    (tmp_path / "run" / "000001.safetensors").write_bytes(b"damaged")
    read = vlmprobe.load_results(tmp_path / "run")
    assert next(read).text == result.text
    with pytest.raises(ResultError, match=r"000001\.safetensors is not a result"):
        next(read)
    assert next(read).text == result.text


def test_a_folder_without_results(tmp_path):
    with pytest.raises(ResultError, match="There is no folder"):
        vlmprobe.load_results(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("no result")
    with pytest.raises(ResultError, match="holds no saved results"):
        vlmprobe.load_results(tmp_path)


def test_a_run_of_nothing_is_read_back_as_nothing(tmp_path):
    assert vlmprobe.save_results(iter(()), tmp_path / "new" / "run") == []
    assert list(vlmprobe.load_results(tmp_path / "new" / "run")) == []
    assert vlmprobe.save_results([], tmp_path / "new" / "run") == []  # it holds none


def test_failures_are_saved_beside_the_results_and_read_when_asked(result, probe_of, tmp_path):
    rows = [{"question": "Hi", "image": "none.png", "id": "a/b", "gold": "yes"}, {"question": "Hi", "id": 2}]
    found = list(probe_of("internvl").generate_many(rows, on_error="keep", max_new_tokens=1, progress=False))
    odd = vlmprobe.Failure(TypeError("x"), [{"role": "user", "content": "Hi"}], meta={"when": {1}})
    known = vlmprobe.Failure(MessageError("request 3: y"), "Hi", 3, 3)
    with pytest.warns(VlmprobeWarning, match=r"3 of 4 requests failed.*failures=True") as told:
        assert len(vlmprobe.save_results([*found, odd, known], tmp_path / "run")) == 1
    assert told[0].filename == __file__
    assert [each.meta["id"] for each in vlmprobe.load_results(tmp_path / "run")] == [2]
    missing, answered, other, third = vlmprobe.load_results(tmp_path / "run", failures=True)
    assert answered.text == found[1].text
    assert (missing.id, missing.row, missing.question, missing.meta) == ("a/b", 0, "Hi", found[0].meta)
    assert str(missing.error) == f"ImageNotFoundError: {found[0].error}"
    assert isinstance(missing.error, VlmprobeError)
    assert (str(other.error), other.question, other.meta) == ("TypeError: x", None, {"when": "{1}"})
    assert (type(third.error), str(third.error)) == (MessageError, "request 3: y")
    with pytest.raises(ResultError, match="holds results already"):
        vlmprobe.save_results([result], tmp_path / "run")
    for damage in ("{", "[]", '{"format": 1}', '{"format": 1, "error": "x", "message": "y", "question": 1}'):
        (tmp_path / "run" / "000000-a_b.failure.json").write_text(damage)
        with pytest.raises(ResultError, match=r"000000-a_b\.failure\.json is not a failure"):
            list(vlmprobe.load_results(tmp_path / "run", failures=True))
    (tmp_path / "run" / "000000-a_b.failure.json").write_text('{"format": 2}')
    with pytest.raises(ResultError, match="Update vlmprobe"):
        list(vlmprobe.load_results(tmp_path / "run", failures=True))


def test_a_folder_of_failures_alone_is_no_mistake(tmp_path):
    with pytest.warns(VlmprobeWarning, match="1 of 1"):
        vlmprobe.save_results([vlmprobe.Failure(ValueError("x"))], tmp_path / "run")
    assert list(vlmprobe.load_results(tmp_path / "run")) == []
    with pytest.raises(ResultError, match="holds results already"):
        vlmprobe.save_results([], tmp_path / "run")


def test_what_is_no_list_of_results_says_how_to_save_it(result, tmp_path):
    with pytest.raises(ResultError, match=r"not Result: a single result is saved with result\.save"):
        vlmprobe.save_results(result, tmp_path / "run")
    for wrong in ("run", None, vlmprobe.Failure(ValueError("x"))):
        with pytest.raises(ResultError, match="takes a list of results, not"):
            vlmprobe.save_results(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ResultError, match="number 0 is str"):
        vlmprobe.save_results(["yes"], tmp_path / "run")


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_failure_says_that_it_is_one(again):
    failed = again(vlmprobe.Failure(MessageError("request 3: y"), "Hi", 3, 3))
    with pytest.raises(AttributeError, match=r"a Failure has no 'text'.*MessageError: request 3: y.*isinstance"):
        failed.text  # noqa: B018
    assert not hasattr(failed, "logprobs")
    assert not hasattr(failed, "_repr_html_")
    assert (failed.id, failed.question) == (3, "Hi")
    with pytest.raises(AttributeError):
        vlmprobe.Failure.__new__(vlmprobe.Failure).text  # noqa: B018


def test_a_file_of_another_kind_is_no_place_to_save(result, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResultError, match=r"notes\.txt is a file: save to a folder"):
        result.save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
