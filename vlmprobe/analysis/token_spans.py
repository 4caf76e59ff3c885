"""Probability of a stretch of an answer's text: of the tokens that it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vlmprobe.results.table import TokenTable

__all__ = ["NOTHING", "Measured", "SpanReader", "text_and_spans"]

NAN = float("nan")


class Measured(NamedTuple):
    """The tokens of a stretch of text."""

    at_least: float  # probability, the tokens that hold more than the stretch counted; NaN where one has none
    at_most: float  # such tokens left out, and bounds of the engine taken
    straddles: bool  # whether there are such tokens
    least: int  # row of the least likely token; -1 if none has a probability
    entropy: float  # nats, mean over the tokens

    @property
    def probability(self) -> float:
        """Of exactly these tokens; NaN if one holds more than the stretch."""
        return NAN if self.straddles else self.at_least


NOTHING = Measured(NAN, NAN, False, -1, NAN)


def text_and_spans(tokens: Sequence[str], kinds: Sequence[str]) -> tuple[str, np.ndarray]:
    """The text of tokens without special ones, and the characters of each in it, int64 [T, 2].

    All pieces of a character that is split over several tokens have its span; special tokens have an empty one.
    """
    spans = np.zeros((len(tokens), 2), dtype=np.int64)
    stop, pieces = 0, []
    for row, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind != "text":
            spans[row] = stop
            continue
        start, stop = stop, stop + len(token)
        spans[row] = start, stop
        pieces.append(row)
        if token:
            spans[pieces] = start, stop
            pieces = []
    return "".join(token for token, kind in zip(tokens, kinds, strict=True) if kind == "text"), spans


@dataclass(frozen=True, eq=False)
class SpanReader:
    """Measures stretches of a text, each in time that grows with the logarithm of its length only."""

    text: str
    starts: np.ndarray  # int64 [T], ascending
    stops: np.ndarray  # int64 [T], ascending
    logprobs: np.ndarray  # float64 [T]
    upper: np.ndarray  # float64 [T], the same, or a bound
    entropy: np.ndarray  # float64 [T]

    @classmethod
    def of(cls, table: TokenTable, text: str | None = None) -> SpanReader | None:
        """A reader of a table's tokens.

        Args:
            table: of the answer.
            text: the answer, if it is not all of what the tokens say, such as without white space around it.

        Returns:
            None if the text is not among what the tokens say.
        """
        said, spans = text_and_spans(table.tokens, table.kinds)
        shift = 0 if text is None else said.find(text)
        if shift < 0:
            return None
        logprobs = table.logprobs.astype(np.float64)
        bounds = table.logprobs_at_most
        upper = logprobs if bounds is None else np.where(np.isnan(logprobs), bounds.astype(np.float64), logprobs)
        starts, stops = (spans - shift).T
        return cls(said if text is None else text, starts, stops, logprobs, upper, table.entropy.astype(np.float64))

    def measure(self, start: int, stop: int, *, spaced: bool = False) -> Measured:
        """The tokens of ``text[start:stop]``; of an empty stretch, the one with the character after it.

        Args:
            start, stop: characters of the text.
            spaced: whether white space around the stretch may belong to its tokens.
        """
        first = int(np.searchsorted(self.stops, start, side="right"))
        last = int(np.searchsorted(self.starts, stop, side="left")) if stop > start else first + 1
        if last <= first or last > len(self.starts):
            return NOTHING
        begin, end = int(self.starts[first]), int(self.stops[last - 1])
        inner_first, inner_last = first, last
        if begin < start and not (spaced and self._blank(begin, start)):
            # All pieces of the character at the edge share its place.
            inner_first = int(np.searchsorted(self.starts, begin, side="right"))
        if (end > stop or stop == start) and not (spaced and self._blank(stop, end)):
            inner_last = max(inner_first, int(np.searchsorted(self.stops, end, side="left")))
        rows = slice(first, last)
        logprobs, upper = self.logprobs[rows], self.upper[rows]
        return Measured(
            at_least=float(np.exp(logprobs.sum())),
            at_most=float(np.exp(self.upper[inner_first:inner_last].sum())),
            straddles=(inner_first, inner_last) != (first, last),
            least=-1 if np.isnan(upper).all() else first + int(np.nanargmin(upper)),
            entropy=float(self.entropy[rows].mean()),
        )

    def _blank(self, start: int, stop: int) -> bool:
        return not self.text[max(start, 0) : stop].strip()
