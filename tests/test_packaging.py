"""The distribution: its name in every remedy, what it installs, what its sdist holds, and where its readme leads."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import vlmprobe
from vlmprobe._version import DISTRIBUTION
from vlmprobe.errors import MissingExtraError

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
TEMPLATE = ROOT / "vlmprobe" / "cli" / "adapter_template" / "pyproject.toml.jinja"
# Extras outside of "all": harnesses, which require what contradicts the tested set, and Ray, which is not in it.
APART = {"lm-eval", "lmms-eval", "ray"}
LINK = ROOT / "model_registry"
TAKEN = "vlmprobe"  # on PyPI, by another project


def read(path: Path) -> str:
    """The text of a file; of a notebook, every text in it, for its JSON writes quotes and ends of lines otherwise."""
    text = path.read_text(encoding="utf-8")
    return "".join(strings(json.loads(text))) if path.suffix == ".ipynb" else text


def strings(document: object) -> Iterator[str]:
    """Every text of a JSON document but pictures, each list and each value on lines of its own."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for key, value in document.items():
            if not key.startswith("image/"):
                yield from strings(value)
                yield "\n"
    elif isinstance(document, list):
        for value in document:
            yield from strings(value)


def sources(*suffixes: str) -> list[Path]:
    """Every file of the project that a person or pip reads, but this one and what tests hold as data."""
    found = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".")]
    for folder in ("vlmprobe", "tools", "docs", "notebooks", "benchmarks", "tests", ".ci"):
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    data, own = ROOT / "tests" / "data", Path(__file__)
    return sorted(
        path
        for path in found
        if path.suffix in suffixes and path.name != own.name and (data not in path.parents or path.suffix == ".md")
    )


TEXTS = sources(".py", ".md", ".jinja", ".ipynb", ".toml", ".txt", ".cff", "")


def name_of(line: str) -> str:
    return canonicalize_name(Requirement(line).name)


# Requirements and remedies

INSTALL = re.compile(r"""pip["']?,?\s+["']?install\b["']?,?""")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def installs(text: str) -> list[list[str]]:
    """The arguments of every ``pip install`` that a text holds, options left out.

    Inside of backticks they reach to the closing one, over the end of a line too; else to the end of the line, to what
    ends a string, or to a remark in brackets.
    """
    found = []
    for match in INSTALL.finditer(text):
        before = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
        rest = text[match.end() :]
        end = re.search("`", rest) if before.count("`") % 2 else re.search(r"""\n|\\n|\s\(|\s#|;|\}\)""", rest)
        words = re.split(r"""[\s"',]+""", rest[: end.start()] if end else rest)
        found.append([word for word in words if word and not word.startswith("-")])
    return found


def names(arguments: list[str]) -> set[str]:
    return {canonicalize_name(match[0]) for match in map(NAME.match, arguments) if match}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("so: pip install 'vlmprobe[calibration]'", {"vlmprobe"}),
        ("Needs `pip install 'timm>=1.0.21'\n'vlmprobe>=1'`. Then vlm", {"timm", "vlmprobe"}),
        ('run([python, "-m", "pip", "install", "--quiet", "VLMprobe", "num2words"])', {"vlmprobe", "num2words"}),
        ("python -m pip install --upgrade vlmprobe  # now", {"vlmprobe"}),
        ("pip install lmdeploy (Linux), where vlmprobe is installed", {"lmdeploy"}),
        ("`pip install --editable vlmprobe-my-model`; vlmprobe", {"vlmprobe-my-model"}),
        ("pip install .", set()),
    ],
)
def test_remedies_are_found(text, found):
    (arguments,) = installs(text)
    assert names(arguments) == found


def test_remedies_in_notebooks_are_found(tmp_path):
    prose = {"cell_type": "markdown", "source": ["Run `pip install 'vlmprobe[plot]'` first.\n"]}
    code = {"cell_type": "code", "source": ["x = 1\n", 'run("pip", "install", "vlmprobe")'], "outputs": []}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [prose, code]}, indent=1), encoding="utf-8")
    assert list(map(names, installs(read(tmp_path / "a.ipynb")))) == [{TAKEN}, {TAKEN}]


def test_no_remedy_installs_the_vlmprobe_of_others():
    known = {path: installs(read(path)) for path in TEXTS}
    packages = {name for found in known.values() for each in found for name in names(each)}
    assert {"scikit-learn", "pyarrow", "timm", "sentencepiece", "lmdeploy"} <= packages, "pages and errors name them"
    assert [path for path, found in known.items() for each in found if TAKEN in names(each)] == []


