"""Answers of which one begins with another: as events the longer is part of the shorter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from vlmprobe.results.table import TokenTable

__all__ = ["Path", "disjoint", "path_of"]

Path: TypeAlias = tuple[Any, ...]  # start position of an answer in the model's sequence, then its tokens


def path_of(table: TokenTable) -> Path:
    """Start position and tokens of a scored answer; token texts if the engine gives no ids."""
    return (int(table.positions[0]), *(table.tokens if table.ids is None else table.ids.tolist()))


def disjoint(tables: Sequence[TokenTable]) -> list[int]:
    """The answers that begin with no other one, so that their probabilities can be added; of two equal ones, the first.

    Args:
        tables: [C], of the tokens of each answer.
    """
    paths = [path_of(table) for table in tables]
    first = {path: place for place, path in reversed(list(enumerate(paths)))}
    return [
        place
        for place, path in enumerate(paths)
        if first[path] == place and not any(path[:stop] in first for stop in range(2, len(path)))
    ]
