"""What 0.1 saved is read; every file that is saved gives its layout by number; a later layout is refused."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil

import numpy as np
import pytest
from common import DATA, QUESTION, picture
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import vlmprobe
from tools import compatibility_matrix
from vlmprobe.analysis import distillation, export
from vlmprobe.analysis.heads import LinearHead
from vlmprobe.errors import ResultError, VlmprobeError
from vlmprobe.probe import passed_checks
from vlmprobe.results.layouts import require_readable
from vlmprobe.results.row_files import OnDisk, RowFile, load_rows
from vlmprobe.results.saved import FORMAT
from vlmprobe.testing import check_adapter

OLD = DATA / "saved-0.1"
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
RESULTS = ["result", "result.safetensors", "lean.safetensors", "served.safetensors", "scores"]
RESULTS += ["groups.safetensors", "yes_no.safetensors"]
ROWS = ["rows/000000.safetensors", "rows/000001.safetensors", "rows/000002.safetensors"]


@pytest.fixture(scope="module")
def described():
    """The function by which 0.1 described what it had in memory when it saved it."""
    spec = importlib.util.spec_from_file_location("write_saved", OLD / "write.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda value: _of_then(module.described(value))


LATER = ("thought", "lost", "mass_allowed")  # fields that classes have got since


def _of_then(described):
    """Without fields that 0.1 did not have, which nothing that it saved may fill."""
    if isinstance(described, dict):
        assert not any(described.get(name) for name in LATER)
        return {name: _of_then(each) for name, each in described.items() if name not in LATER}
    return [_of_then(each) for each in described] if isinstance(described, list) else described


def text(value):
    """As JSON, in which NaN equals NaN."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def metadata(path):
    with safe_open(path, framework="np") as opened:
        return opened.metadata()


# What 0.1 saved


@pytest.mark.parametrize("name", RESULTS)
def test_results_of_0_1_come_back_as_they_were(name, described, tmp_path):
    loaded = vlmprobe.load_result(OLD / name)
    assert loaded.meta["versions"]["vlmprobe"] == "0.1.0" if "versions" in loaded.meta else name.startswith("served")
    assert text(described(loaded)) == text(EXPECTED[name])
    again = vlmprobe.load_result(loaded.save(tmp_path / name))
    assert text(described(again)) == text(EXPECTED[name])


def test_what_is_read_of_0_1_says_what_it_said_then():
    """A few numbers of the files themselves, so that the descriptions above are not taken on trust."""
    answer = vlmprobe.load_result(OLD / "result")
    assert (answer.text, answer.output.tokens) == ("a purple four", ["a", " purple", " four"])
    assert answer.images[0].size == (24, 16)
    assert answer.output.hidden.shape == (3, 96)
    lean = vlmprobe.load_result(OLD / "lean.safetensors")
    rows = lean.output.logits.astype(np.float64)
    own = rows[np.arange(len(rows)), lean.output.ids] - np.logaddexp.reduce(rows, axis=1)
    np.testing.assert_allclose(lean.output.logprobs, own, atol=1e-5)
    served = vlmprobe.load_result(OLD / "served.safetensors")
    assert served.output.ids is None
    assert served.output.logprobs_at_most.tolist()[1] == -4.0
    assert vlmprobe.load_result(OLD / "scores").candidates == ["nine", "seven", "a red nine"]
    assert vlmprobe.load_result(OLD / "groups.safetensors").candidates == ["odd", "even"]
    answered = vlmprobe.load_result(OLD / "yes_no.safetensors")
    assert answered.probability == pytest.approx(1 / (1 + np.exp(-answered.margin)))
    for each in (answer, lean, served):
        assert each.to_html()


def test_a_head_of_0_1(described):
    head = LinearHead.load(OLD / "head.safetensors")
    assert text(described(head)) == text(EXPECTED["head.safetensors"])
    assert head.classes == ("a", "b", "ü")


