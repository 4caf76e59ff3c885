"""Private and undocumented names of other libraries in a source: what docs/reference/private_names.toml must list.

Run as a script, it puts right which files the list names, and says which entries are missing or no longer needed.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import json
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from documented_modules import DOCUMENTED

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "vlmprobe"
LIST = ROOT / "docs" / "reference" / "private_names.toml"


@dataclass(frozen=True, order=True)
class Use:
    """A name at a place: dotted where the source says of what module, else only the attribute."""

    file: str
    line: int
    name: str


def is_private(name: str) -> bool:
    """Whether a name begins with an underscore and is none of Python's own (``__init__``)."""
    return name.startswith("_") and name.strip("_") != "" and not (name.startswith("__") and name.endswith("__"))


def is_foreign(module: str) -> bool:
    """Whether a module belongs to another library: neither ours nor Python's."""
    root = module.partition(".")[0]
    return root not in (PACKAGE, "__future__") and root not in sys.stdlib_module_names


def is_documented(module: str, name: str) -> bool:
    """Whether a library documents ``name`` of ``module``, by :data:`DOCUMENTED` and the exports of transformers."""
    if is_private(name) or any(map(is_private, module.split("."))):
        return False
    if f"{module}.{name}" in DOCUMENTED:
        return True
    if module == "transformers":
        return name in importlib.import_module(module).__all__ or name == "__version__"
    known, _ = DOCUMENTED.get(module, (frozenset(), ""))
    return known is None or name in known


@functools.cache
def located(dotted: str) -> Any:
    """The object of a dotted name, its modules imported as far as they go; None where there is none."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for attribute in parts[count:]:
            found = getattr(found, attribute, None)
        return found
    return None


@functools.cache
def names_of(kind: type) -> frozenset[str]:
    """Names of a library's class: its attributes, and what its methods keep on ``self``."""
    found = set(dir(kind))
    for each in kind.__mro__:
        if is_foreign(each.__module__):
            tree = _tree(each)
            found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and _is_self(node.value)}
    return frozenset(found)


def _tree(kind: Any) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # compiled, or made at run time
        return ast.Module([], [])


def exists(name: str) -> bool:
    """Whether the installed libraries have a listed name; True where its library is not installed."""
    holder, _, last = name.rpartition(".")
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        return True
    found = located(holder)
    if inspect.isfunction(found):  # what it keeps on an object that it is given
        return last in {node.attr for node in ast.walk(_tree(found)) if isinstance(node, ast.Attribute)}
    return last in names_of(found) if isinstance(found, type) else hasattr(found, last)


def _is_self(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id == "super" or (node.func.id == "type" and all(map(_is_self, node.args)))
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


@dataclass(eq=False)
class Source:
    """One file: its tree, and what its imports bind."""

    file: str
    text: str
    tree: ast.Module = field(init=False)
    bound: dict[str, str] = field(init=False)  # local name -> dotted name

    def __post_init__(self) -> None:
        self.tree = ast.parse(self.text)
        self.bound = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                self.bound |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
            elif isinstance(node, ast.Import):
                for each in node.names:
                    root = each.name.partition(".")[0]
                    self.bound[each.asname or root] = each.name if each.asname else root

    @functools.cached_property
    def named(self) -> frozenset[str]:
        """Every dotted name of what is imported, and of what is reached through it."""
        reached = (self.dotted(node) for node in ast.walk(self.tree) if isinstance(node, ast.Attribute))
        begun = {f"{word}*" for word in self.words if word.endswith(".")}
        return frozenset({*self.bound.values(), *filter(None, reached), *begun})

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """Every attribute, argument and string of the file."""
        found = set()
        for node in ast.walk(self.tree):
            for name in ("attr", "arg", "id", "value"):
                if isinstance(word := getattr(node, name, None), str):
                    found.add(word)
        return frozenset(found)

    def dotted(self, node: ast.AST) -> str | None:
        """The dotted name of an expression such as ``nn.Module``, through the imports."""
        if isinstance(node, ast.Name):
            return self.bound.get(node.id)
        if isinstance(node, ast.Attribute) and (before := self.dotted(node.value)):
            return f"{before}.{node.attr}"
        if isinstance(node, ast.Subscript):  # Generic[...]
            return self.dotted(node.value)
        return None

    @functools.cached_property
    def classes(self) -> dict[str, ast.ClassDef]:
        """The classes that the file defines."""
        return {node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef)}

    def foreign_bases(self, node: ast.ClassDef) -> list[type]:
        """The classes of other libraries that a class derives from, through classes of ours."""
        found: list[type] = []
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in self.classes:
                found += self.foreign_bases(self.classes[base.id])
            elif (dotted := self.dotted(base)) and isinstance(kind := located(dotted), type):
                found += [each for each in kind.__mro__ if is_foreign(each.__module__)]
        return found


