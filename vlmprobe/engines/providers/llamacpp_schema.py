"""Which JSON Schemas llama.cpp's server holds an answer to.

What its converters do not know they drop without a word, and some builds then drop the whole schema (seen on
``xllamacpp``, for ``uniqueItems``, ``oneOf``, ``not`` and ``if``). So what is not known to be held to is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vlmprobe.errors import CapabilityError

__all__ = ["require_held_to"]

TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
FORMATS = ("date", "time", "date-time", "uuid")
HELD_TO = frozenset(
    {"type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems"}
    | {"maxItems", "anyOf", "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum"}
    | {"exclusiveMaximum", "format", "$ref", "$defs", "definitions"}
)
REMARKS = frozenset(
    {"$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
)
NAMED = ("properties", "$defs", "definitions")  # schemas by name
NESTED = ("anyOf", "prefixItems", "items", "additionalProperties")


def require_held_to(schema: Any) -> None:
    """Raise :class:`CapabilityError` for a schema with parts that llama.cpp may drop."""
    if found := sorted(set(_dropped(schema))):
        raise CapabilityError(
            f"llama.cpp's server does not hold an answer to {', '.join(found)} of a schema, and drops it without a "
            "word: leave it out, write a grammar, or open the checkpoint with vlmprobe.load."
        )


def _dropped(schema: Any) -> Iterator[str]:
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, list):
            waiting += each
        if not isinstance(each, dict):
            continue
        yield from each.keys() - HELD_TO - REMARKS
        types = each.get("type", [])
        yield from (f"type {name!r}" for name in (types if isinstance(types, list) else [types]) if name not in TYPES)
        if "format" in each and each["format"] not in FORMATS:
            yield f"format {each['format']!r}"
        named = [each.get(name) for name in NAMED]
        waiting += [part for parts in named if isinstance(parts, dict) for part in parts.values()]
        waiting += [each.get(name) for name in NESTED]
