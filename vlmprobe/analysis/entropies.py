"""Entropies beyond Shannon's: exact from full rows, and bounded from the top-k without them.

A table holds Shannon's entropy of every row, computed over the whole vocabulary. Rényi's entropy of order a,
``log(sum p**a) / (1 - a)`` in nats (Rényi 1961), emphasises the head (a > 1) or the tail (a < 1) of the distribution:
order 0 counts the possible tokens, 1 is Shannon's, 2 is the collision entropy, infinity the min-entropy ``-log max p``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmprobe.analysis.uncertainty import Source, table_of
from vlmprobe.errors import ResultError
from vlmprobe.results.table import TokenTable

__all__ = ["Bounds", "renyi_bounds", "renyi_entropy", "tail_mass", "top_k_entropy"]

ROUNDING = 1e-6  # of the sum of float32 probabilities: a tail mass below it is not resolved


@dataclass(frozen=True, eq=False)
class Bounds:
    """Lower and upper bounds. They are tight: some distribution with the same top-k attains each."""

    lower: np.ndarray  # float64 [T], nats
    upper: np.ndarray  # float64 [T], nats; infinite if it depends on a vocabulary that is not given

    @property
    def width(self) -> np.ndarray:
        """float64 [T], nats: how much the top-k leaves undetermined."""
        return self.upper - self.lower


def renyi_entropy(source: Source, order: float) -> np.ndarray:
    """Rényi's entropy of each row, exactly.

    Args:
        source: table or result. Orders 1 and infinity need only the columns, all others full rows.
        order: from 0 to infinity.

    Returns:
        float64 [T], nats; NaN where a row has no distribution.

    Raises:
        ResultError: if full rows are needed and not kept.
    """
    table, order = table_of(source), _order(order)
    if order == 1:
        return table.entropy.astype(np.float64)
    if np.isinf(order):
        return -_top(table)[:, 0]
    if table.logits is None:
        raise ResultError(
            f'The Rényi entropy of order {order:g} needs full rows: pass keep="logits", or use renyi_bounds, '
            "which bounds it from the likeliest tokens."
        )
    entropy = np.full(len(table), np.nan)
    for row in np.flatnonzero(table.scored):  # one row at a time: [T, V] in float64 may not fit
        logits = table.logits[row].astype(np.float64)
        logprobs = logits - np.logaddexp.reduce(logits)
        power = np.log((np.exp(logprobs) > 0).sum()) if order == 0 else np.logaddexp.reduce(order * logprobs)
        entropy[row] = power / (1 - order)
    return entropy


def renyi_bounds(source: Source, order: float = 1.0, *, vocabulary: int | None = None) -> Bounds:
    """Bounds of Rényi's (order 1: Shannon's) entropy of each row, given its K likeliest tokens.

    The mass left by the top-k lies on tokens none of which is likelier than the K-th. The entropy is largest if they
    share it equally and smallest if as few as possible hold it.

    Args:
        source: table or result.
        order: above 0.
        vocabulary: V, the vocabulary size; that of the full rows if they are kept. Without it the upper bound of orders
            up to 1 is infinite, unless the top-k holds all mass, and that of orders above 1 is the limit of a large
            vocabulary.

    Returns:
        :class:`Bounds` [T]; NaN where a row has no distribution.
    """
    table, order = table_of(source), _order(order)
    if order == 0:
        raise ResultError("Order 0 counts the possible tokens, which the top-k does not bound; use an order above 0.")
    logprobs = _top(table)
    if np.isinf(order):
        return Bounds(-logprobs[:, 0], -logprobs[:, 0])
    if vocabulary is None and table.logits is not None:
        vocabulary = table.logits.shape[1]
    known = logprobs.shape[1]
    if vocabulary is not None and vocabulary < known:
        raise ResultError(f"a vocabulary of {vocabulary} cannot hold the {known} tokens of the table")
    rest = np.inf if vocabulary is None else vocabulary - known
    tail, least = tail_mass(table), np.exp(logprobs[:, -1])
    if rest == 0:
        tail = np.where(np.isnan(tail), np.nan, 0.0)
    head = _spent(np.exp(logprobs), order).sum(axis=1)
    held = np.maximum(tail - ROUNDING, 0.0) if order <= 1 else tail  # mass that may be rounding is not counted
    whole = np.floor(np.divide(held, least, out=np.zeros_like(held), where=least != 0))
    packed = head + whole * _spent(least, order) + _spent(np.maximum(held - whole * least, 0.0), order)
    spread = head + _spread(tail, rest, order)
    ends = [_entropy_of(total, order) for total in (packed, spread)]
    return Bounds(*ends)


def top_k_entropy(source: Source, k: int | None = None) -> np.ndarray:
    """Shannon's entropy of the K likeliest tokens alone, renormalised.

    It can be computed for servers that give only a top-k. It is the entropy of another distribution than the model's,
    and at most ``log k``; :func:`renyi_bounds` bounds the model's own.

    Args:
        source: table or result.
        k: how many tokens; as many as the table holds if None.

    Returns:
        float64 [T], nats; NaN where a row has no distribution.
    """
    logprobs = _top(table_of(source))
    held = logprobs.shape[1]
    k = held if k is None else k
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= held:
        raise ResultError(f"k must be from 1 to {held}, the alternatives that the table holds, not {k!r}")
    probabilities = np.exp(logprobs[:, :k])
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return _spent(probabilities, 1.0).sum(axis=1)


def tail_mass(source: Source) -> np.ndarray:
    """float64 [T]: probability of all tokens beyond the K likeliest; NaN where a row has no distribution."""
    # Rounding of float32 logprobs can push the sum of a near-certain row just above 1.
    return np.clip(1.0 - np.exp(_top(table_of(source))).sum(axis=1), 0.0, 1.0)


def _order(order: float) -> float:
    if isinstance(order, bool) or not isinstance(order, (int, float, np.floating, np.integer)) or not order >= 0:
        raise ResultError(f"the order of an entropy must be a number from 0 to infinity, not {order!r}")
    return float(order)


def _top(table: TokenTable) -> np.ndarray:
    if not table.top_logprobs.shape[1]:
        raise ResultError("the table holds no alternatives: pass alternatives=1 or more")
    return table.top_logprobs.astype(np.float64)


def _spent(probabilities: np.ndarray, order: float) -> np.ndarray:
    """Each probability's term in the sum inside the entropy: ``-p log p``, or ``p**order``."""
    if order != 1:
        return probabilities**order
    return -probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))


def _spread(tail: np.ndarray, rest: float, order: float) -> np.ndarray:
    """The term of a tail shared equally by ``rest`` tokens; the limit if they are infinitely many."""
    if np.isfinite(rest) and rest > 0:
        return rest * _spent(tail / rest, order)
    beyond = 0.0 if order > 1 else np.inf
    return np.where(np.isnan(tail), np.nan, np.where(tail > 0, beyond, 0.0))


def _entropy_of(total: np.ndarray, order: float) -> np.ndarray:
    return total if order == 1 else np.log(total) / (1 - order)
