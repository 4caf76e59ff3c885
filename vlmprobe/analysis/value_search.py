"""Which values a JSON answer may have at a place, and how probable each is: best first over tokens.

Each step asks for the next tokens after the likeliest beginnings. A token that ends a value, such as the quote after
it, adds its probability to that value; any other is a longer beginning. So the probability of a value is that of all
its tokenisations that were met, each with all that may end it; what was not met is bounded by ``unexplored``.
"""

from __future__ import annotations

import heapq
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vlmprobe.analysis.json_reader import Leaf, value_begun

__all__ = ["Found", "NextTokens", "Search", "Spelled", "key_of", "kind_of"]

ROWS = 16  # beginnings that are asked for together: with more, improbable ones are asked for in vain
LISTED_ROWS = 128  # the same where every value is looked for
SPELLED = {True: ("true", "True"), False: ("false", "False"), None: ("null", "None")}


class NextTokens(NamedTuple):
    """The n tokens that may come next, as far as they are known."""

    ids: np.ndarray  # [n], of any type
    logprobs: np.ndarray  # float64 [n], nats, over the whole vocabulary
    texts: list[str]  # [n], what each adds to the text; empty where it completes no character
    special: np.ndarray  # bool [n]


@dataclass
class Spelled:
    """A value, and how it is most likely written."""

    value: Any
    kind: str
    written: str
    probability: float = 0.0
    likeliest: float = 0.0  # of one way to write it

    @classmethod
    def unmet(cls, value: Any) -> Spelled:
        """An allowed value that was not met."""
        return cls(value, kind_of(value), json.dumps(value, ensure_ascii=False))


@dataclass
class Found:
    """What a search found."""

    values: list[Spelled]  # likeliest first
    unexplored: float  # probability of all that was not followed to the end of a value
    rows: int  # beginnings after which the next tokens were asked for


@dataclass(order=True)
class _Beginning:
    order: float  # minus its probability
    ids: tuple[int, ...] = field(compare=False)
    text: str = field(compare=False)


def key_of(leaf_kind: str, value: Any) -> Hashable:
    """What two ways to write one value have in common: 12.5 and 12.50, true and True."""
    if leaf_kind in ("object", "array"):
        return leaf_kind
    return leaf_kind, "NaN" if value != value else value


@dataclass
class Search:
    """A search for the values at one place.

    Args:
        next_tokens: the next tokens after each of several beginnings, as ids from the first token that holds something
            of the value, of at least some probability each; None for one that cannot be asked for.
        lead: what the text has to begin with: the structure that this first token holds before the value.
        allowed: the values to look for; all if None.
        least: probability below which a beginning is left unexplored.
        most: how many beginnings are asked for.
    """

    next_tokens: Callable[[list[tuple[int, ...]], list[float]], Sequence[NextTokens | None]]
    lead: str
    allowed: Sequence[Any] | None
    least: float
    most: int

    def __post_init__(self) -> None:
        self._values: dict[Hashable, Spelled] = {}
        self._plain, self._strings = _forms(self.allowed or ())
        self._keys = {key_of(kind_of(each), each) for each in self.allowed or ()}

    def run(self, count: int) -> Found:
        """Search until the ``count`` likeliest values are known, or until the bounds are met; all of the allowed."""
        waiting, together = [_Beginning(-1.0, (), "")], ROWS if self.allowed is None else LISTED_ROWS
        unexplored, rows = 0.0, 0
        while waiting and rows < self.most and not self._known(count, -waiting[0].order):
            some = [heapq.heappop(waiting) for _ in range(min(together, len(waiting), self.most - rows))]
            rows += len(some)
            reaches = [-each.order for each in some]
            asked = self.next_tokens([each.ids for each in some], [self.least / reach for reach in reaches])
            for each, reach, after in zip(some, reaches, asked, strict=True):
                if after is None:
                    unexplored += reach
                    continue
                shares = reach * np.exp(after.logprobs)
                unexplored += max(0.0, reach - math.fsum(shares))
                for share, token, text, special in zip(
                    shares, after.ids.tolist(), after.texts, after.special.tolist(), strict=True
                ):
                    if not special and self._is_open(each.text + text, share):
                        heapq.heappush(waiting, _Beginning(-share, (*each.ids, token), each.text + text))
        unexplored += math.fsum(-each.order for each in waiting)
        values = sorted(self._values.values(), key=lambda each: -each.probability)
        return Found(values, max(0.0, unexplored), rows)

    def _known(self, count: int, likeliest: float) -> bool:
        """Whether no beginning that waits, the likeliest of which has this probability, can be among the values."""
        if self.allowed is not None or len(self._values) < count:
            return False
        return heapq.nlargest(count, (each.probability for each in self._values.values()))[-1] >= likeliest

    def _is_open(self, text: str, share: float) -> bool:
        """Whether a text is a beginning of a value; one that ends in it is counted."""
        if len(text) < len(self.lead) or not text.startswith(self.lead):
            return self.lead.startswith(text)
        begun = value_begun(text[len(self.lead) :])
        if begun is None:
            return True
        leaf, ended = begun
        if not ended:
            return self.allowed is None or self._may_become(leaf, text)
        if leaf.kind != "none":
            self._count(leaf, text, share)
        return False

    def _count(self, leaf: Leaf, text: str, share: float) -> None:
        key = key_of(leaf.kind, leaf.value)
        if self.allowed is not None and key not in self._keys:
            return
        start, stop = (place + len(self.lead) for place in leaf.span)
        quotes = leaf.kind == "string"
        written = text[start - quotes : stop + quotes]
        known = self._values.setdefault(key, Spelled(leaf.value, leaf.kind, written))
        known.probability += share
        if share > known.likeliest:
            known.likeliest, known.written = share, written

    def _may_become(self, leaf: Leaf, text: str) -> bool:
        """Whether an allowed value begins with one that has not ended."""
        if leaf.kind == "string":
            return _any_begins(self._strings, leaf.value)
        start, stop = (place + len(self.lead) for place in leaf.span)
        return _any_begins(self._plain, text[start:stop])


def kind_of(value: Any) -> str:
    """The kind of a value that is no object or array."""
    if isinstance(value, bool):
        return "boolean"
    if value is None:
        return "null"
    return "string" if isinstance(value, str) else "number"


def _any_begins(texts: Sequence[str], begin: str) -> bool:
    """Whether one of these texts, in order, begins so."""
    place = bisect_left(texts, begin)
    return place < len(texts) and texts[place].startswith(begin)


def _forms(allowed: Sequence[Any]) -> tuple[list[str], list[str]]:
    """How the allowed values may be written without quotes, and those that stand in quotes, both in order."""
    plain: set[str] = set()
    strings = []
    for value in allowed:
        if isinstance(value, str):
            strings.append(value)
        elif value is None or isinstance(value, bool):
            plain |= set(SPELLED[value])
        else:
            rounded = [f"{value:.{places}f}" for places in (1, 2)]
            plain |= {json.dumps(value), *(each for each in rounded if float(each) == value)}
    return sorted(plain), sorted(strings)