def test_no_requirement_is_the_vlmprobe_of_others():
    written = re.compile(rf"(?<![\w./-]){TAKEN}\s*(\[[a-z]|[=~!<>]=\s*\d)", re.IGNORECASE)
    assert written.search("'vlmprobe[all]'")
    assert written.search("vlmprobe >= 1.0")
    assert [(path, found[0]) for path in TEXTS if (found := written.search(read(path)))] == []

    groups = PYPROJECT["dependency-groups"].values()
    listed = [*PYPROJECT["build-system"]["requires"], *PROJECT["dependencies"]]
    listed += [line for group in (*EXTRAS.values(), *groups) for line in group if isinstance(line, str)]
    assert len(listed) > 20
    assert TAKEN not in map(name_of, listed)


def test_the_extra_all_is_every_other_one_of_this_distribution_but_harnesses():
    (line,) = EXTRAS["all"]
    assert canonicalize_name(PROJECT["name"]) == DISTRIBUTION == name_of(line)
    assert set(EXTRAS) >= APART
    assert Requirement(line).extras == set(EXTRAS) - {"all"} - APART


def test_a_new_adapter_requires_this_distribution():
    from jinja2 import Template

    project = tomllib.loads(Template(read(TEMPLATE)).render(name="mine", dashed="mine", title="Mine"))["project"]
    assert [name_of(line) for line in project["dependencies"]] == [DISTRIBUTION]
    assert project["requires-python"] == PROJECT["requires-python"]


def requirement_lines(text: str) -> list[str]:
    """The lines of a file of requirements or constraints that name a package."""
    found = []
    for line in text.splitlines():
        try:
            found.append(name_of(line.partition("#")[0]))
        except InvalidRequirement:
            continue
    return found


@pytest.mark.parametrize("path", sources(".txt"), ids=lambda path: path.name)
def test_no_file_of_requirements_names_it(path):
    assert TAKEN not in requirement_lines(read(path))


# What a missing package is answered with


def missing_extras() -> list:
    """Every ``MissingExtraError(package, extra)`` of the source."""
    found = []
    for path in sorted((ROOT / "vlmprobe").rglob("*.py")):
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.Call) and "MissingExtraError" in ast.unparse(node.func):
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                found.append(pytest.param(node, id=where))
    return found


def test_every_place_that_raises_it_is_seen():
    """Few places import an optional package; none of them escapes the walk that the next test goes by."""
    written = [path.read_text(encoding="utf-8") for path in (ROOT / "vlmprobe").rglob("*.py")]
    assert len(missing_extras()) == sum(text.count("raise MissingExtraError(") for text in written) > 0


@pytest.mark.parametrize("call", missing_extras())
def test_a_missing_package_is_answered_with_the_packages_of_its_extra(call):
    package, extra = map(ast.literal_eval, call.args)
    assert extra in EXTRAS
    message = str(MissingExtraError(package, extra))
    assert message.startswith(f"{package} is needed here; ")
    assert shlex.split(message.partition("pip install ")[2]) == EXTRAS[extra]


# model_registry


def test_under_the_name_of_another_project_it_cannot_be_imported():
    if not LINK.is_symlink():
        pytest.skip("the link is only in a checkout, not in an sdist")
    for name in ("model_registry", "model_registry.native"):
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {name}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "ImportError" in done.stderr
        assert "import vlmprobe.model_registry" in done.stderr.splitlines()[-1]


