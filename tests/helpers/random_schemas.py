"""Random JSON Schemas, of what llguidance documents that it reads, and answers that are drawn under them."""

from __future__ import annotations

import random
from typing import Any

__all__ = ["random_schema"]

KEYS = ("a", "total", "Größe", "数量", "a b", 'quo"te', "x\\y", "", "🙂", "$ref_", "item-1")
VALUES = (True, False, None, 0, -7, 12.5, "red", "a b", "ünï", "价格", 'say "no"', "", [1, "x"], {"k": [None]})
PATTERNS = ("^[a-z]{1,5}$", "^\\d{4}-\\d{2}$", "^(yes|no)$", "^[A-Z][0-9]*$", "^[äöü]+$", "[0-9]")
DEEPEST = 3


def random_schema(seed: int) -> dict[str, Any]:
    """A schema that has answers; the same one for the same seed."""
    chance = random.Random(seed)
    made = _any(chance, 0)
    if chance.random() < 0.15:  # a part that is named elsewhere
        made = {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2, "$defs": {"part": made}}
    return made


def _any(chance: random.Random, depth: int) -> dict[str, Any]:
    flat = (_integer, _number, _string, _enum, _const, _plain)
    nested = (_object, _object, _array, _any_of, _tuple)
    return chance.choice(flat if depth >= DEEPEST else flat + nested * 2)(chance, depth)


def _integer(chance: random.Random, depth: int) -> dict[str, Any]:
    low, wide = chance.randint(-1200, 1200), chance.randint(0, 300)
    made: dict[str, Any] = {"type": "integer"}
    if chance.random() < 0.7:
        made["exclusiveMinimum" if wide and chance.random() < 0.3 else "minimum"] = low
    if chance.random() < 0.7:
        made["maximum"] = low + wide
    return made


def _number(chance: random.Random, depth: int) -> dict[str, Any]:
    low = round(chance.uniform(-50, 50), 2)
    made: dict[str, Any] = {"type": "number"}
    if chance.random() < 0.6:
        made["minimum"] = low
    if chance.random() < 0.6:
        made["exclusiveMaximum" if chance.random() < 0.3 else "maximum"] = low + round(chance.uniform(0.5, 20), 2)
    return made


def _string(chance: random.Random, depth: int) -> dict[str, Any]:
    way = chance.randrange(4)
    if way == 0:
        return {"type": "string", "pattern": chance.choice(PATTERNS)}
    if way == 1:
        return {"type": "string", "format": chance.choice(("date", "uuid", "ipv4"))}
    least = chance.randint(0, 3)
    made: dict[str, Any] = {"type": "string", "maxLength": least + chance.randint(0, 6)}
    return made | ({"minLength": least} if least else {})


def _enum(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"enum": chance.sample(VALUES, chance.randint(1, 4))}


def _const(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"const": chance.choice(VALUES)}


def _plain(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"type": chance.choice(("boolean", "null", ["integer", "null"], ["string", "boolean"]))}


def _object(chance: random.Random, depth: int) -> dict[str, Any]:
    names = chance.sample(KEYS, chance.randint(0, 4))
    made: dict[str, Any] = {"type": "object", "properties": {name: _any(chance, depth + 1) for name in names}}
    required = [name for name in names if chance.random() < 0.6]
    if required:
        made["required"] = required
    if chance.random() < 0.7:
        made["additionalProperties"] = False if chance.random() < 0.8 else _any(chance, depth + 1)
    return made


def _array(chance: random.Random, depth: int) -> dict[str, Any]:
    least = chance.randint(0, 2)
    made: dict[str, Any] = {"type": "array", "items": _any(chance, depth + 1)}
    return made | ({"minItems": least} if least else {}) | {"maxItems": least + chance.randint(0, 2)}


def _tuple(chance: random.Random, depth: int) -> dict[str, Any]:
    parts = [_any(chance, depth + 1) for _ in range(chance.randint(1, 3))]
    return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}


def _any_of(chance: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [_any(chance, depth + 1) for _ in range(chance.randint(1, 3))]}
