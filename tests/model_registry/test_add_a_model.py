"""``vlmprobe new-adapter``, the page that leads through it, and plug-ins that are really installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from common import DOCS, ROOT
from typer.testing import CliRunner

from vlmprobe.cli import app

PAGE = DOCS / "extend" / "add-a-model.md"
FOUND = """
import json, warnings
from typer.testing import CliRunner
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import vlmprobe
    from vlmprobe.model_registry import registry
    from vlmprobe.cli import app
    from vlmprobe.testing import tiny
    known = registry.adapters()
    kinds = {kind: registry.find({"model_type": kind}).name for kind in ("llava", "mllama", "my_model")}
    named = registry.find({"model_type": "mllama"}, name="grabby").__module__
    llava = tiny.build("llava", "llava")
    probes = [vlmprobe.load("tiny-checkpoint"), vlmprobe.load(llava), vlmprobe.load(llava, adapter="my_model")]
    answer = probes[0].generate("Who are you?", max_new_tokens=3, min_new_tokens=3)
    listed = json.loads(CliRunner().invoke(app, ["models", "--json"]).stdout)["adapters"]
print(json.dumps({
    "adapters": {name: adapter.__module__ for name, adapter in known.items()},
    "packages": {each["name"]: each["package"] for each in listed},
    "kinds": kinds,
    "named": named,
    "loaded": [probe.meta["adapter"] for probe in probes],
    "tokens": len(answer.output),
    "warnings": [str(each.message) for each in caught if issubclass(each.category, UserWarning)],
}))
"""


class Environment:
    """A virtual environment on top of the one that runs the tests: what is installed into it stays in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "env", with_pip=False, symlinks=True)
        self.bin = folder / "env" / "bin"
        python = self.bin / "python"
        site = Path(self.run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
        parents = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        lines = [f"import site; site.addsitedir({each!r})\n" for each in sorted(parents)]
        (site / "parent.pth").write_text("".join(lines))
        command = self.bin / "vlmprobe"
        command.write_text(f'#!/bin/sh\nexec "{python}" -m vlmprobe "$@"\n')
        command.chmod(0o755)

    def run(self, command: list[str], *, ok: bool = True) -> str:
        """Standard output of a command, run in the folder without a network."""
        variables = {
            **os.environ,
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "110",
            "OMP_NUM_THREADS": "1",
            "PIP_NO_INDEX": "1",
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # so says pip: 0 means no isolation, and with it no download
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_QUIET": "1",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "VLMPROBE_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=900, check=False
        )
        if ok:
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self, *packages: Path) -> None:
        self.run(["python", "-m", "pip", "install", *map(str, packages)])


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["new-adapter", *arguments])


def output_of(told: list[tuple[str, str]], beginning: str) -> list[str]:
    return [printed for line, printed in told if line.startswith(beginning)]


def rows_of(table: str) -> list[str]:
    """The first line of each check's row, without its time."""
    return [found[1] for line in table.splitlines() if (found := re.match(r"(C\d+ .*(passed|skipped))", line))]


# -- the page ----------------------------------------------------------------------------------


# Longer than 20 s, for the page has four installations and runs the conformance suite three times.
def test_the_page_from_top_to_bottom(page, tmp_path):
    """Every command of it, in order, in an environment of its own; then other plug-ins beside what it installed."""
    folder = tmp_path / "with spaces"
    folder.mkdir()
    environment = Environment(folder)
    told = []
    for block in re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        told += [(line, environment.run(["bash", "-euo", "pipefail", "-c", line])) for line in block.splitlines()]
    assert len(told) == 10
    every_check_passes_as_generated(told)
    the_page_shows_what_is_printed(page, told)
    the_record_says_with_what(page, told)
    it_works_beside_others(environment, tmp_path)


def every_check_passes_as_generated(told):
    first, broken, last = output_of(told, "vlmprobe check tiny-checkpoint")
    assert "22 passed, 2 skipped in" in first
    assert "22 passed, 2 skipped in" in last
    assert "1 passed, 1 failed in" in broken
    (tested,) = output_of(told, "python -m pytest")
    assert "23 passed, 2 skipped" in tested


