"""``make versions``: the suite with the oldest and the newest libraries, and what differs between them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

SCRIPT = Path(__file__).parents[1] / "docs" / "write_versions.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("write_versions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def run(script):
    import typer

    app = typer.Typer()
    app.command()(script.main)
    return lambda *arguments: CliRunner().invoke(app, [str(each) for each in arguments])


def record(name, failure="", **more):
    check = {"id": "C1", "status": "failed" if failure else "passed", "reason": "", "failure": failure}
    check["notes"] = more.pop("notes", ())
    known = {"versions": {"transformers": more.pop("transformers", "5.0")}, "date": "2030-01-02T03:04:05"}
    return {"architecture": name, "source": "tiny", "passed": not failure, "checks": {"C1": check}, **known, **more}


def side(script, *records, **more):
    return script.Side({each["architecture"]: each for each in records}, **more)


def test_the_oldest_libraries_are_the_lower_bounds_of_the_package(script):
    assert script.lower_bounds(["a>=1.2", "b-c[x]>=3", "b_c>=1.0; extra == 'y'", "d"]) == ["a==1.2.*", "b_c==1.0.*"]
    bounds = script.lower_bounds(requires("vlm-logit-probe"))
    named = {Requirement(each).name for each in bounds}
    assert {"torch", "transformers", "timm", "numpy", "typer"} <= named
    for each in map(Requirement, requires("vlm-logit-probe")):
        if each.name != "vlmprobe":
            (bound,) = {Requirement(line).specifier for line in bounds if Requirement(line).name == each.name}
            (lowest,) = (one.version for one in each.specifier if one.operator == ">=")
            assert bound.contains(lowest)


def test_environments_are_made_with_pip(script, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(script.subprocess, "run", lambda command, check: ran.append(command))
    for name in script.SIDES:
        assert script.environment(name, tmp_path).is_relative_to(tmp_path / name)
    (made, oldest), (_, newest) = ran[:2], ran[2:]
    assert made == [sys.executable, "-m", "venv", str(tmp_path / "oldest")]
    assert oldest[-2:] == ["--constraint", str(tmp_path / "oldest.txt")]
    assert "transformers==" in (tmp_path / "oldest.txt").read_text(encoding="utf-8")
    assert "--upgrade" in newest
    assert "--constraint" not in newest


def test_the_page_tells_what_differs(script):
    old = side(
        script,
        record("same"),
        record("fixed", "expected: 1\ncame: 2 | 3"),
        {"architecture": "crashed", "source": "tiny", "passed": False, "error": "TypeError: no"},
        record("format", source="folder"),
        record("noted", notes=("beams: not checked (why)", "noise: 1e-4 vanishes")),
        later={"young": "transformers 5.9: its cache forgets"},
    )
    new = side(
        script,
        *(record(name, transformers="6.1") for name in ("same", "fixed", "crashed", "young", "noted")),
        record("format", source="folder"),
        unlisted=["unheard_of"],
    )
    text = script.page(old, new)
    assert "| transformers | 5.0 | 6.1 |" in text
    assert "| architectures of transformers that pass | 2 of 4 | 5 of 5 |" in text
    assert "| original formats that pass | 1 of 1 | 1 of 1 |" in text
    assert "| `fixed` | fails C1: expected: 1 came: 2 \\| 3 | passes |" in text
    assert "| `crashed` | does not run: TypeError: no | passes |" in text
    assert "| `noted` | beams: not checked (why) | passes |" in text
    assert "`same`" not in text
    assert "| `young` | transformers 5.9: its cache forgets |" in text
    assert "without a tiny checkpoint: `unheard_of`" in text
    assert "Written 2030-01-02" in text


def test_a_page_without_differences(script):
    text = script.page(side(script, record("one")), side(script, record("one")))
    assert "None: every architecture" in text
    assert "Not with the oldest" not in text
    assert "Not looked at yet" not in text


def test_both_sides_run_with_the_python_that_is_given(run, tmp_path):
    """Here it is one and the same, so nothing differs; a second run resumes, and so runs nothing."""
    arguments = ["--oldest", sys.executable, "--newest", sys.executable, "--names", "llava", "--jobs", 1]
    arguments += ["--folder", tmp_path, "--out", tmp_path / "page.md", "--resume"]
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| architectures of transformers that pass | 1 of 1 | 1 of 1 |" in text
    assert "None: every architecture" in text

    known = json.loads((tmp_path / "oldest.jsonl").read_text(encoding="utf-8"))
    assert known["architecture"] == "llava"
    known["checks"]["C7"] |= {"status": "failed", "failure": "expected: 1"}
    (tmp_path / "oldest.jsonl").write_text(json.dumps(known | {"passed": False}) + "\n", encoding="utf-8")
    done = run(*arguments)
    assert done.exit_code == 1
    assert "| `llava` | fails C7: expected: 1 | passes |" in (tmp_path / "page.md").read_text(encoding="utf-8")


def test_a_run_that_does_not_get_to_its_end(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "_run_matrix", lambda *_: -9)
    with pytest.raises(SystemExit, match="ended with -9 before llava; --resume goes on there"):
        script.examine(Path(sys.executable), tmp_path / "records.jsonl", names="llava", jobs=1)


def test_pip_that_fails_ends_the_run(script, tmp_path, monkeypatch):
    def fail(command, check):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(script.subprocess, "run", fail)
    with pytest.raises(subprocess.CalledProcessError):
        script.environment("oldest", tmp_path)
