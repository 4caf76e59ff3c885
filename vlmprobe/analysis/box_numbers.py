"""What number a coordinate may become: its distribution, as far as the rows of the tokens say it.

The tokens of a number form a tree: after ``2`` may come ``23``, ``24``, ... or the end. The rows of an answer are those
along the number that was written. What branches off there begins with known digits and goes on with unknown ones, so it
is only known to lie between two numbers. Every outcome is such a range; those of one number are exact.

White space, and structure in the same token, may come before the digits. They are compared as text, so numbers are told
apart by their digits and not by how they are cut into tokens.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlmprobe.results.choices import rank_of_chosen
from vlmprobe.results.table import TokenTable

__all__ = ["Outcomes", "Range", "Tally", "after", "from_rows", "mean_bounds", "range_of"]

ROUNDING = 1e-6  # how far probabilities in float32 may add up to less than 1
PIECE = "\N{REPLACEMENT CHARACTER}"
BEGINNING = re.compile(r"-?(?:\d+(?:\.\d*)?)?")


class Range(NamedTuple):
    """What a text says of the number that stands in it, or will."""

    low: float
    high: float  # equal to ``low`` if the number is known
    ended: bool  # whether it is followed by something else; a number that is known may still go on beyond the image


def range_of(text: str, lead: str, greatest: float, step: float) -> Range | None:
    """The number in a text, or the range of those that it may go on to; None if none can come.

    Args:
        text: from the first token of the number on.
        lead: what stands in that token before the number, without white space around it.
        greatest: the greatest number; greater and negative ones stand for no place in the image.
        step: between two coordinates: smaller decimals are not told apart.
    """
    text = text.lstrip()
    if len(text) < len(lead) or not text[len(lead) :].strip():
        return Range(0.0, greatest, False) if lead.startswith(text[: len(lead)].rstrip()) else None
    if not text.startswith(lead):
        return None
    text = text[len(lead) :].lstrip()
    match = BEGINNING.match(text)
    number = match[0] if match else ""
    if not number or number.startswith("-"):
        return None
    ended = len(number) < len(text)
    value = float(number)
    if value > greatest:
        return None
    if ended:
        return Range(value, value, True)
    if "." in number:
        finest = 10.0 ** -(len(number) - number.index(".") - 1)
        return (
            Range(value, value, True) if finest <= step + 1e-9 else Range(value, min(value + finest, greatest), False)
        )
    more = 1  # numbers of as many more digits as fit
    while 0 < value * more * 10 <= greatest:
        more *= 10
    high = min(value * more + more - 1, greatest) if value else greatest  # after zeros anything may come
    return Range(value, min(high + max(0.0, 1 - step), greatest), False)


def after(text: str, token: str, lead: str, greatest: float, step: float) -> Range | None:
    """What a token makes of the number in the text before it; a token without text, a piece of a character, ends it."""
    return range_of(text + (token or PIECE), lead, greatest, step)


@dataclass(frozen=True)
class Outcomes:
    """N ranges of numbers with their probabilities, which add up to 1: given that a place in the image is written."""

    low: np.ndarray  # float64 [N]
    high: np.ndarray  # float64 [N]
    mass: np.ndarray  # float64 [N]
    sure: np.ndarray  # float64 [N], of which this is of numbers that have ended: the rest may still leave the image
    outside: float  # probability of anything else, at least: no number, or one beyond the image; NaN if unknown

    @property
    def exact(self) -> np.ndarray:
        """bool [N]: the outcomes that are one number."""
        return self.low == self.high


class Tally:
    """Adds up the probabilities of outcomes."""

    def __init__(self) -> None:
        self.mass: dict[tuple[float, float], list[float]] = {}  # all, and what of it has ended
        self.outside = 0.0

    def add(self, found: Range | None, mass: float) -> None:
        """Count one outcome; None is none in the image."""
        if mass <= 0:
            return
        if found is None:
            self.outside += mass
        else:
            held = self.mass.setdefault((found.low, found.high), [0.0, 0.0])
            held[0] += mass
            held[1] += mass if found.ended else 0.0

    @property
    def ended(self) -> float:
        """Probability of all numbers so far that have ended in the image."""
        return sum(sure for _, sure in self.mass.values())

    def outcomes(self, greatest: float) -> Outcomes:
        """What was counted."""
        total = sum(mass for mass, _ in self.mass.values())
        if not total:  # no place in the image is possible: nothing is known of one
            return Outcomes(np.zeros(1), np.full(1, greatest), np.ones(1), np.zeros(1), np.nan)
        keys = sorted(self.mass)
        low, high = np.array(keys).T
        mass, sure = np.array([self.mass[key] for key in keys]).T / total
        return Outcomes(low, high, mass, sure, self.outside / (self.outside + total))


def mean_bounds(low: np.ndarray, high: np.ndarray, mass: np.ndarray, sure: np.ndarray) -> tuple[float, float]:
    """The least and the greatest mean that outcomes allow.

    Args:
        low, high: float64 [N], the least and greatest value of each.
        mass: float64 [N], its probability.
        sure: float64 [N], of which this counts in any case, and the rest or any part of it may not.
    """
    return _least_mean(low, mass, sure), 0.0 - _least_mean(-high, mass, sure)


def _least_mean(values: np.ndarray, mass: np.ndarray, sure: np.ndarray) -> float:
    order = np.argsort(values, kind="stable")
    values, maybe = values[order], np.maximum(mass - sure, 0)[order]
    counted = sure[order]
    total = counted.sum() + np.concatenate([[0.0], np.cumsum(maybe)])  # the smallest ones count first
    summed = (counted * values).sum() + np.concatenate([[0.0], np.cumsum(maybe * values)])
    known = total > 0
    return float((summed[known] / total[known]).min())


def from_rows(table: TokenTable, lead: str, greatest: float, step: float) -> Outcomes:
    """The outcomes that the rows of a number's tokens leave.

    Args:
        table: from the first token that holds a part of the number, to the one after the last or further.
        lead, greatest, step: as in :func:`range_of`.
    """
    tally, text, reached = Tally(), "", 1.0
    most = table.top_logprobs.shape[1]
    for row, token in enumerate(table.tokens):
        here = range_of(text, lead, greatest, step)
        if here is None:
            break
        own = float(table.logprobs[row])
        if np.isnan(own):  # the engine gives nothing, or a bound
            tally.add(here, reached)
            reached = 0.0
            break
        listed = 0.0
        chosen_rank = rank_of_chosen(table, row, most)
        for rank, (other, logprob) in enumerate(zip(table.top_tokens[row], table.top_logprobs[row], strict=True)):
            if np.isnan(logprob) or rank == chosen_rank:
                continue
            mass = float(np.exp(logprob))
            listed += mass
            tally.add(after(text, other, lead, greatest, step), reached * mass)
        chosen = float(np.exp(own))
        if (rest := 1.0 - listed - chosen) > ROUNDING:
            tally.add(here, reached * rest)
        reached *= chosen
        found = after(text, token, lead, greatest, step)
        text += token or PIECE
        if found is None or found.ended:
            tally.add(found, reached)
            reached = 0.0
            break
    if reached:
        tally.add(range_of(text, lead, greatest, step), reached)
    return tally.outcomes(greatest)