def the_page_shows_what_is_printed(page, told):
    failure, table = re.findall(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    _, broken, last = output_of(told, "vlmprobe check tiny-checkpoint")
    assert failure in broken
    assert rows_of(table) == rows_of(last)
    assert len(rows_of(table)) == 24


def the_record_says_with_what(page, told):
    (printed,) = output_of(told, "cat")
    record = json.loads(printed)
    assert record["passed"]
    assert record["adapter"] == record["model_type"] == "my_model"
    named = page.partition("the line of JSON records the setup:")[2].partition("A check that")[0]
    keys = ("model", "adapter", "revision", "dtype", "device", "tolerances", "date")
    for key in keys:
        assert key in named
        assert key in record
    for package in ("vlmprobe", "transformers", "torch", "python"):
        assert package in named.lower()
        assert record["versions"][package]


def plug_in(folder: Path, name: str, code: str) -> Path:
    """A package of one module with an adapter ``Theirs``."""
    folder.mkdir()
    (folder / f"{name}_plugin.py").write_text(code)
    (folder / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "{name}-plugin"\nversion = "1"\n'
        f'[project.entry-points."vlmprobe.adapters"]\n{name} = "{name}_plugin:Theirs"\n'
        f'[tool.setuptools]\npy-modules = ["{name}_plugin"]\n'
    )
    return folder


CLAIMS = """
from vlmprobe.adapter import Adapter

class Theirs(Adapter):
    @classmethod
    def handles(cls, config):
        return config.get("model_type") == "mllama"
"""


def it_works_beside_others(environment, folder):
    """The generated package beside a broken one, one that takes a built-in name, and one that claims a built-in's."""
    environment.install(
        plug_in(folder / "1", "broken", "raise RuntimeError('no luck')\n"),
        plug_in(folder / "2", "mllama", CLAIMS),
        plug_in(folder / "3", "grabby", CLAIMS),
    )
    found = json.loads(environment.run(["python", "-c", FOUND]).splitlines()[-1])

    assert found["adapters"]["my_model"] == "vlmprobe_my_model.adapter"
    assert found["adapters"]["mllama"] == "vlmprobe.model_registry.mllama"
    assert "broken" not in found["adapters"]
    assert found["packages"]["my_model"] == "vlmprobe-my-model"
    assert found["packages"]["mllama"] == "vlm-logit-probe"
    assert found["packages"].keys() == found["adapters"].keys()

    assert found["kinds"] == {"llava": "native", "mllama": "mllama", "my_model": "my_model"}
    assert found["named"] == "grabby_plugin"
    assert found["loaded"] == ["my_model", "native", "my_model"]
    assert found["tokens"] == 3

    # And nothing else is said: the quick checks at load pass for the adapter that was generated.
    broken, taken, claimed = sorted(found["warnings"], key=lambda told: ("taken" in told) + 2 * ("claimed" in told))
    assert "'broken' of broken-plugin is broken and left out" in broken
    assert "no luck" in broken
    assert "mllama-plugin publishes an adapter named 'mllama', which is taken" in taken
    assert "claimed by 'grabby'; the built-in 'mllama' is used" in claimed


def test_links_and_names_on_the_page_exist(page):
    from vlmprobe.adapter import Adapter

    for target in re.findall(r"\]\((\.\./[^)#]+)\)", page):
        assert (PAGE.parent / target).is_file(), target
    table = page.partition("| override | when | example |\n|---|---|---|\n")[2].partition("\n\n")[0]
    for row in table.splitlines():
        for name in re.findall(r"`(\w+)`", row.split("|")[1]):
            assert hasattr(Adapter, name), name
    from vlmprobe.testing import checks

    known = {each.id for each in checks()}
    assert set(re.findall(r"\bC\d+\b", page)) <= known


# -- the command -------------------------------------------------------------------------------


@pytest.mark.long  # the page from top to bottom once more, with less to write
def test_for_a_type_that_transformers_knows(run, tmp_path):
    """There is no modelling code, and the adapter goes before the native one."""
    environment = Environment(tmp_path)
    assert run("smol", "--model-type", "smolvlm", "--folder", "deep/down").exit_code == 0
    package = tmp_path / "deep" / "down"
    assert not list(package.rglob("modeling.py"))
    environment.install(package)
    assert "23 passed, 2 skipped" in environment.run(["python", "-m", "pytest", "-q", "deep/down"])


def test_it_says_what_to_do_next(run, tmp_path):
    """The commands that it prints are those of the page."""
    result = run("my_model")
    assert result.exit_code == 0
    package = tmp_path / "vlmprobe-my-model"
    listed = {line.strip() for line in result.output.splitlines()}
    assert {str(file.relative_to(tmp_path)) for file in package.rglob("*") if file.is_file()} <= listed
    page = PAGE.read_text(encoding="utf-8").splitlines()
    commands = [line for line in listed if line.startswith(("python ", "vlmprobe check"))]
    assert len(commands) == 4
    assert all(line in page for line in commands)


@pytest.mark.parametrize(
    "options", [[], ["--original"], ["--model-type", "llava_next"], ["--model-type", "qwen2.5-vl_x"]]
)
def test_generated_code_is_well_kept(run, tmp_path, options):
    """By the rules that hold here."""
    assert run("a-1b_two", *options).exit_code == 0
    package = tmp_path / "vlmprobe-a-1b-two"
    ruff = shutil.which("ruff", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if ruff is None:
        pytest.skip("ruff is not installed")
    own = f"src = {[str(package), str(package / 'tests')]}"
    rules = ["--config", str(ROOT / "pyproject.toml"), "--config", own, "--no-cache"]
    for command in (["check", "--ignore", "T201"], ["format", "--diff"]):
        done = subprocess.run([ruff, *command, *rules, str(package)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    files = [file for file in package.rglob("*") if file.is_file() and file.name != "record_reference.py"]
    assert sum(len(file.read_text().splitlines()) for file in files) < (250 if "--original" in options else 200)


@pytest.mark.parametrize("name", ["", "My", "1st", "a b", "a.b", "../a", "a--b", "-a", "a-", "é", 'a"', "a\n"])
def test_a_name_that_is_none(run, tmp_path, name):
    result = run("--", name)
    assert result.exit_code == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["", 'x"; import os', "a b", "../a", "-x"])
def test_a_model_type_that_is_none(run, tmp_path, kind):
    result = run("my-model", f"--model-type={kind}")
    assert result.exit_code == 2
    assert "config.json" in result.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["mllama"], "An adapter named 'mllama' already exists"),
        (["qwen-vl"], "An adapter named 'qwen_vl' already exists"),
        (["llama-vision", "--model-type", "mllama"], "The adapter 'mllama' (vlmprobe.model_registry.mllama) handles"),
        (["fuy", "--model-type", "fuyu"], "no tiny checkpoint of it to start from (it has no chat template"),
    ],
)
def test_what_is_there_already(run, tmp_path, arguments, told):
    result = run(*arguments)
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(run, tmp_path):
    mine = tmp_path / "vlmprobe-my-model" / "mine.py"
    mine.parent.mkdir()
    mine.write_text("mine")
    (tmp_path / "file").write_text("mine")
    for arguments in (["my-model"], ["other", "--folder", "vlmprobe-my-model"], ["other", "--folder", "file"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "already exists" in " ".join(result.output.split())
    assert [file.read_text() for file in (mine, tmp_path / "file")] == ["mine", "mine"]
    assert list(mine.parent.iterdir()) == [mine]


@pytest.mark.long  # it installs a package and runs the conformance suite; the test above does so for the other page
def test_the_page_for_original_formats(tmp_path):
    """Every command of it, in order; the generated package needs no change to pass."""
    environment = Environment(tmp_path)
    text = (DOCS / "extend" / "original-adapter.md").read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    told = [(line, environment.run(["bash", "-euo", "pipefail", "-c", line])) for line in lines]
    (checked,) = output_of(told, "vlmprobe check tiny-checkpoint")
    assert re.search(r"^23 passed, 1 skipped in", checked, re.MULTILINE)
    assert "failed" not in checked
    saved = json.loads(environment.run(["python", "-c", SAVED]).splitlines()[-1])
    assert saved["names"] == saved["again"]
    assert any(name.startswith("model.mm_projector.") for name in saved["names"])
    assert saved["equal"]


SAVED = """
import json
import vlmprobe
from safetensors import safe_open
def names(folder):
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        return sorted(file.keys())
first = vlmprobe.load("tiny-checkpoint", check=False)
first.model.save_pretrained("saved"), first.tokenizer.save_pretrained("saved")
again = vlmprobe.load("saved", check=False)
one, other = (each.generate("Who are you?", max_new_tokens=4).logprobs for each in (first, again))
equal = bool((one == other).all())
print(json.dumps({"names": names("tiny-checkpoint"), "again": names("saved"), "equal": equal}))
"""
