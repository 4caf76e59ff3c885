"""Parses the reply of a server: errors say what is missing or invalid, and where."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmprobe.errors import EngineResponseError

__all__ = ["Node", "real", "token_id"]

MOST_IDS = 2**24  # ids in one list; no engine has contexts near it
LARGEST_ID = 2**31 - 1


@dataclass(frozen=True)
class Node:
    """A value in a server's reply, and its path there.

    Raises (all methods):
        EngineResponseError: if the reply holds something else.
    """

    value: Any
    where: str  # the engine's name, then the path, such as "vLLM: choices[0].logprobs"

    def __getitem__(self, key: str | int) -> Node:
        """The member or item ``key``, which must be there."""
        kind, separator = (dict, ".") if isinstance(key, str) else (list, "")
        found = self._at(key) if isinstance(self.value, kind) else None
        if found is None:
            raise EngineResponseError(f"{self.where} has no {key!r}: {_brief(self.value)}.")
        return Node(found, f"{self.where}{separator}{key if isinstance(key, str) else f'[{key}]'}")

    def get(self, key: str) -> Node | None:
        """The member ``key``, or None where it is absent or null."""
        return self[key] if isinstance(self.value, dict) and self.value.get(key) is not None else None

    def items(self, *, most: int = MOST_IDS) -> list[Any]:
        """The plain values of a list of at most ``most``."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        if len(self.value) > most:
            raise self.wrong(f"a list of at most {most:,}")
        return self.value

    def mapping(self, *, most: int = MOST_IDS) -> dict[str, Any]:
        """The plain values of an object of at most ``most`` members."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        if len(self.value) > most:
            raise self.wrong(f"an object of at most {most:,} members, but of {len(self.value):,}")
        return self.value

    def string(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def integer(self, least: int = 0, most: int = LARGEST_ID) -> int:
        """An integer in a range."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not least <= self.value <= most:
            raise self.wrong(f"an integer from {least} to {most}")
        return self.value

    def count(self, key: str) -> int | None:
        """The member ``key``, a number of things; None where it is absent or null."""
        found = self.get(key)
        return None if found is None else found.integer()

    def ids(self, vocabulary: int | None = None) -> np.ndarray:
        """int64 [S]: token ids, within the vocabulary where its size is known."""
        values = self.items()
        limit = LARGEST_ID if vocabulary is None else vocabulary - 1
        if set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= limit:  # the common case, fast
            return np.array(values, dtype=np.int64)
        return np.array([token_id(each, self.where, vocabulary) for each in values], dtype=np.int64)

    def wrong(self, due: str) -> EngineResponseError:
        """The error that says what was expected here."""
        return EngineResponseError(f"{self.where} is not {due}: {_brief(self.value)}.")

    def _at(self, key: Any) -> Any:
        try:
            return self.value[key]
        except LookupError:
            return None


def token_id(value: Any, where: str, vocabulary: int | None = None) -> int:
    """A token id: an integer, not negative, below the size of the vocabulary where that is known."""
    limit = LARGEST_ID if vocabulary is None else vocabulary - 1
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise EngineResponseError(f"{where} holds {_brief(value)}, which is not a token id from 0 to {limit}.")
    return value


def real(value: Any, where: str) -> float:
    """A number other than NaN and plus infinity; minus infinity is a probability of zero."""
    if type(value) is float and value < math.inf:  # the common case of many thousands; a NaN is below nothing
        return value
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
    except OverflowError:
        number = math.nan
    if math.isnan(number) or number == math.inf:
        raise EngineResponseError(f"{where} holds {_brief(value)} where a number is expected.")
    return number


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object of {', '.join(map(repr, list(value)[:8])) or 'nothing'}"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge integer"
    return text if len(text) <= 80 else text[:77] + "..."
