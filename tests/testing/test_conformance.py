"""The conformance suite itself: no check passes on an adapter that violates it, and reports say what is the matter."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from broken_adapters import BROKEN, RowsOffByOne, conversations
from rich.console import Console
from typer.testing import CliRunner

import vlmprobe
from vlmprobe import testing
from vlmprobe.cli import app
from vlmprobe.engines.local import LocalEngine
from vlmprobe.errors import GenerationOptionError
from vlmprobe.model_registry.native import Native
from vlmprobe.probe import Probe
from vlmprobe.testing import check_adapter, checks, parametrize_with_checks, tiny
from vlmprobe.testing.float64 import exactly
from vlmprobe.testing.report import CheckFailure, CheckResult, ConformanceError, Report
from vlmprobe.testing.tolerance import require_numbers, require_rows, tolerances

ORDER = [check.id for check in checks()]


@pytest.fixture
def fresh(checkpoint):
    """Name of a family -> a probe of a model that no other test uses."""
    return lambda name: vlmprobe.load(checkpoint(name), device="cpu", dtype="float32", check=False)


def engine_around(probe: Probe, engine: type) -> Probe:
    return Probe(engine(probe.engine.adapter), probe.meta)


# Every check catches what it is there for, and is the first to


@pytest.mark.parametrize(
    "first", [False, pytest.param(True, marks=pytest.mark.long)], ids=["caught", "and by no check before it"]
)
@pytest.mark.parametrize("case", BROKEN, ids=lambda case: f"{case.check}-{case.name}")
def test_broken(case, first, fresh):
    if case.family not in tiny.names():
        pytest.skip(f"the installed packages cannot build {case.family}")
    probe = case.probe(fresh(case.family))
    with case.around() if case.around else nullcontext():
        report = check_adapter(probe, only=ORDER[: ORDER.index(case.check) + 1] if first else [case.check])
    assert [result.id for result in report.failures] == [case.check], report
    failure = report[case.check]
    assert "expected: " in failure.failure
    assert "got: " in failure.failure
    assert failure.causes


def test_every_check_has_something_that_it_catches():
    assert {case.check for case in BROKEN} == set(ORDER) == {f"C{number}" for number in range(1, 25)}


def test_a_rope_switch_is_passed_on_both_sides(fresh):
    """What C23 catches is broken on a model that passes it otherwise."""
    probe = fresh("llava")
    conversations.dynamic(probe.model)
    adapter = Native(probe.model, probe.processor)
    assert adapter.capabilities.prefix_limit == conversations.SWITCH
    report = check_adapter(Probe(LocalEngine(adapter), probe.meta))
    assert report.passed, str(report)
    assert report["C23"].status == "passed"


def test_what_does_not_apply_says_why(fresh):
    report = check_adapter(fresh("llava"), only=["C20", "C23"])
    assert report["C20"].reason == "the family puts images before the text"
    assert report["C23"].reason == "RoPE has the same factors at any length"


# In pytest, as an adapter's author would


@parametrize_with_checks({"llava": lambda: vlmprobe.load(tiny.build("llava", _FOLDER), device="cpu", check=False)})
def test_parametrised(probe, check):
    check(probe)


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory):
    global _FOLDER
    _FOLDER = tmp_path_factory.mktemp("parametrised") / "llava"


def test_parametrised_checks_fail_with_the_text_of_the_report(fresh):
    from vlmprobe.testing.parametrize import BoundCheck

    broken = engine_around(fresh("internvl"), RowsOffByOne)
    first = checks()[0]
    with pytest.raises(ConformanceError, match="off by one"):
        BoundCheck(first)(broken)
    with pytest.raises(pytest.xfail.Exception, match="known"):
        BoundCheck(first, "known")(broken)
    with pytest.raises(ConformanceError, match="unexpected pass"):
        BoundCheck(checks()[1], "known")(broken)


def test_expected_failures_of_a_check_that_does_not_exist():
    with pytest.raises(GenerationOptionError, match="C99"):
        parametrize_with_checks({}, expected_failures={"llava": {"C99": "why"}})


# What a report says


def test_off_by_one_is_told(fresh):
    report = check_adapter(engine_around(fresh("internvl"), RowsOffByOne), only=["C1"])
    assert "hint: most rows are those expected one row later: off by one" in report["C1"].failure
    assert "token 'u', position 1" in report["C1"].failure
    assert "rerun in float64" in report["C1"].failure


def test_expected_failures(fresh):
    broken = engine_around(fresh("internvl"), RowsOffByOne)
    report = check_adapter(broken, only=["C1", "C2"], expected_failures={"C1": "we know", "C2": "we think"})
    assert report["C1"].status == "expected failure"
    assert report["C1"].reason == "we know"
    assert report["C2"].status == "unexpected pass"
    assert report.passed
    assert report.raise_for_failures() is report
    assert report.counts() == {"expected failure": 1, "unexpected pass": 1}


def test_failures_are_raised(fresh):
    report = check_adapter(engine_around(fresh("internvl"), RowsOffByOne), only=["C2", "C1"])
    assert [result.id for result in report.results] == ["C1", "C2"]
    assert not report.passed
    with pytest.raises(ConformanceError, match="C1 failed"):
        report.raise_for_failures()


def test_callbacks_follow_the_checks(fresh):
    started, ended = [], []
    check_adapter(
        fresh("internvl"),
        only=["C1", "C3"],
        on_start=lambda check: started.append(check.id),
        on_result=lambda result: ended.append((result.id, result.status)),
    )
    assert started == ["C1", "C3"]
    assert ended == [("C1", "passed"), ("C3", "passed")]


def test_a_probe_of_a_server_is_refused():
    with pytest.raises(TypeError, match=r"vlmprobe\.load"):
        check_adapter(Probe(object()))


def test_unknown_check(fresh):
    with pytest.raises(GenerationOptionError, match=r"'C25'.*C1 to C24"):
        check_adapter(fresh("internvl"), only=["C25"])


def test_the_record_is_complete_and_plain_json(fresh):
    record = json.loads(json.dumps(check_adapter(fresh("internvl"), only=["C1"]).to_dict()))
    assert record["model_type"] == record["adapter"] == "internvl"
    assert record["dtype"] == "float32"
    assert record["device"] == "cpu"
    assert set(record["versions"]) == {"vlmprobe", "transformers", "torch", "python"}
    assert record["checks"]["C1"]["status"] == "passed"
    assert record["tolerances"] == {"rows": pytest.approx(1e-5), "paths": pytest.approx(1e-4)}


def test_a_report_in_a_terminal():
    results = (
        CheckResult("C1", "[bold]rows[/bold]", "failed", 0.5, failure="expected: [red]1\ngot: 2", causes=("a cause",)),
        CheckResult("C2", "steps", "skipped", 0.0, reason="no reason"),
        CheckResult("C3", "sums", "passed", 0.25, notes=("a note",)),
    )
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Report(results))
    text = console.export_text()
    for part in (
        "[bold]rows[/bold]",
        "[red]1",
        "usual cause: a cause",
        "no reason",
        "a note",
        "1 passed, 1 failed, 1 skipped",
    ):
        assert part in text


def test_what_a_model_cannot_be_asked_is_noted(fresh):
    report = check_adapter(fresh("paligemma"), only=["C4"])
    assert report["C4"].status == "passed"
    assert "without an image: not checked" in report["C4"].notes[0]


def test_an_error_in_every_check_is_told_once(fresh):
    probe = fresh("internvl")
    probe.engine.adapter.processor.chat_template = None
    probe.engine.adapter.tokenizer.chat_template = None
    report = check_adapter(probe, only=["C1", "C2", "C3"])
    assert "no chat template" in report["C1"].failure
    assert [result.failure for result in report.results[1:]] == ["the same as C1"] * 2


def test_importing_the_package_imports_no_torch():
    code = "import sys, vlmprobe.testing; sys.exit('torch' in sys.modules or 'pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(testing.__all__) <= set(dir(testing))
    assert testing.check_adapter is check_adapter
    with pytest.raises(AttributeError):
        _ = testing.nothing


# Bug or noise


def test_noise_is_ruled_out_in_float64(fresh):
    """A recurrence is summed in another order in a batch; float32 alone cannot say that this is all."""
    report = check_adapter(fresh("minicpm_ocr"), only=["C7"])
    assert report["C7"].status == "passed"
    assert "noise: a difference of" in report["C7"].notes[0]


def test_casts_to_float32_are_none_in_the_rerun():
    with exactly():
        half = torch.ones(2, dtype=torch.float64) / 3
        assert half.float().dtype == half.to(torch.float32).dtype == torch.float64
        assert torch.softmax(half, dim=-1, dtype=torch.float32).dtype == torch.float64
        assert torch.ones(1).dtype == torch.float64
    assert torch.ones(1).dtype == torch.float32
    assert torch.ones(1, dtype=torch.float64).float().dtype == torch.float32


def test_a_model_that_is_too_large_for_a_rerun_says_so(fresh, monkeypatch):
    import vlmprobe.testing.subject

    monkeypatch.setattr(vlmprobe.testing.subject, "_free_bytes", lambda device: 1000)
    report = check_adapter(engine_around(fresh("internvl"), RowsOffByOne), only=["C1"])
    assert "not rerun in float64" in report["C1"].failure


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes(dtype, checkpoint):
    probe = vlmprobe.load(checkpoint("llava"), device="cpu", dtype=dtype, check=False)
    report = check_adapter(probe)
    assert report.passed, report
    assert report.meta["dtype"] == dtype


def test_bfloat16_still_sees_rows_off_by_one(checkpoint):
    probe = vlmprobe.load(checkpoint("internvl"), device="cpu", dtype="bfloat16", check=False)
    assert not check_adapter(engine_around(probe, RowsOffByOne), only=["C1"]).passed


# Comparing


def test_rows_differ_where_they_differ():
    expected = np.zeros((3, 4))
    came = expected.copy()
    came[2, 1] = 0.5
    with pytest.raises(CheckFailure) as raised:
        require_rows(came, expected, 0.1, of="rows", path="zeros", names=["a", "b", "c"])
    assert raised.value.difference == 0.5
    assert "worst at c" in raised.value.where
    require_rows(came, expected, 0.5, of="rows", path="zeros", names=["a", "b", "c"])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_never_pass_for_a_number(value):
    with pytest.raises(CheckFailure):
        require_rows(np.array([[value]]), np.array([[0.0]]), 1e9, of="rows", path="zeros", names=["a"])
    with pytest.raises(CheckFailure):
        require_numbers([value], [0.0], 1e9, of="numbers", path="zero", names=["a"])


def test_forbidden_entries_are_equal_where_both_forbid():
    lowest = np.array([[-np.inf, np.finfo(np.float32).min, 1.0]])
    require_rows(lowest, lowest.copy(), 1e-6, of="rows", path="itself", names=["a"])


def test_undefined_on_both_sides_is_equal_for_numbers_alone():
    require_numbers([np.nan, 1.0], [np.nan, 1.0], 1e-6, of="numbers", path="themselves", names=["a", "b"])
    with pytest.raises(CheckFailure):
        require_rows(np.array([[np.nan]]), np.array([[np.nan]]), 1e-6, of="rows", path="itself", names=["a"])


def test_other_shapes_are_a_failure():
    with pytest.raises(CheckFailure, match="shape"):
        require_rows(np.zeros((1, 2)), np.zeros((1, 3)), 1.0, of="rows", path="zeros", names=["a"])
    with pytest.raises(CheckFailure):
        require_numbers([1.0], [1.0, 2.0], 1.0, of="numbers", path="them", names=["a"])


def test_tolerances_grow_with_the_logits():
    assert tolerances(torch.float32)["rows"] == pytest.approx(1e-5)
    assert tolerances(torch.float32, 40.0)["paths"] == pytest.approx(4e-4)
    assert tolerances(torch.bfloat16)["rows"] > tolerances(torch.float16)["rows"] > tolerances(torch.float32)["paths"]


# The command


def test_command_prints_a_table_and_appends_a_record(checkpoint, tmp_path):
    matrix = tmp_path / "runs" / "matrix.jsonl"
    arguments = ["check", str(checkpoint("llava")), "--only", "c1,C5", "--device", "cpu", "--matrix", str(matrix)]
    for _ in range(2):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert "2 passed in" in done.output
    lines = [json.loads(line) for line in matrix.read_text(encoding="utf-8").splitlines()]
    assert [sorted(line["checks"]) for line in lines] == [["C1", "C5"]] * 2


def test_command_ends_with_1_where_a_check_fails(checkpoint):
    arguments = ["check", str(checkpoint("ovis2")), "--adapter", "native", "--only", "C5", "--device", "cpu"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 1
    record = json.loads(done.stdout)
    assert record["adapter"] == "native"
    assert record["checks"]["C5"]["status"] == "failed"
    assert "filled but in no span" in record["checks"]["C5"]["failure"]
    expected = CliRunner().invoke(app, [*arguments, "--expect", "c5=indicators"])
    assert expected.exit_code == 0
    assert "expected failure" in expected.output


@pytest.mark.parametrize(
    "arguments", [["--only", "C77"], ["--expect", "C5"], ["--expect", "C77=why"], ["--matrix", "."]], ids=" ".join
)
def test_wrong_usage_of_the_command(arguments, checkpoint):
    done = CliRunner().invoke(app, ["check", str(checkpoint("llava")), *arguments])
    assert done.exit_code == 2