def bare(text: str) -> list[str]:
    """Imports of ``model_registry`` by that name, in statements and in strings that may be imported."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.append(node.module or "")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return [each for each in found if re.fullmatch(r"model_registry([.:][\w.:]+)?", each)]


@pytest.mark.parametrize(
    "text",
    ["import model_registry", "from model_registry.native import Native", "import_module('model_registry.native')"],
)
def test_bare_imports_are_found(text):
    assert bare(text)
    assert not bare(text.replace("model_registry", "vlmprobe.model_registry"))


def test_nothing_imports_it_by_that_name():
    searched = sources(".py")
    assert ROOT / "vlmprobe" / "model_registry" / "native.py" in searched
    assert [path for path in searched if path != ROOT / "setup.py" and bare(read(path))] == []
    statement = re.compile(r"^\W*(from|import) model_registry\b", re.MULTILINE)
    assert [path for path in sources(".md", ".jinja", ".ipynb") if statement.search(read(path))] == []


def test_entry_points_lead_into_the_package():
    for group in PROJECT["entry-points"].values():
        for value in group.values():
            module = value.partition(":")[0]
            assert module.startswith("vlmprobe.")
            assert importlib.util.find_spec(module), module


# One version


def test_the_version_is_the_same_everywhere():
    cited = dict(re.findall(r"^([a-z-]+): (.+)$", read(ROOT / "CITATION.cff"), re.MULTILINE))
    version, date = re.search(r"^## (\d\S*) \((\d{4}-\d\d-\d\d)\)$", read(ROOT / "CHANGELOG.md"), re.MULTILINE).groups()
    assert vlmprobe.__version__ == cited["version"] == version
    assert cited["date-released"] == date


def test_the_oldest_python_is_the_same_everywhere():
    (bound,) = SpecifierSet(PROJECT["requires-python"])
    assert bound.operator == ">="
    assert sys.version_info[:2] >= tuple(map(int, bound.version.split(".")))
    listed = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if ":: Python :: 3." in each]
    assert listed[0] == bound.version
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{bound.version.replace('.', '')}"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == bound.version
    assert f"Python {bound.version} or newer" in read(ROOT / "README.md")


# The readme as it is published


@pytest.fixture(scope="module")
def setup_py():
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("[a](docs/a.md)", "[a](R/blob/v1/docs/a.md)"),
        ("[a](docs/a.md#b)", "[a](R/blob/v1/docs/a.md#b)"),
        ("![a](docs/img/a.png)", "![a](R/raw/v1/docs/img/a.png)"),
        (
            '<a href="a.md"><img src="a.svg" width="4"></a>',
            '<a href="R/blob/v1/a.md"><img src="R/raw/v1/a.svg" width="4"></a>',
        ),
        ("[a](https://b.c/d), [e](#f), [g](mailto:h@i.j)", None),
        ("`x[0](y)` and\n```python\nx[0](y)\n```\n", None),
    ],
)
def test_links_are_made_absolute(setup_py, text, absolute):
    assert setup_py.absolute(text, "R", "1") == (absolute or text)


def test_the_published_readme_leads_to_files_of_this_version(setup_py):
    place = f"{PROJECT['urls']['Repository']}/{{}}/v{vlmprobe.__version__}/"
    told = setup_py.long_description()
    prose = re.sub(r"```.*?```", "", told, flags=re.DOTALL)
    links = re.findall(r'\]\(([^)\s]+)\)|(?:href|src)="([^"]+)"', prose)
    targets = [first or second for first, second in links]
    assert len(targets) > 30
    for target in targets:
        kind = "raw" if target.endswith(".png") else "blob"
        assert target.startswith(place.format(kind))
        assert (ROOT / target.removeprefix(place.format(kind)).partition("#")[0]).is_file()
    without = told.replace(place.format("raw"), "").replace(place.format("blob"), "")
    assert without == read(ROOT / "README.md"), "nothing but links is changed"


def test_addresses_of_the_project():
    urls = PROJECT["urls"]
    assert set(urls) == {"Repository", "Documentation", "Changelog", "Issues"}
    for name, path in (("Documentation", "docs"), ("Changelog", "CHANGELOG.md")):
        assert urls[name].startswith(f"{urls['Repository']}/")
        assert urls[name].endswith(path)
        assert (ROOT / path).exists()


# What is installed, and what the sdist holds


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What setuptools would build: the folder of egg-info, without building anything."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("egg")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / f"{DISTRIBUTION.replace('-', '_')}.egg-info"


def test_nothing_is_installed_outside_of_the_package(told):
    assert read(told / "top_level.txt").split() == ["vlmprobe"]


def test_the_sdist_holds_what_the_tests_need(told):
    held = {line for line in read(told / "SOURCES.txt").splitlines() if line}
    passing = {"__pycache__", ".ipynb_checkpoints"}
    for folder in ("vlmprobe", "tools", "tests", "docs", "notebooks", "benchmarks"):
        files = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
        wanted = {path.as_posix() for path in files if not passing & set(path.parts) and path.suffix != ".pyc"}
        assert len(wanted) > 5
        assert wanted <= held
    top = "CHANGELOG.md CITATION.cff CONTRIBUTING.md LICENSE Makefile MANIFEST.in pyproject.toml setup.py"
    assert set(top.split()) | {path.name for path in [*ROOT.glob("constraints*.txt"), *ROOT.glob("README*.md")]} <= held
    assert not [path for path in held if path.startswith("model_registry") or "__pycache__" in path]