def own_names(sources: Iterable[Source]) -> set[str]:
    """Private attributes that classes of ours define, and no library's class that one of ours derives from has."""
    nodes = [(source, node) for source in sources for node in source.classes.values()]
    theirs = _private_of({kind for source, node in nodes for kind in source.foreign_bases(node)})
    return {name for _, node in nodes for name in _defined(node)} - theirs


def _private_of(kinds: Iterable[type]) -> set[str]:
    return {name for kind in kinds for name in names_of(kind) if is_private(name)}


def _defined(node: ast.ClassDef) -> set[str]:
    """Private names that a class defines in its body, or its methods assign to ``self``."""
    found: set[str] = set()
    for each in node.body:
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(each.name)
        elif isinstance(each, (ast.Assign, ast.AnnAssign)):
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and _is_self(each.value):
            found.add(each.attr)
    return {name for name in found if is_private(name)}


def uses(source: Source, own: set[str]) -> list[Use]:
    """Every private or undocumented name of another library in a file.

    Args:
        source: the file.
        own: private attributes that are ours (:func:`own_names`).
    """
    found = {(name, node.lineno) for name, node in _found(source, own)}
    return sorted(Use(source.file, line, name) for name, line in found)


def _found(source: Source, own: set[str]) -> Iterator[tuple[str, Any]]:
    pieces = {id(part) for node in ast.walk(source.tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level and is_foreign(node.module):
            for each in node.names:
                if not is_documented(node.module, each.name):
                    yield f"{node.module}.{each.name}", node
        elif isinstance(node, ast.Import):
            for each in node.names:
                if is_foreign(each.name) and each.name not in DOCUMENTED:
                    yield each.name, node
        elif isinstance(node, ast.Attribute):
            yield from _attribute(source, node, own)
        elif isinstance(node, ast.keyword) and node.arg and is_private(node.arg) and node.arg not in own:
            yield node.arg, node.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            yield from _string(node, own)
        elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
            begin = str(node.values[0].value)  # a name that is put together at run time is known by how it begins
            library = begin.partition(".")[0] in ROOTS and re.fullmatch(r"[\w.]+\.", begin)
            if re.fullmatch(r"_[a-z_]*[a-z]", begin) or (library and f"{begin}*" not in DOCUMENTED):
                yield f"{begin}*", node
        elif isinstance(node, ast.ClassDef):
            yield from _inherited(source, node, own)


def _attribute(source: Source, node: ast.Attribute, own: set[str]) -> Iterator[tuple[str, Any]]:
    if is_private(node.attr):
        if not _is_self(node.value) and node.attr not in own and not _is_ours(source, node):
            yield node.attr, node
    elif (before := source.dotted(node.value)) and is_foreign(before):
        holder = located(before)  # a name that it lacks is another object, called like the module elsewhere in the file
        if isinstance(holder, ModuleType) and hasattr(holder, node.attr) and not is_documented(before, node.attr):
            yield f"{before}.{node.attr}", node


def _is_ours(source: Source, node: ast.Attribute) -> bool:
    """Whether an attribute is that of a module or class of this package."""
    dotted = source.dotted(node.value)
    return dotted is not None and not is_foreign(dotted)


def _string(node: ast.Constant, own: set[str]) -> Iterator[tuple[str, Any]]:
    text = node.value
    if re.fullmatch(r"_[a-z]\w*[a-z0-9]", text) and text not in own:
        yield text, node
    elif re.fullmatch(r"[A-Za-z]\w*(\.\w+)+", text) and text.partition(".")[0] in ROOTS:  # of import_module, or a patch
        module, _, name = text.rpartition(".")
        if text not in DOCUMENTED and not is_documented(module, name) and located(text) is not None:
            yield text, node


def _inherited(source: Source, node: ast.ClassDef, own: set[str]) -> Iterator[tuple[str, Any]]:
    """What a class overrides, sets or reads of the libraries' classes that it derives from."""
    theirs = _private_of(source.foreign_bases(node))
    if not theirs:
        return
    defined = _defined(node)
    for each in node.body:
        names = {each.name} if hasattr(each, "name") else set()
        if isinstance(each, (ast.Assign, ast.AnnAssign)):
            names = {name.id for name in ast.walk(each) if isinstance(name, ast.Name)} & defined
        yield from ((name, each) for name in names & theirs)
    for each in ast.walk(node):
        if not isinstance(each, ast.Attribute) or not is_private(each.attr) or not _is_self(each.value):
            continue
        if each.attr in theirs or each.attr not in own:
            yield each.attr, each


@dataclass(frozen=True)
class Listed:
    """An entry of the list."""

    name: str
    used_in: tuple[str, ...]

    def covers(self, use: Use) -> bool:
        """Whether the entry speaks of a name that was found."""
        return use.name in (self.name, self.name.rpartition(".")[2]) or self.name.startswith(f"{use.name}.")

    @property
    def by_hand(self) -> bool:
        """Whether it is an attribute without an underscore, which no walk can tell from others."""
        holder, _, last = self.name.rpartition(".")
        return not is_private(last) and isinstance(located(holder), type)

    def files(self, found: Iterable[Use], sources: Iterable[Source]) -> list[str]:
        """The files that use it; of a name listed by hand the listed ones that hold it still, and where one of these
        is gone, whichever hold it now.
        """
        if self.by_hand:
            last = self.name.rpartition(".")[2]
            holding = {each.file for each in sources if last in each.words}
            known = {each.file for each in sources}.issuperset(self.used_in) and self.used_in
            return sorted(holding.intersection(self.used_in) if known else holding)
        return sorted({use.file for use in found if self.covers(use)})


def complaints(entries: Iterable[Mapping[str, Any]], sources: Iterable[Source]) -> list[str]:
    """What is to be changed in the list, so that it says what the sources use."""
    sources = list(sources)
    own = own_names(sources)
    found = [use for source in sources for use in uses(source, own)]
    known = [Listed(each["name"], tuple(each["used_in"])) for each in entries]
    told = []
    missing: dict[str, list[Use]] = {}
    for use in found:
        if not any(each.covers(use) for each in known):
            missing.setdefault(use.name, []).append(use)
    for name, places in missing.items():
        where = ", ".join(f"{use.file}:{use.line}" for use in places)
        dotted = name if "." in name else f"LIBRARY.CLASS.{name}"
        entry = f'[[name]]\nname = "{dotted}"\n{_used_in(use.file for use in places)}\nwhy = ""\nnotices = ""'
        told.append(f"{where}: {name} is private or undocumented. Do without it, or add:\n\n{entry}\n{_hint(name)}")
    for each in known:
        files = each.files(found, sources)
        if not files:
            told.append(f"Nothing uses {each.name} any more: take its entry out.")
        elif files != sorted(each.used_in):
            told.append(f"{each.name} is used elsewhere now, so its entry must say:\n{_used_in(files)}")
    return told


def _hint(name: str) -> str:
    library, _, last = name.partition(".")[0], *name.rpartition(".")[1:]
    if library == "transformers" and name.count(".") > 1 and is_documented(library, last):
        return f"(transformers exports it: from transformers import {last})\n"
    return ""


def _used_in(files: Iterable[str]) -> str:
    return f"used_in = [{', '.join(json.dumps(each) for each in sorted(set(files)))}]"


def refreshed(text: str, entries: Iterable[Mapping[str, Any]], sources: Sequence[Source]) -> str:
    """The text of the list with the files that use its names now."""
    own = own_names(sources)
    found = [use for source in sources for use in uses(source, own)]
    for each in entries:
        files = Listed(each["name"], tuple(each["used_in"])).files(found, sources)
        entry = re.compile(rf"(name = {re.escape(json.dumps(each['name']))}\n)used_in = \[[^\]]*\]")
        if files:
            text = entry.sub(lambda match, files=files: match[1] + _used_in(files), text)  # type: ignore[misc]
    return text


ROOTS = {each.partition(".")[0] for each in DOCUMENTED}


def package_sources() -> list[Source]:
    """Every file of the package."""
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    return [Source(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8")) for file in files]


def listed() -> list[dict[str, Any]]:
    """The entries of the list."""
    return tomllib.loads(LIST.read_text(encoding="utf-8"))["name"]


if __name__ == "__main__":
    every = package_sources()
    LIST.write_text(refreshed(LIST.read_text(encoding="utf-8"), listed(), every), encoding="utf-8")
    print("\n".join(complaints(listed(), every)) or "The list says what the package uses.")