def test_a_parquet_file_of_0_1():
    """It was written from two of the results, whose numbers another test holds."""
    parquet = pytest.importorskip("pyarrow.parquet")
    tables = [vlmprobe.load_result(OLD / name).output for name in ("result", "lean.safetensors")]
    found = list(distillation.read_parquet(OLD / "teacher.parquet"))
    described = distillation.describe_parquet(OLD / "teacher.parquet")
    assert (described["format"], described["top"], described["versions"]["vlmprobe"]) == (1, 4, "0.1.0")
    for targets, table in zip(found, tables, strict=True):
        assert targets.positions.tolist() == table.positions.tolist()
        assert targets.token_ids.tolist() == table.ids.tolist()
        assert targets.top_ids.tolist() == table.top_ids[:, :4].tolist()
        assert targets.top_logprobs.tolist() == table.top_logprobs[:, :4].tolist()
    columns = parquet.read_table(OLD / "teacher.parquet").to_pydict()
    assert columns["token"] == [token for table in tables for token in table.tokens]
    assert columns["logprob"] == [value for table in tables for value in table.logprobs.tolist()]


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_0_1(name, described):
    if name == ROWS[2]:
        pytest.importorskip("ml_dtypes")
    assert metadata(OLD / name) is None, "0.1 gave no number"
    tables = load_rows(OLD / name)
    assert isinstance(tables["output"], np.memmap)
    assert text(described({key: np.array(rows) for key, rows in tables.items()})) == text(EXPECTED[name])


def test_the_memory_of_0_1(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(shutil.copytree(OLD / "cache", tmp_path / "cache")))
    assert passed_checks.passed("some/model", "0123abcd")
    assert not passed_checks.passed("some/model", "another state")


# What is saved now


@pytest.fixture(scope="module")
def answer(probe_of):
    return probe_of("llava").generate(QUESTION, picture(), max_new_tokens=2, do_sample=False)


def test_every_file_gives_its_layout(answer, probe_of, tmp_path, monkeypatch):
    folder = answer.save(tmp_path / "result")
    assert json.loads((folder / "result.json").read_text(encoding="utf-8"))["format"] == FORMAT == 2
    assert json.loads(metadata(answer.save(tmp_path / "one.safetensors"))["vlmprobe"])["format"] == 2

    head = LinearHead(np.ones((1, 3)), np.zeros(1)).save(tmp_path / "head.safetensors")
    assert json.loads(metadata(head)["vlmprobe_head"])["format"] == 1

    rows = probe_of("llava").generate("Hi", max_new_tokens=2, do_sample=False, keep=OnDisk(tmp_path / "rows"))
    assert json.loads(metadata(rows.meta["logits_file"])["vlmprobe_rows"])["format"] == 1

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    passed_checks.remember("some/model", "state")
    (file,) = passed_checks.folder().iterdir()
    assert json.loads(file.read_text(encoding="utf-8"))["format"] == 1

    assert check_adapter(probe_of("llava"), only=["C1"]).to_dict()["format"] == 1
    assert compatibility_matrix.check_architecture("no such architecture")["format"] == 1


def test_a_parquet_file_gives_its_layout(answer, tmp_path):
    pytest.importorskip("pyarrow")
    assert distillation.describe_parquet(export.write_parquet([answer], tmp_path / "p.parquet"))["format"] == 1


def test_rows_are_read_back_as_they_were_written(probe_of, tmp_path):
    held = probe_of("llava").generate(QUESTION, picture(), max_new_tokens=3, do_sample=False, keep=tmp_path)
    tables = load_rows(held.meta["logits_file"])
    assert list(tables) == ["prompt", "output"]
    for name, rows in tables.items():
        assert isinstance(rows, np.memmap)
        assert np.array_equal(rows, getattr(held, name).logits, equal_nan=True)
        with pytest.raises(ValueError, match="read-only"):
            rows[0] = 0


def test_the_header_of_rows_has_room_for_many_tables(tmp_path):
    import torch

    file = RowFile(OnDisk(tmp_path), {str(place): 1 for place in range(2000)})
    for place in range(2000):
        file.write(str(place), 0, torch.full((3,), float(place)))
    file.close()
    tables = load_rows(file.path)
    assert [rows.tolist() for rows in tables.values()] == [[[float(place)] * 3] for place in range(2000)]


# What a later vlmprobe saves


