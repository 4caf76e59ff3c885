"""The conformance suite on tiny checkpoints: a representative third of the architectures, all in ``make matrix``."""

from __future__ import annotations

import pytest
import typer.testing
from common import DOCS, GOLDEN

from tools import compatibility_matrix
from tools.compatibility_matrix import check_architecture
from tools.compatibility_page import page
from vlmprobe.testing import tiny

REPRESENTATIVE = (  # nearly every adapter of the registry, and every way in which images enter
    "aria",
    "chameleon",
    "cohere_compass",
    "cosmos3_edge",
    "emu3",
    "gemma3",
    "gemma3n",
    "gemma4",
    "git",
    "glm4v",
    "got_ocr2",
    "granite4_vision",
    "hunyuan_vl",
    "hy_v4_vl",
    "instructblip",
    "internvl",
    "kosmos_2",
    "lfm2_vl",
    "llama4",
    "llava_next",
    "minicpmv4_6",
    "mistral3",
    "mllama",
    "molmo2",
    "ovis2",
    "paligemma",
    "qwen2_vl",
    "qwen3_vl",
)
ORIGINAL = ("internvl2-internlm2", "minicpmv-2.6", "omnilmm")


def architectures():
    return [name if name in REPRESENTATIVE else pytest.param(name, marks=pytest.mark.matrix) for name in tiny.names()]


def formats():
    return [
        each.parent.name if each.parent.name in ORIGINAL else pytest.param(each.parent.name, marks=pytest.mark.matrix)
        for each in sorted(GOLDEN.glob("*/config.json"))
    ]


def require_all(record):
    assert "error" not in record, record["error"]
    failed = [f"{each['id']}: {each['failure']}" for each in record["checks"].values() if each["status"] == "failed"]
    assert record["quick"] == []  # no false warning at load
    assert record["passed"], "\n".join(failed)
    assert len(record["checks"]) == 24


@pytest.mark.parametrize("name", architectures())
def test_architecture(name):
    require_all(check_architecture(name))


@pytest.mark.parametrize("name", formats())
def test_original_format(name):
    if name in ("omnilmm", "minicpmv-1.0", "minicpmv-2.0"):
        pytest.importorskip("timm")
    require_all(check_architecture(name, str(GOLDEN / name)))


def test_a_third_is_representative():
    from importlib.metadata import entry_points

    assert len(REPRESENTATIVE) >= len(tiny.names()) / 3
    points = entry_points(group="vlmprobe.adapters")
    ours = {point.name for point in points if point.value.startswith("vlmprobe.model_registry")}
    native = {"one_by_one": "emu3", "nested": "llama4", "qwen_vl": "qwen2_vl", "query_transformer": "instructblip"}
    original = {"internvl2", "minicpmv", "omnilmm"}
    elsewhere = {
        "glm5_next",
        "inkling2",
        "inkling2_loop",
        "qwen4_exp",
        "native",
    }  # slow ones run in the matrix; native is most of them
    assert ours - original - elsewhere <= {*REPRESENTATIVE, *native}


def record(name: str, **more):
    check = {"id": "C1", "statement": "a | b", "status": "passed", "reason": "", "failure": "", "notes": ()}
    return {
        "architecture": name,
        "source": "tiny",
        "passed": True,
        "adapter": "native",
        "date": "2030-01-02T03:04:05",
        "versions": {"torch": "9.9"},
        "quick": [],
        "checks": {"C1": check},
        **more,
    }


def test_the_page_tells_failures_errors_and_what_is_left_out():
    failed = {
        "id": "C1",
        "statement": "a",
        "status": "failed",
        "reason": "",
        "failure": "expected: 1\ngot: 2",
        "notes": (),
    }
    noted = {"id": "C1", "statement": "a", "status": "passed", "reason": "", "failure": ""}
    noted["notes"] = ("text only: not checked (no | way)", "noise: 2e-4 is 1e-9", "text only: not checked (another)")
    text = page(
        [
            record("good", checks={"C1": noted}),
            record("bad", passed=False, checks={"C1": failed}),
            {"architecture": "ugly", "source": "tiny", "passed": False, "error": "ValueError: no"},
            record("old", source="folder"),
            record("loud", passed=False, quick=["end tokens: answers would run on"]),
        ],
        {"left": "a reason"},
    )
    assert "**Architectures of transformers: 1 of 4 pass.**" in text
    assert "**Original checkpoint formats: 1 of 1 pass.**" in text
    assert "| `good` | passes 1 | `native` | text only: not checked; rounding ruled out in float64 |" in text
    assert "| `bad` | fails C1 |" in text
    assert "    C1: expected: 1\n    got: 2" in text
    assert "| `loud` | passes 1, warns at load | `native` |" in text
    assert "    end tokens: answers would run on" in text
    assert "| `ugly` | does not run |  | ValueError: no |" in text
    assert "| `left` | a reason |" in text
    assert "2030-01-02 with torch 9.9" in text


def test_an_architecture_that_cannot_be_built_is_an_error_of_its_own():
    found = check_architecture("no_such_architecture")
    assert not found["passed"]
    assert "no_such_architecture" in found["error"]


@pytest.mark.long  # a process of its own, for what make matrix does alone; its parts are tested above
def test_the_command_writes_page_and_records(tmp_path):
    app = typer.Typer()
    app.command()(compatibility_matrix.main)
    options = [
        "--names",
        "llava",
        "--jobs",
        "1",
        "--out",
        str(tmp_path / "page.md"),
        "--records",
        str(tmp_path / "r.jsonl"),
    ]
    done = typer.testing.CliRunner().invoke(app, options)
    assert done.exit_code == 0, done.output
    assert "1 of 1 architectures pass" in done.output
    assert "| `llava` | passes 22 | `native` |" in (tmp_path / "page.md").read_text(encoding="utf-8")
    assert (tmp_path / "r.jsonl").read_text(encoding="utf-8").count("\n") == 1


def test_the_published_page_lists_every_architecture():
    text = (DOCS / "reference" / "compatibility.md").read_text(encoding="utf-8")
    for name in (*tiny.names(), *tiny.SKIPPED, *(each.parent.name for each in GOLDEN.glob("*/config.json"))):
        assert f"| `{name}` |" in text, f"{name} is missing: run make matrix"
