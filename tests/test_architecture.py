"""The order of the rooms: every import points down, lazy ones and those for types too, and none lie in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vlmprobe"
ROOMS = (  # from the top; a room imports only from those after it, and from itself
    "vlmprobe.__main__",
    "vlmprobe.harness",
    "vlmprobe.cli",
    "vlmprobe.testing",
    "vlmprobe.page",
    "vlmprobe",  # its face, and the former places of modules
    "vlmprobe.runs",
    "vlmprobe.analysis",
    "vlmprobe.probe",
    "vlmprobe.engines.providers",
    "vlmprobe.engines.serving",
    "vlmprobe.engines.local",
    "vlmprobe.engines",
    "vlmprobe.model_registry",
    "vlmprobe.demo",
    "vlmprobe.adapter",
    "vlmprobe.results",
    "vlmprobe.display",
    "vlmprobe.inputs",
    "vlmprobe.plugins",
    "vlmprobe.errors",
    "vlmprobe._version",
)
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def room_of(module: str) -> str:
    return next(room for room in sorted(ROOMS, key=len, reverse=True) if f"{module}.".startswith(f"{room}."))


def imported(source: str, modules=MODULES) -> set[str]:
    """The modules of the package that a source imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "imports name the whole path"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in modules else node.module for each in inner}
    return found & set(modules)


IMPORTS = {module: imported(path.read_text(encoding="utf-8")) - {module} for module, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_to_the_same_room_or_a_later_one(module):
    own = ROOMS.index(room_of(module))
    up = {each for each in IMPORTS[module] if ROOMS.index(room_of(each)) < own}
    assert not up, f"{module} ({room_of(module)}) imports from rooms above it: {', '.join(sorted(up))}"


def test_no_circle():
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_way_to_import_is_seen():
    lazy = "def f():\n    from vlmprobe.engines import base\n"
    typed = "if TYPE_CHECKING:\n    from vlmprobe.results.table import X\n"
    assert imported(f"import vlmprobe.errors\n{lazy}{typed}") == {
        "vlmprobe.errors",
        "vlmprobe.engines.base",
        "vlmprobe.results.table",
    }


def test_modules_stay_small_and_few_are_loose():
    long = {module: count for module, path in MODULES.items() if (count := len(path.read_text().splitlines())) > 400}
    assert not long
    loose = {path.stem for path in PACKAGE.glob("*.py")} - {"messages", "result"}
    assert len(loose) <= 6, sorted(loose)
