"""What a JSON Schema says of the fields that were read: their types, what is missing, what is more than it has.

Of the schema ``properties``, ``items``, ``prefixItems``, ``required``, ``type``, ``enum``, ``const``, ``$ref`` within
it, ``anyOf``, ``oneOf`` and ``allOf`` are read. It is no validation: bounds, patterns and the like are not looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from vlmprobe.analysis.json_reader import Leaf, Path
from vlmprobe.errors import ResultError

__all__ = ["allowed_values", "apply_schema"]

Node: TypeAlias = "Mapping[str, Any]"
MOST = 1000  # nodes that are looked at for the alternatives of one place


def apply_schema(leaves: Sequence[Leaf], root: Node) -> tuple[list[str], list[Leaf]]:
    """Tells each leaf what is wrong with it by a schema, in its notes.

    Args:
        leaves: [F] of a document.
        root: the schema.

    Returns:
        The expected types [F], such as ``"number or null"``, empty where the schema says nothing; and the fields that
        are required and not there, as leaves of kind ``"missing"``.

    Raises:
        ResultError: for a ``$ref`` that leads nowhere, or out of the schema.
    """
    whole = _alternatives(root, root)
    nodes: dict[Path, list[Node] | None] = {(): whole}  # what the schema says of a place; None: it is not in it
    members: dict[Path, dict[str | int, None]] = {}  # of each object and array that is there
    expected = []
    for leaf in leaves:
        for depth, part in enumerate(leaf.path):
            above = leaf.path[:depth]
            members.setdefault(above, {})[part] = None
            if (path := leaf.path[: depth + 1]) not in nodes:
                inside = nodes[above]
                nodes[path] = None if inside is None else _member(inside, part, root)
        if leaf.kind == "object":
            members.setdefault(leaf.path, {})
        found = nodes[leaf.path]
        if found is None:
            leaf.notes.append("not in the schema")
        types = [] if found is None else _types(found)
        expected.append(" or ".join(types))
        if found is not None and leaf.kind != "none":
            leaf.notes.extend(_wrong(leaf, found, types))
    missing = []
    for path, there in members.items():
        if not (all(isinstance(part, str) for part in there) and (inside := nodes[path])):
            continue
        for key in _required(inside):
            if key not in there:
                missing.append(Leaf((*path, key), None, "missing", (0, 0), None, complete=False, notes=["missing"]))
    return expected, missing


def allowed_values(path: Path, root: Node) -> list[Any] | None:
    """The values that a schema lists for a place: of ``enum`` and ``const``, of booleans and null. None if it does not.

    Raises:
        ResultError: as :func:`apply_schema`.
    """
    nodes: list[Node] | None = _alternatives(root, root)
    for part in path:
        nodes = None if nodes is None else _member(nodes, part, root)
    found: list[Any] = []
    for node in nodes or [{}]:
        types = _listed(node.get("type", ()))
        if "enum" in node or "const" in node:
            found += node["enum"] if "enum" in node else [node["const"]]
        elif types and all(each in ("boolean", "null") for each in types):
            found += [value for each in types for value in ((True, False) if each == "boolean" else (None,))]
        else:
            return None
    return None if any(isinstance(value, dict | list) for value in found) else found


def _alternatives(node: Any, root: Node, before: frozenset[str] = frozenset()) -> list[Node]:
    """The plain nodes that a node stands for: references followed, ``anyOf`` and ``oneOf`` spread, ``allOf`` merged.

    ``before`` are the references that led to the node.
    """
    waiting: deque[tuple[Any, frozenset[str]]] = deque([(node, before)])
    found: list[Node] = []
    for _ in range(MOST):
        if not waiting:
            break
        each, followed = waiting.popleft()
        if not isinstance(each, Mapping):  # true: anything
            found.append({})
        elif "$ref" in each:
            if (name := str(each["$ref"])) in followed:
                raise ResultError(f"The schema's $ref {name!r} leads back to itself.")
            waiting.append((_referred(name, root), followed | {name}))
        elif "anyOf" in each or "oneOf" in each:
            rest = {name: value for name, value in each.items() if name not in ("anyOf", "oneOf")}
            spread = [*each.get("anyOf", ()), *each.get("oneOf", ())]
            waiting += [({**rest, **one} if isinstance(one, Mapping) else rest, followed) for one in spread]
        elif "allOf" in each:
            merged: dict[str, Any] = {name: value for name, value in each.items() if name != "allOf"}
            for part in each["allOf"]:
                for one in _alternatives(part, root, followed)[:1]:
                    merged = {**one, **merged, **_both(one, merged)}
            found.append(merged)
        else:
            found.append(each)
    return found


def _both(one: Node, other: Node) -> dict[str, Any]:
    """What two nodes that hold together say of an object's members."""
    properties = {**one.get("properties", {}), **other.get("properties", {})}
    required = [*one.get("required", ()), *other.get("required", ())]
    return ({"properties": properties} if properties else {}) | ({"required": required} if required else {})


