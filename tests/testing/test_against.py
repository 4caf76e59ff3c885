"""``check_against``: the references of this project pass, and each way to be another model is found."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from common import GOLDEN
from typer.testing import CliRunner

import vlmprobe
from vlmprobe.cli import app
from vlmprobe.errors import MessageError, ResultError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.model_registry.original.internvl2.processing import InternVL2Processor
from vlmprobe.testing import check_against
from vlmprobe.testing.reference import read_reference

pytest.importorskip("timm")
pytest.importorskip("sentencepiece")

CASES = sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))


def loaded(case):
    return vlmprobe.load(GOLDEN / case, dtype="float32", check=False)


def failed(probe, case):
    report = check_against(probe, GOLDEN / case)
    return {result.id: result.failure for result in report.failures}


@pytest.mark.parametrize("case", CASES)
def test_the_references_of_this_project_pass(case):
    report = check_against(loaded(case), GOLDEN / case).raise_for_failures()
    assert [each.id for each in report.results] == ["R1", "R2", "R3", "R4"]
    assert report["R1"].status == report["R3"].status == report["R4"].status == "passed"


# -- what vlmprobe check alone does not find ---------------------------------------------------------


def test_swapped_axes_of_the_tiles(monkeypatch):
    right = InternVL2Processor.pixels
    monkeypatch.setattr(InternVL2Processor, "pixels", lambda *given: right(*given).transpose(-1, -2).contiguous())
    found = failed(loaded("internvl2-qwen2"), "internvl2-qwen2")
    assert set(found) == {"R2", "R3", "R4"}
    assert "with rows and columns swapped they agree" in found["R2"]


def test_another_normalisation(monkeypatch):
    monkeypatch.setattr("vlmprobe.model_registry.original.internvl2.processing.IMAGENET_MEAN", (0.5, 0.5, 0.5))
    monkeypatch.setattr("vlmprobe.model_registry.original.internvl2.processing.IMAGENET_STD", (0.5, 0.5, 0.5))
    found = failed(loaded("internvl2-qwen2"), "internvl2-qwen2")
    assert set(found) == {"R2", "R3", "R4"}
    assert "within 1e-06" in found["R2"]


@pytest.mark.parametrize("change", [lambda ids: ids[:1] + ids, lambda ids: ids[1:]], ids=["twice", "missing"])
def test_the_begin_token(change, monkeypatch):
    probe = loaded("internvl2-internlm2")
    adapter = probe.engine.adapter
    right = type(adapter).tokenize
    monkeypatch.setattr(type(adapter), "tokenize", lambda self, text: change(right(self, text)))
    report = check_against(probe, GOLDEN / "internvl2-internlm2")
    assert report["R1"].status == "failed"
    assert "'<s>'" in report["R1"].failure
    assert "see R1" in report["R3"].reason


def test_a_conversation_that_is_refused_hides_no_other(monkeypatch):
    """R1 says why; the other checks compare the rest, and name what they left out."""
    probe = loaded("internvl2-qwen2")
    kind = type(probe.engine.adapter)
    right, refused = kind.encode, read_reference(GOLDEN / "internvl2-qwen2").scenarios[0]

    def encode(self, conversations):
        if conversations[0] == Conversation.build(refused.messages):
            raise MessageError("not this one")
        return right(self, conversations)

    monkeypatch.setattr(kind, "encode", encode)
    report = check_against(probe, GOLDEN / "internvl2-qwen2")
    assert {result.id: result.status for result in report.results} == {
        "R1": "failed", "R2": "passed", "R3": "passed", "R4": "passed"
    }  # fmt: skip
    assert "MessageError: not this one" in report["R1"].failure
    for name in ("R2", "R3", "R4"):
        assert f"not compared, see R1: {refused.name}" in report[name].notes


def test_fewer_experts():
    probe = loaded("internvl3-5-qwen3-moe")
    routers = [module for module in probe.model.modules() if hasattr(module, "top_k")]
    assert routers
    for router in routers:
        router.top_k = 1
    assert set(failed(probe, "internvl3-5-qwen3-moe")) == {"R3", "R4"}


def test_positions_of_patches():
    """One-dimensional ones, those of 2.5, in a checkpoint of 2.6."""
    probe = loaded("minicpmv-2.6")
    inner = probe.model.model
    inner.release = replace(inner.release, patch_mask=False)
    assert set(failed(probe, "minicpmv-2.6")) == {"R3", "R4"}


# -- the folder ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A reference under its present names."""
    source = GOLDEN / "minicpmv-2.6"
    for file in source.glob("image_*.png"):
        shutil.copy(file, tmp_path)
    scenarios = json.loads((source / "golden.json").read_text(encoding="utf-8"))
    manifest = {"format": "vlmprobe-reference", "version": 1, "source": {"code": "original"}, "scenarios": scenarios}
    (tmp_path / "reference.json").write_text(json.dumps(manifest), encoding="utf-8")
    shutil.copy(source / "golden.safetensors", tmp_path / "reference.safetensors")
    return tmp_path


