"""Paths of fields as text, such as ``items[2].price``, and selections, such as ``items[].price``."""

from __future__ import annotations

import json
import re

from vlmprobe.analysis.json_reader import Path
from vlmprobe.errors import ResultError

__all__ = ["ANY", "parsed_path", "path_matches", "path_text"]

PLAIN_KEY = re.compile(r'[^\s.\[\]"]+')
PART = re.compile(r'\[(?P<index>\d*)\]|\[(?P<quoted>"(?:[^"\\]|\\.)*")\]|(?P<dot>\.?)(?P<key>[^\s.\[\]"]+)')
ANY = -1  # index of a selection that is any index


def path_text(path: Path) -> str:
    """A path as text: ``items[2].price``; keys with dots, brackets, quotes or white space as ``["a.b"]``."""
    said = ""
    for part in path:
        if isinstance(part, int):
            said += "[]" if part == ANY else f"[{part}]"
        elif PLAIN_KEY.fullmatch(part):
            said += f".{part}" if said else part
        else:
            said += f"[{json.dumps(part, ensure_ascii=False)}]"
    return said


def parsed_path(path: str) -> Path:
    """The parts of a path's text; :data:`ANY` where it has empty brackets.

    Raises:
        ResultError: for what is no path.
    """
    parts: list[str | int] = []
    at = 0
    while at < len(path):
        found = PART.match(path, at)
        if found is None or (found["key"] is not None and bool(found["dot"]) != bool(parts)):
            raise ResultError(
                f"{path!r} is no path of a field, at character {at}: write it as in items[2].price, items[].price for "
                'all items, or ["a.b"].total for a key with a dot in it.'
            )
        if found["key"] is not None:
            parts.append(found["key"])
        elif found["quoted"] is not None:
            try:
                parts.append(str(json.loads(found["quoted"])))
            except ValueError as error:
                raise ResultError(f"{path!r} is no path of a field: {found['quoted']} is no JSON string.") from error
        else:
            parts.append(int(found["index"]) if found["index"] else ANY)
        at = found.end()
    return tuple(parts)


def path_matches(path: Path, wanted: Path) -> bool:
    """Whether a path begins with a selection."""
    return len(path) >= len(wanted) and all(
        isinstance(part, int) if each == ANY else part == each for part, each in zip(path, wanted, strict=False)
    )
