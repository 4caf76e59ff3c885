"""The libraries: lower bounds, the tested set, and ``make versions``, the suite with the oldest, tested and newest.

Nothing here asks a package index.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from common import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from typer.testing import CliRunner

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]


def imported(name):
    spec = importlib.util.spec_from_file_location(name, next((ROOT / "tools").rglob(f"{name}.py")))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def script():
    yield from imported("write_versions")


@pytest.fixture(scope="module")
def writer():
    yield from imported("write_constraints")


EXTRAS = PROJECT["project"]["optional-dependencies"]
TESTED = Requirement(EXTRAS["all"][0]).extras | {
    "all"
}  # those of the tested set; harnesses are apart (test_packaging.py)


def direct(extras=tuple(EXTRAS)):
    """Every requirement that pyproject.toml names itself: of the package, extras, groups and the build."""
    lists = [PROJECT["project"]["dependencies"], PROJECT["build-system"]["requires"]]
    lists += [*(EXTRAS[name] for name in extras), *PROJECT["dependency-groups"].values()]
    found = [Requirement(each) for names in lists for each in names]
    return [each for each in found if each.name != PROJECT["project"]["name"]]


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
    bounds = script.lower_bounds(script.requirements())
    named = {Requirement(each).name for each in bounds}
    assert {"torch", "transformers", "timm", "numpy", "typer"} <= named
    for each in map(Requirement, requires("vlm-logit-probe")):
        of_tested = not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in TESTED)
        if each.name != PROJECT["project"]["name"] and of_tested:
            (bound,) = {Requirement(line).specifier for line in bounds if Requirement(line).name == each.name}
            (lowest,) = (one.version for one in each.specifier if one.operator == ">=")
            assert bound.contains(lowest)


def test_the_lower_bounds_are_read_from_the_file_that_is_installed(script):
    written = {canonicalize_name(Requirement(each).name) for each in script.requirements()}
    installed = [Requirement(each) for each in requires("vlm-logit-probe")]
    tested = [each for each in installed if not each.marker or any(each.marker.evaluate({"extra": x}) for x in TESTED)]
    assert written == {canonicalize_name(each.name) for each in tested}


def test_environments_are_made_with_pip(script, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(script.subprocess, "run", lambda command, check: ran.append(command))
    for name in script.SIDES:
        assert script.environment(name, tmp_path).is_relative_to(tmp_path / name)
    assert len(ran) == 9
    for name, (made, pip, install) in zip(script.SIDES, (ran[:3], ran[3:6], ran[6:]), strict=True):
        assert made == [sys.executable, "-m", "venv", "--clear", str(tmp_path / name)]
        assert pip[1:4] == install[1:4] == ["-m", "pip", "install"]
        assert "pip" in pip[4:]
        at = install.index("--editable")
        assert install[at : at + 4] == ["--editable", f"{ROOT}[all]", "--group", f"{ROOT / 'pyproject.toml'}:dev"]
    oldest, tested, newest = ran[2::3]
    assert oldest[-2:] == ["--constraint", str(tmp_path / "oldest.txt")]
    assert "transformers==" in (tmp_path / "oldest.txt").read_text(encoding="utf-8")
    assert tested[-2:] == ["--constraint", str(ROOT / "constraints.txt")]
    assert "--upgrade" not in tested
    assert newest[-3:] == ["--upgrade", "--upgrade-strategy", "eager"]
    assert "--constraint" not in newest


def test_an_environment_is_kept_only_where_a_run_goes_on(script, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(script.subprocess, "run", lambda command, check: ran.append(command))
    python = script.environment("newest", tmp_path, anew=False)
    assert len(ran) == 3  # nothing was there
    python.parent.mkdir(parents=True)
    python.touch()
    assert script.environment("newest", tmp_path, anew=False) == python
    assert [command[-3:] for command in ran[3:]] == [["--no-deps", "--editable", str(ROOT)]]  # its libraries stay
    script.environment("newest", tmp_path)
    assert len(ran) == 7

    def fail(command, check):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(script.subprocess, "run", fail)
    for anew in (True, False):  # what an ended pip leaves counts as nothing
        with pytest.raises(subprocess.CalledProcessError):
            script.environment("newest", tmp_path, anew=anew)


def test_the_libraries_of_an_environment(script):
    found = script.installed(Path(sys.executable))
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["huggingface-hub"] == version("huggingface_hub")
    assert not {"pip", "vlm-logit-probe"} & set(found)


def test_the_page_tells_what_differs(script):
    old = side(
        script,
        record("same"),
        record("fixed", "expected: 1\ngot: 2 | 3"),
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
    text = script.page(old, new, new)
    assert "| transformers | 5.0 | 6.1 | 6.1 |" in text
    assert "| architectures of transformers that pass | 2 of 4 | 5 of 5 | 5 of 5 |" in text
    assert "| original formats that pass | 1 of 1 | 1 of 1 | 1 of 1 |" in text
    assert "| `fixed` | fails C1: expected: 1 got: 2 \\| 3 | passes | passes |" in text
    assert "| `crashed` | does not run: TypeError: no | passes | passes |" in text
    assert "| `noted` | beams: not checked (why) | passes | passes |" in text
    assert "`same`" not in text
    assert "| `young` | transformers 5.9: its cache forgets |" in text
    assert "without a tiny checkpoint: `unheard_of`" in text
    assert "Written 2030-01-02" in text
    assert "Windows and Apple's MPS are untested" in text


def test_a_page_of_three_sides(script):
    """One architecture changes with each step; one that the oldest side lacks breaks with the newest."""
    old = side(script, record("moves", "one"), record("broken", "the same"))
    tested = side(script, record("moves", "two", transformers="5.1"), record("young"), record("broken", "the same"))
    new = side(script, record("moves", transformers="5.2"), record("young", "late"), record("broken", "the same"))
    text = script.page(old, tested, new)
    assert "|  | oldest | tested | newest |" in text
    assert "| transformers | 5.0 | 5.1 | 5.2 |" in text
    assert "| architecture | oldest | tested | newest |" in text
    assert "| `moves` | fails C1: one | fails C1: two | passes |" in text
    assert "| `young` | not there | passes | fails C1: late |" in text
    differing, _, failing = text.partition("## Failing")
    assert "`broken`" not in differing
    assert "| `broken` | fails C1: the same |" in failing
    assert "| `moves`" not in failing


def test_the_page_names_a_set_that_was_run_once_and_what_moved(script):
    old = side(script, record("one"), packages={"torch": "2.0", "python": "3.11.7"})
    new = side(script, record("one"), packages={"torch": "2.1", "python": "3.11.7", "added": "1"})
    text = script.page(old, new, new)
    assert "The newest set is the same as the tested one, so it was run once for both." in text
    assert "Differences of the newest set" not in text
    text = script.page(old, old, new)
    assert "The tested set is the same as the oldest one, so it was run once for both." in text
    assert "The newest set is" not in text
    assert "Differences of the newest set from the tested one: added 1 (none), torch 2.1 (2.0)." in text
    text = script.page(*[side(script, record("one"))] * 3)  # nothing is known of the sets
    assert "run once" not in text


def test_sides_that_lack_the_same_share_a_section(script):
    lacking = side(script, record("one"), later={"young": "a transformers version that has it"})
    text = script.page(lacking, lacking, side(script, record("one")))
    assert "## Unavailable with the oldest and the tested\n" in text
    assert text.count("| `young` |") == 1


def test_a_page_without_differences(script):
    text = script.page(*[side(script, record("one"))] * 3)
    assert "None: every architecture" in text
    for title in ("Unavailable with the oldest", "Not checked yet", "## Failing", "## Private names"):
        assert title not in text


def test_the_page_says_which_pythons_ran(script):
    known = record("one", versions={"python": "3.11.7", "transformers": "5.0"})
    ran = [{"python": "3.13.0", "set": "tested", "what": "make test", "date": "2030-01-03", "result": "3 passed | 0"}]
    text = script.page(*[side(script, known)] * 3, ran=ran)
    of_sides = "the conformance suite | 1 of 1 architectures and 0 of 0 original formats pass |"
    for name in script.SIDES:
        assert f"| 3.11.7 | {name} | {of_sides}" in text
    assert "| 3.13.0 | tested | make test, 2030-01-03 | 3 passed \\| 0 |" in text


def test_the_page_lists_private_names(script):
    why = "the mask " * 60
    private = [{"name": "a._b", "used_in": ["x.py", "y.py"], "why": why, "notices": "test_a | test_b"}]
    text = script.page(*[side(script, record("one"))] * 3, private=private)
    assert "## Private names\n" in text
    assert f"| `a._b` | `x.py`, `y.py` | {why.strip()} | test_a \\| test_b |" in text


@pytest.mark.parametrize(
    ("file", "table", "keys"),
    [
        ("ran.toml", "ran", {"python", "set", "what", "date", "result"}),
        ("private_names.toml", "name", {"name", "used_in", "why", "notices"}),
    ],
)
def test_the_data_of_the_page(script, file, table, keys):
    """Whatever these files hold has the keys that the page needs, and nothing else."""
    found = script._tables(ROOT / "docs" / "reference" / file, table)
    assert all(set(each) == keys for each in found)
    text = script.page(*[side(script, record("one"))] * 3, **{"ran" if table == "ran" else "private": found})
    assert text.count("\n| ") >= len(found)


@pytest.mark.long  # two runs of the suite in processes of their own, for what make versions does alone
def test_every_side_runs_with_the_python_that_is_given(run, tmp_path):
    """Here it is one and the same: it runs once and nothing differs. A second run resumes, and so runs nothing."""
    arguments = [each for name in ("oldest", "tested", "newest") for each in (f"--{name}", sys.executable)]
    arguments += ["--names", "llava", "--jobs", 1]
    arguments += ["--folder", tmp_path, "--out", tmp_path / "page.md", "--resume"]
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert "The tested libraries are the same as the oldest ones: not run again." in done.output
    assert "The newest libraries are the same as the oldest ones: not run again." in done.output
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| architectures of transformers that pass | 1 of 1 | 1 of 1 | 1 of 1 |" in text
    assert "None: every architecture" in text
    assert "The newest set is the same as the oldest one, so it was run once for both." in text

    assert (tmp_path / "newest.jsonl").read_bytes() == (tmp_path / "oldest.jsonl").read_bytes()

    known = json.loads((tmp_path / "oldest.jsonl").read_text(encoding="utf-8"))
    assert known["architecture"] == "llava"
    (tmp_path / "newest.jsonl").unlink()  # which is taken from the oldest again, while the tested has its own
    known["checks"]["C7"] |= {"status": "failed", "failure": "expected: 1"}
    (tmp_path / "oldest.jsonl").write_text(json.dumps(known | {"passed": False}) + "\n", encoding="utf-8")
    done = run(*arguments)
    assert done.exit_code == 1
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "| `llava` | fails C7: expected: 1 | passes | fails C7: expected: 1 |" in text


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


def test_the_tested_set_has_names_and_versions_only():
    assert len(PINS) > len(direct())
    for line in PINS:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9]+(\.(post|dev)?[0-9]+|(a|b|rc)[0-9]+)*", line), line
    names = [line.partition("==")[0] for line in PINS]
    assert names == sorted(set(names))
    assert PROJECT["project"]["name"] not in names
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))]


@pytest.mark.parametrize("requirement", direct(sorted(TESTED)), ids=str)
def test_the_tested_set_holds_what_pyproject_names(requirement):
    (pinned,) = [line for line in PINS if line.startswith(f"{canonicalize_name(requirement.name)}==")]
    assert requirement.specifier.contains(pinned.partition("==")[2])


def test_every_requirement_has_a_lower_bound():
    """Else the oldest side of docs/reference/versions.md would have the newest of it."""
    assert [str(each) for each in direct() if ">=" not in str(each.specifier)] == []


def test_the_tested_set_is_written_from_the_report_of_pip(writer):
    found = [("B_c.d", "1.0+cpu"), ("a", "2.1.post1"), ("nvidia-cublas", "13.1"), ("triton", "3.8"), ("own", "0.2")]
    report = {"install": [{"metadata": {"name": name, "version": version}} for name, version in found]}
    assert writer.pins(report, "own") == ["a==2.1.post1", "b-c-d==1.0"]


def test_the_tested_set_is_as_it_was_written(writer):
    """And the package names the same versions; constraints.txt is not installed with it."""
    assert (ROOT / "constraints.txt").read_text(encoding="utf-8") == writer.HEAD + "\n".join(PINS) + "\n"
    source = writer.TOLD.read_text(encoding="utf-8")
    assert writer.retold(source, PINS) == source
    newer = [re.sub("^(torch|transformers)==.*", r"\1==9.8.7", line) for line in PINS]
    old = {line.split("==")[0]: line.split("==")[1] for line in PINS}
    assert writer.retold(source, newer) == source.replace(
        f'"transformers": "{old["transformers"]}"', '"transformers": "9.8.7"'
    ).replace(f'"torch": "{old["torch"]}"', '"torch": "9.8.7"')
    with pytest.raises(ValueError, match="no TESTED"):
        writer.retold("", PINS)


def test_the_tested_set_is_resolved_from_all_that_pyproject_names(writer):
    asked = writer.wanted(PROJECT)
    assert asked[0] == ".[all]"  # which extras that are: test_packaging.py
    for group in PROJECT["dependency-groups"]:
        assert asked[asked.index(group) - 1] == "--group"
    assert set(PROJECT["build-system"]["requires"]) < set(asked)


def test_the_tested_set_is_written_with_the_oldest_python(writer, monkeypatch):
    """Since the newest libraries of a later Python may not be there for it."""
    (lowest,) = Requirement(f"python{PROJECT['project']['requires-python']}").specifier
    assert Version(lowest.version).release <= writer.PYTHON
    monkeypatch.setattr(writer.sys, "version_info", (3, 14, 0))
    with pytest.raises(SystemExit, match=r"make lock PYTHON=python3\.11"):
        writer.main([])


@pytest.fixture(scope="module")
def commands():
    """Target of the Makefile -> what it runs where nothing is there yet."""
    if shutil.which("make") is None:
        pytest.skip("needs make")

    # make test hands its own arguments down to any make below it.
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def told(*targets):
        command = ["make", "--dry-run", "--always-make", "PYTHON=python3", "VENV=absent", "NEWEST=absent-newest"]
        done = subprocess.run(
            [*command, *targets], cwd=ROOT, env=variables, check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout.splitlines()

    return told


@pytest.mark.parametrize("target", ["demo", "test", "test-all", "lint", "types", "matrix", "bench", "docs", "versions"])
def test_the_makefile_installs_the_tested_set(commands, target):
    lines = commands(target)
    installs = [line for line in lines if "pip install" in line]
    assert len(installs) == 2  # pip itself, and everything in one call
    assert all("--constraint constraints.txt" in line for line in installs)
    assert "--build-constraint constraints.txt" in installs[1]
    (forgotten,) = [at for at, line in enumerate(lines) if "pip uninstall" in line]
    assert lines[forgotten].endswith(" vlmprobe")
    assert forgotten < lines.index(installs[1])


def test_the_makefile_installs_again_where_the_tested_set_changes():
    rules = re.findall(r"^\$\(VENV\)/(\.installed\S*): (.*?) \|", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert [name for name, _ in rules] == [".installed", ".installed-dev", ".installed-bench"]
    assert all(files.split() == ["pyproject.toml", "constraints.txt"] for _, files in rules)


def test_the_newest_libraries_have_an_environment_of_their_own(commands):
    lines = commands("test-newest")
    installs = [line for line in lines if "pip install" in line]
    assert not [line for line in lines if "constraint" in line or line.startswith("absent/")]
    assert installs[-1].startswith("absent-newest/bin/python ")
    assert "--upgrade --upgrade-strategy eager --editable '.[all]' --group dev" in installs[-1]
    assert lines[-1].startswith("absent-newest/bin/python -m pytest ")


def test_all_tests_leave_out_only_engines(commands):
    assert commands("test-all")[-1].rstrip().endswith("-m 'not engine'")


def test_what_every_change_must_pass():
    """With the tested set, not with what came out over night; pytest's closing line is the last."""
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make lint", "make types", "make test"]
    assert lines[-1] == "make test"


def test_the_page_shows_the_sets_that_pyproject_and_the_constraints_name(script):
    """Each column of versions.md is the set of that name. Where it is not, `make versions` writes it again."""
    text = script.PAGE.read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    columns = rows[0][1:]
    assert tuple(columns) == script.SIDES
    shown = {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows if row[0] in script.CORE}
    pins = dict(line.split("==") for line in PINS)
    lowest = {
        Requirement(each).name: Requirement(each).specifier for each in script.lower_bounds(script.requirements())
    }
    for name in ("transformers", "torch"):
        assert lowest[name].contains(shown[name]["oldest"])
        assert shown[name].get("tested", pins[name]) == pins[name]