def changed(folder, change):
    file = folder / "reference.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest)
    file.write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def first_image(manifest, path):
    manifest["scenarios"]["one_image"]["messages"][0]["content"][0]["path"] = path


def test_a_manifest_with_its_source_and_tolerances(folder):
    changed(folder, lambda told: told.update(tolerances={"pixels": 1e-9, "logits": 1e-9}))
    report = check_against(loaded("minicpmv-2.6"), folder)
    assert report["R3"].status == "failed"  # of rounding
    assert report.meta["source"] == {"code": "original"}
    assert "1.0e-09" in report["R3"].failure


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda told: told.update(format="other"), "not a reference"),
        (lambda told: told.update(version=2), "reads up to 1"),
        (lambda told: told.update(version="1"), "reads up to 1"),
        (lambda told: told.update(scenarios={}), "no scenarios"),
        (lambda told: told["scenarios"].update(extra={"messages": "none"}), "'extra': it has no list of messages"),
        (lambda told: told["scenarios"]["one_image"].update(input_ids=["1"]), "list of integers"),
        (lambda told: told["scenarios"].update(more=told["scenarios"]["one_image"]), "logits are missing"),
        (lambda told: told["scenarios"]["one_image"]["input_ids"].append(1), "for 96 positions"),
        (lambda told: first_image(told, "../image_a.png"), "lies outside the folder"),
        (lambda told: first_image(told, "/etc/passwd"), "lies outside the folder"),
        (lambda told: first_image(told, "none.png"), "there is no image 'none.png'"),
        (lambda told: first_image(told, None), "relative to the folder"),
    ],
)
def test_a_manifest_that_is_wrong_is_told(folder, change, said):
    with pytest.raises(ResultError, match=said):
        read_reference(changed(folder, change))


def test_a_link_out_of_the_folder(folder):
    changed(folder, lambda told: first_image(told, "link.png"))
    os.symlink(GOLDEN / "minicpmv-2.6" / "image_a.png", folder / "link.png")
    with pytest.raises(ResultError, match="lies outside"):
        read_reference(folder)


@pytest.mark.parametrize("name", ["reference.json", "reference.safetensors"])
def test_a_damaged_file(folder, name):
    (folder / name).write_bytes(b"{")
    with pytest.raises(ResultError, match=name):
        read_reference(folder)


# -- the command -----------------------------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_the_command():
    case = GOLDEN / "internvl2-qwen2"
    passed = call(case, "--against", case, "--json")
    assert passed.exit_code == 0, passed.output
    record = json.loads(passed.stdout)
    assert record["passed"]
    assert record["reference"] == str(case)
    assert record["dtype"] == "float32"
    other = call(case, "--against", GOLDEN / "internvl2-5-qwen2")
    assert other.exit_code == 1
    assert "the prompts part at character 21" in " ".join(other.stdout.split())


def test_wrong_usage_of_the_command(tmp_path):
    case = GOLDEN / "internvl2-qwen2"
    none = call(case, "--against", tmp_path / "none")
    assert none.exit_code == 2
    assert "there is no such folder" in none.stderr
    both = call(case, "--against", case, "--only", "C1")
    assert both.exit_code == 2


def test_a_model_that_is_not_transformers_own_is_told_what_passing_says():
    done = call(GOLDEN / "internvl2-qwen2", "--only", "C1")
    assert done.exit_code == 0
    assert "--against" in done.stderr


def test_the_recorder_of_a_new_adapter(tmp_path, checkpoint):
    """As generated it records a model of transformers and needs nothing of vlmprobe; of long prompts, some rows."""
    package = tmp_path / "package"
    assert CliRunner().invoke(app, ["new-adapter", "mine", "--folder", str(package)]).exit_code == 0
    recorder = package / "record_reference.py"
    source = recorder.read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) vlmprobe", source, re.MULTILINE)
    ast.parse(source, feature_version=(3, 8))
    assert "ROWS = 500 " in source
    recorder.write_text(source.replace("ROWS = 500 ", "ROWS = 60 "), encoding="utf-8")
    model, reference = checkpoint("llava"), tmp_path / "reference"
    subprocess.run([sys.executable, str(recorder), str(model), str(reference)], check=True, capture_output=True)
    report = check_against(vlmprobe.load(model, dtype="float32", check=False), reference).raise_for_failures()
    assert report.counts() == {"passed": 4}
    assert report.meta["source"]["versions"]["torch"]
    scenarios = read_reference(reference).scenarios
    assert len({len(scenario.input_ids) > 60 for scenario in scenarios}) == 2
    for scenario in scenarios:
        last = len(scenario.input_ids) - 1
        at = scenario.tensors["positions"].tolist()
        assert at == sorted(set(at))
        assert (at[0], at[-1], len(at)) == (0, last, min(60, last + 1))
        assert len(scenario.tensors["logits"]) == len(at)
