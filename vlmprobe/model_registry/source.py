"""What the built-in adapters and transformers declare, read from their source: importing either takes seconds."""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vlmprobe.adapter import Capabilities

__all__ = ["capabilities", "description", "literal", "model_types"]

PACKAGE = Path(__file__).parents[1]
TYPES = "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"


def description(module: str, name: str, *, of_class: bool = False) -> str:
    """The docstring of the module that defines a class, or that of the class itself."""
    module, found = _defined(module, name)
    return ast.get_docstring(found if of_class else _tree(module)) or ""


def capabilities(module: str, name: str) -> Capabilities:
    """The capabilities of an adapter class."""
    value = _attribute(module, name, "capabilities")
    assert isinstance(value, ast.Call), f"{module}: capabilities must be Capabilities(...)"
    return Capabilities(**{str(each.arg): ast.literal_eval(each.value) for each in value.keywords})


def literal(module: str, name: str, wanted: str) -> Any:
    """The constant that an adapter class assigns to an attribute."""
    return ast.literal_eval(_attribute(module, name, wanted))


def _attribute(module: str, name: str, wanted: str) -> ast.expr:
    """The value that a class, or the first of its bases that has it, assigns to an attribute.

    Args:
        module: of vlmprobe; a class may be imported there from another.
        name: of the class.
        wanted: name of the attribute.
    """
    module, found = _defined(module, name)
    for line in found.body:
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        value = getattr(line, "value", None)
        if value is not None and any(isinstance(each, ast.Name) and each.id == wanted for each in targets):
            return value
    for base in found.bases:
        if isinstance(base, ast.Name) and base.id not in ("ABC", "Protocol"):
            return _attribute(module, base.id, wanted)
    raise LookupError(f"{module}.{name} has no {wanted}")


def model_types() -> list[str]:
    """Every ``model_type`` that the installed transformers lists as an image-text-to-text model.

    Raises:
        LookupError, ValueError, SyntaxError, OSError: if its source is not written as expected.
    """
    spec = find_spec("transformers")  # finds it without importing it
    if spec is None or spec.origin is None:
        raise LookupError("transformers has no source")
    text = (Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py").read_text(encoding="utf-8")
    start = text.index(f"\n{TYPES} = OrderedDict(") + len(f"\n{TYPES} = OrderedDict(")
    pairs: list[tuple[str, Any]] = ast.literal_eval(text[start : text.index("\n)", start)].strip())
    return sorted({name for name, _ in pairs})


def _defined(module: str, name: str) -> tuple[str, ast.ClassDef]:
    """The class of this name, and the module that defines it."""
    for line in _tree(module).body:
        if isinstance(line, ast.ClassDef) and line.name == name:
            return module, line
        if (
            isinstance(line, ast.ImportFrom)
            and line.module
            and name in [each.asname or each.name for each in line.names]
        ):
            return _defined(line.module, name)
    raise LookupError(f"{module} has no class {name}")


@lru_cache
def _tree(module: str) -> ast.Module:
    place = PACKAGE.joinpath(*module.split(".")[1:])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))