def _referred(name: str, root: Node) -> Any:
    if not name.startswith("#"):
        raise ResultError(f"The schema's $ref {name!r} leads out of it; only those that begin with # can be followed.")
    node: Any = root
    for part in filter(None, name[1:].split("/")):
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or part not in node:
            raise ResultError(f"The schema has no {name!r}, which a $ref of it names.")
        node = node[part]
    return node


def _member(inside: Sequence[Node], part: str | int, root: Node) -> list[Node] | None:
    """What the alternatives of an object or array say of one member; None if none of them has it."""
    found: list[Node] = []
    known = False
    for node in inside:
        if isinstance(part, str):
            listed = node.get("properties")
            if isinstance(listed, Mapping) and part in listed:
                wanted = listed[part]
            elif isinstance(node.get("additionalProperties"), Mapping) or (listed is None and _open(node, "object")):
                wanted = node.get("additionalProperties", {})
            else:
                continue
        else:
            first = node.get("prefixItems", ())
            if part < len(first):
                wanted = first[part]
            elif "items" in node or _open(node, "array"):
                wanted = node.get("items", {})
            else:
                continue
        if wanted is False:
            continue
        known = True
        found += _alternatives(wanted, root)
    return found if known else None


def _open(node: Node, kind: str) -> bool:
    """Whether a node allows objects, or arrays, of any content."""
    return not node.get("type") or kind in _listed(node["type"])


def _listed(types: Any) -> list[str]:
    return [types] if isinstance(types, str) else list(types)


def _types(nodes: Sequence[Node]) -> list[str]:
    """The types that a place may have, of all alternatives; none if one of them allows any."""
    found: dict[str, None] = {}
    for node in nodes:
        if "type" in node:
            found |= dict.fromkeys(_listed(node["type"]))
        elif "enum" in node or "const" in node:
            found |= dict.fromkeys(_kind(value) for value in node.get("enum", [node.get("const")]))
        else:
            return []
    return list(found)


def _kind(value: Any) -> str:
    """The type of a value in JSON."""
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def _wrong(leaf: Leaf, nodes: Sequence[Node], types: Sequence[str]) -> list[str]:
    whole = leaf.kind == "number" and float(leaf.value).is_integer()
    if types and leaf.kind not in types and not (whole and "integer" in types):
        return [f"{leaf.kind}, not {' or '.join(types)}"]
    if leaf.complete and all("enum" in node or "const" in node for node in nodes):
        allowed = [value for node in nodes for value in (node["enum"] if "enum" in node else [node["const"]])]
        if not any(_kind(value) == _kind(leaf.value) and value == leaf.value for value in allowed):
            return ["not one of the allowed values"]
    return []


def _required(inside: Sequence[Node]) -> list[str]:
    """The keys that every alternative that is an object requires."""
    objects = [node for node in inside if _open(node, "object")]
    if not objects:
        return []
    first, *others = [list(dict.fromkeys(node.get("required", ()))) for node in objects]
    return [key for key in first if all(key in other for other in others)]
