"""What an answer must obey: a JSON Schema, a grammar, or a function that lists the ids that may come next."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from vlmprobe.errors import GenerationOptionError

__all__ = ["CONSTRAINTS", "Constraint", "Kind", "constraint_of", "schema_of"]

FUNCTION = "prefix_allowed_tokens_fn"
CONSTRAINTS = ("schema", "grammar", FUNCTION)  # options of a call, of which one may be given
Kind: TypeAlias = Literal["schema", "grammar", "function"]


@dataclass(frozen=True)
class Constraint:
    """What an answer must obey."""

    kind: Kind
    value: Any  # a JSON Schema as a mapping, the text of a grammar, or transformers' function (batch_id, ids) -> ids

    @property
    def name(self) -> str:
        """The option that it was given as."""
        return FUNCTION if self.kind == "function" else self.kind

    @property
    def by_row(self) -> bool:
        """Whether it is told which row of a batch it is asked about, so that requests run one by one."""
        return self.kind == "function"

    @property
    def told(self) -> dict[str, Any]:
        """What ``meta`` records of it."""
        if self.kind == "function":
            return {self.name: getattr(self.value, "__name__", type(self.value).__name__)}
        return {self.name: self.value}

    @property
    def text(self) -> str:
        """A schema as JSON, or the text of a grammar."""
        return json.dumps(self.value) if self.kind == "schema" else str(self.value)


def constraint_of(generation: dict[str, Any]) -> Constraint | None:
    """The constraint among the options of a call, from which it is removed.

    Raises:
        GenerationOptionError: for two of them, or one that cannot be read.
    """
    given = {name: generation.pop(name) for name in CONSTRAINTS if name in generation}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise GenerationOptionError(f"{' and '.join(given)} say both what an answer must obey: give one of them")
    for name, value in given.items():
        if name == "schema":
            return Constraint("schema", _schema(value))
        if name == "grammar":
            return Constraint("grammar", _grammar(value))
        return Constraint("function", _function(value))
    return None


def schema_of(schema: Any) -> Mapping[str, Any]:
    """A JSON Schema as a mapping.

    Args:
        schema: such a mapping, or a Pydantic model: anything that has ``model_json_schema()``.

    Raises:
        TypeError: for anything else.
    """
    made = schema.model_json_schema() if hasattr(schema, "model_json_schema") else schema
    if not isinstance(made, Mapping):
        raise TypeError(f"schema is a JSON Schema, as a dict, or a Pydantic model, not {type(schema).__name__}")
    return made


def _schema(given: Any) -> dict[str, Any]:
    """A schema from a mapping, a Pydantic model, JSON text, or the path of a JSON file; as JSON would give it back."""
    if isinstance(given, (str, Path)):
        text = given if isinstance(given, str) and given.lstrip().startswith("{") else _read("schema", given)
        try:
            given = json.loads(text)
        except ValueError as error:
            raise GenerationOptionError(f"schema is no JSON: {error}") from error
    try:
        made: dict[str, Any] = json.loads(json.dumps(schema_of(given), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise GenerationOptionError(f"schema cannot be used: {error}") from error
    return made


def _grammar(given: Any) -> str:
    text = _read("grammar", given) if isinstance(given, Path) else given
    if not isinstance(text, str) or not text.strip():
        raise GenerationOptionError("grammar must be the text of a grammar, or the pathlib.Path of its file")
    return text


def _function(given: Any) -> Callable[..., Any]:
    if not callable(given):
        raise GenerationOptionError(f"{FUNCTION} must be a function (batch_id, ids) -> list of allowed ids")
    return given


def _read(name: str, path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise GenerationOptionError(f"{name}={str(path)!r} cannot be read: {error}") from error