def later_result(path, answer):
    folder = answer.save(path / "result")
    document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    # Whatever else is different then, the number is what is looked at first.
    (folder / "result.json").write_text(json.dumps({"format": document["format"] + 1}), encoding="utf-8")
    (folder / "arrays.safetensors").write_bytes(b"laid out otherwise")
    return folder, vlmprobe.load_result


def later_file(path, answer):
    save_file({"a": np.zeros(3)}, path / "r.safetensors", metadata={"vlmprobe": json.dumps({"format": FORMAT + 1})})
    return path / "r.safetensors", vlmprobe.load_result


def later_head(path, answer):
    save_file({"a": np.zeros(3)}, path / "h.safetensors", metadata={"vlmprobe_head": json.dumps({"format": 2})})
    return path / "h.safetensors", LinearHead.load


def later_rows(path, answer):
    tensors = load_file(OLD / ROWS[0])
    save_file(tensors, path / "0.safetensors", metadata={"vlmprobe_rows": json.dumps({"format": 2})})
    return path / "0.safetensors", load_rows


def later_parquet(path, answer):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(OLD / "teacher.parquet").select(["id"])
    changed = table.replace_schema_metadata({export.METADATA: json.dumps({"format": 2}).encode()})
    parquet.write_table(changed, path / "t.parquet")
    return path / "t.parquet", lambda file: list(distillation.read_parquet(file))


@pytest.mark.parametrize("made", [later_result, later_file, later_head, later_rows, later_parquet])
def test_a_later_layout_is_refused_with_what_to_do(made, answer, tmp_path):
    path, read = made(tmp_path, answer)
    with pytest.raises(ResultError, match=r"has layout \d, .* reads layouts up to \d.*Update vlmprobe") as raised:
        read(path)
    found, newest = map(int, re.findall(r"layouts? (?:up to )?(\d)", str(raised.value)))
    assert found == newest + 1
    assert str(path) in str(raised.value)
    assert vlmprobe.__version__ in str(raised.value)


def test_a_memory_of_a_later_vlmprobe_is_no_pass(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    passed_checks.remember("some/model", "state")
    assert passed_checks.passed("some/model", "state")
    (file,) = passed_checks.folder().iterdir()
    for number in (2, "1", None, [1]):
        file.write_text(json.dumps({**json.loads(file.read_text()), "format": number}), encoding="utf-8")
        assert not passed_checks.passed("some/model", "state")


@pytest.mark.parametrize("found", [0, -1, True, None, "1", 1.0, [1], {}])
def test_what_is_no_layout(found):
    with pytest.raises(VlmprobeError, match="which no vlmprobe writes"):
        require_readable("a/file", found, 1)


def test_what_is_no_file_of_rows(tmp_path):
    for number, tensors in enumerate(
        (
            {},
            {"a": np.zeros(3, np.float32)},
            {"a": np.zeros((2, 3), np.int64)},
            {"a": np.zeros((2, 3), np.float32), "b": np.zeros((2, 4), np.float32)},
            {"a": np.zeros((2, 3), np.float32), "b": np.zeros((2, 3), np.float16)},
            {"a": np.zeros((0, 3), np.float32)},
            {"a": np.zeros((3, 0), np.float32)},
        )
    ):
        save_file(tensors, tmp_path / f"{number}.safetensors")
        with pytest.raises(ResultError, match="not a file of rows"):
            load_rows(tmp_path / f"{number}.safetensors")
    whole = (OLD / ROWS[0]).read_bytes()
    for content in (b"", b"\xff" * 40, whole[:60], whole[:-4]):
        (tmp_path / "damaged").write_bytes(content)
        with pytest.raises(ResultError, match="not a file of rows"):
            load_rows(tmp_path / "damaged")
    for described in ("[]", "3", "{"):
        save_file({"a": np.zeros((1, 3), np.float32)}, tmp_path / "odd", metadata={"vlmprobe_rows": described})
        with pytest.raises(ResultError, match="not a file of rows"):
            load_rows(tmp_path / "odd")
    with pytest.raises(ResultError, match="not a file of rows"):
        load_rows(tmp_path / "missing")
