"""Bounds on scores from an engine that lists only the likeliest tokens of a position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from vlmprobe.results.choices import read_only
from vlmprobe.results.table import TokenTable

__all__ = ["WIDEST", "Bounded", "at_most", "listed_in", "open_mass"]

WIDEST = 0.1  # width of an interval of a probability up to which its answer counts as told


class Bounded(Protocol):
    """Bounds of scores. A candidate that an engine does not list has no log-probability, but is at most so likely.

    What is known of it is the bound of its table (``logprobs_at_most``), and in ``meta["listed"]`` the greatest
    probability of all tokens together that the engine does not list (``"unlisted"``), and the candidates that may begin
    with a token that it does (``"begun"``).
    """

    meta: dict[str, Any]

    @property
    def logprobs(self) -> np.ndarray: ...  # noqa: D102 - float64 [C], nats; NaN where there is none

    @property
    def probabilities(self) -> np.ndarray: ...  # noqa: D102 - float64 [C], among the candidates

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [C] twice, nats: what each candidate may hold beyond ``logprobs``; see :func:`open_mass`."""

    @property
    def bounded(self) -> bool:
        """Whether some candidate is only known to be at most so likely."""
        return bool(np.any(np.isfinite(self._open())))

    @cached_property
    def logprob_bounds(self) -> np.ndarray:
        """float64 [C, 2], nats: the least and the greatest that the log-probability of each candidate can be.

        Both are ``logprobs`` where that is all. NaN where nothing is known.
        """
        tail, other = self._open()
        low = np.where(np.isnan(self.logprobs), -np.inf, self.logprobs)
        high = np.logaddexp(low, np.logaddexp(tail, other))
        found = np.stack([low, high], axis=-1)
        found[np.isneginf(high)] = np.nan
        return read_only(found)

    @cached_property
    def probability_bounds(self) -> np.ndarray:
        """float64 [C, 2]: the least and the greatest that each of ``probabilities`` can be. NaN where nothing is known.

        A candidate is least likely among the others if they hold all that is not listed, and likeliest if it does.
        """
        tail, other = self._open()
        low, high = self.logprob_bounds.T
        if not self.bounded:
            return read_only(np.stack([self.probabilities] * 2, axis=-1))
        shift = np.nanmax(high)
        known, tail, other = (np.exp(each - shift) for each in (np.where(np.isnan(low), -np.inf, low), tail, other))
        own = np.exp(high - shift)
        rest = known.sum() - known
        with np.errstate(over="ignore"):
            unlisted = np.exp(np.log(unlisted_of(self.meta)) - shift)
        more = np.minimum(tail.sum() - tail, unlisted) + other.sum() - other
        with np.errstate(invalid="ignore"):
            found = np.stack([known / (known + rest + more), own / (own + rest)], axis=-1)
        return read_only(np.where(np.isnan(high)[:, None], np.nan, np.clip(found, 0.0, 1.0)))

    @property
    def decided(self) -> bool:
        """Whether it is known which candidate is likeliest: no other one can be likelier, or by a tenth at most.

        More precisely: the interval of the likeliest one's probability is at most :data:`WIDEST` wide, or no bound of
        another one exceeds it. False where no candidate has a log-probability.
        """
        if np.isnan(self.logprobs).all():
            return False
        best = int(np.nanargmax(self.logprobs))
        low, high = self.probability_bounds[best]
        rivals = np.delete(self.logprob_bounds[:, 1], best)
        return bool(high - low <= WIDEST or not (rivals > self.logprob_bounds[best, 0]).any())

    def _share(self, place: int) -> str:
        """The probability of a candidate among the others, or its bound."""
        value, most = self.probabilities[place], self.probability_bounds[place, 1]
        return f"<= {most:.3f}" if np.isnan(value) and not np.isnan(most) else f"{value:.3f}"


def unlisted_of(meta: Mapping[str, Any]) -> float:
    """The greatest probability of all tokens together that an engine does not list; 1 where that is not known."""
    return float(listed_in(meta).get("unlisted", 1.0))


def listed_in(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is recorded of the tokens that an engine lists; empty if it gives the number of any."""
    found = meta.get("listed")
    return found if isinstance(found, Mapping) and "unlisted" in found else {}


def at_most(table: TokenTable) -> float:
    """Upper bound on the log-probability of a candidate that has none, nats; -inf if it has one, or no bound."""
    known = table.logprobs.astype(np.float64)
    if table.logprobs_at_most is None or not np.isnan(known).any():
        return -np.inf
    total = float(np.where(np.isnan(known), table.logprobs_at_most, known).sum())
    return -np.inf if np.isnan(total) else total


def open_mass(tables: Mapping[str, TokenTable], meta: Mapping[str, Any]) -> tuple[float, float]:
    """What candidates without a log-probability may hold together, nats.

    Args:
        tables: of each, by its text.
        meta: of the scores.

    Returns:
        Of those that begin with a token which the engine does not list, and so together hold at most what is not
        listed; and of the others. -inf where there are none.
    """
    listed = listed_in(meta)
    begun = listed.get("begun", ()) if listed else tables
    inside = [at_most(table) for text, table in tables.items() if text not in begun]
    outside = [at_most(table) for text, table in tables.items() if text in begun]
    return min(_sum(inside), float(np.log(unlisted_of(meta)))), _sum(outside)


def _sum(logprobs: Sequence[float]) -> float:
    return float(np.logaddexp.reduce(np.array([-np.inf, *logprobs])))
