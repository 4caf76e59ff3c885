"""Rows as an engine gives them, and the columns of a table that follow from them. What does not follow is NaN."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vlmprobe.engines.serving.meaning import FLOOR, Meaning
from vlmprobe.errors import EngineResponseError

__all__ = ["Alternative", "Columns", "Row", "columns"]

ROUNDING = 1e-3  # nats by which a log-probability may be above 0


@dataclass(frozen=True, slots=True)
class Alternative:
    """One of the likeliest tokens at a place."""

    value: float
    id: int | None = None
    text: str | None = None  # None: ask the tokenizer


@dataclass(frozen=True, slots=True)
class Row:
    """One token that stands in a prompt or answer, and what the engine said of it, in the engine's own numbers."""

    value: float | None = None  # None where the engine said nothing
    id: int | None = None
    text: str | None = None  # None: ask the tokenizer
    rank: int | None = None  # 0 = the most likely token
    top: tuple[Alternative, ...] = ()  # the likeliest tokens, best first, with none left out between them
    full: np.ndarray | None = None  # float32 [V], of every id


@dataclass(frozen=True)
class Columns:
    """Numeric columns of T rows, named as in :class:`~vlmprobe.table.TokenTable`."""

    numbers: dict[str, np.ndarray]
    top: list[tuple[Alternative, ...]] = field(default_factory=list)  # [T], what stands in top_ids


def columns(rows: Sequence[Row], alternatives: int, meaning: Meaning, processing: str, where: str) -> Columns:
    """The columns of T rows.

    Args:
        rows: as the engine gave them.
        alternatives: K, the most of the likeliest tokens to keep.
        meaning: of the engine's numbers.
        processing: what was done to the distribution before a token was drawn (:attr:`Decoding.processing`).
        where: names the rows in an error.

    Raises:
        EngineResponseError: for a log-probability above 0.
    """
    kind = meaning.of(processing)
    raw = kind in ("raw", "unknown")
    wide = max((min(alternatives, len(row.top) if row.full is None else len(row.full)) for row in rows), default=0)
    wide = wide if raw else 0
    numbers = _empty(len(rows), wide)
    bounds = {name: np.full(len(rows), np.nan, np.float32) for name in ("logprobs_at_most", "entropy_at_least")}
    scores = np.full(len(rows), np.nan, np.float32)
    kept: list[tuple[Alternative, ...]] = [()] * len(rows)
    full = [None if row.full is None or not raw else row.full for row in rows]
    for t, row in enumerate(rows):
        if not meaning.logits and row.value is not None and row.value > ROUNDING:
            raise EngineResponseError(
                f"{where}: row {t} has a log-probability of {row.value:g}, above 0. Is the engine set to give logits?"
            )
        if full[t] is not None:
            kept[t] = _from_full(numbers, t, row, wide, meaning.logits)
        elif not raw:
            scores[t] = np.nan if meaning.logits else _known(row.value)
        else:
            kept[t] = tuple(each for each in row.top if each.value > FLOOR)[:wide]
            _from_top(numbers, bounds, t, row, kept[t], meaning, sure=kind == "raw")
    for name, bound in bounds.items():
        if not np.isnan(bound).all():
            numbers[name] = bound
    if not raw:
        numbers["scores"] = scores
    shapes = {each.shape for each in full if each is not None}
    if meaning.logits and len(shapes) == 1:
        blank = np.full(shapes.pop(), np.nan, np.float32)
        numbers["logits"] = np.stack([blank if each is None else each for each in full])
    return Columns(numbers, kept)


def _empty(count: int, wide: int) -> dict[str, np.ndarray]:
    from vlmprobe.table import empty_numbers

    return empty_numbers(count, wide)


def _from_full(numbers: dict[str, np.ndarray], t: int, row: Row, wide: int, logits: bool) -> tuple[Alternative, ...]:
    """Every column from the values of a whole vocabulary."""
    assert row.full is not None
    values = row.full.astype(np.float64)
    values = np.where(values > FLOOR, values, -np.inf)
    total = float(np.logaddexp.reduce(values))
    logprobs = values - total
    finite = np.where(np.isneginf(logprobs), 0.0, logprobs)
    numbers["entropy"][t] = -float((np.exp(logprobs) * finite).sum())
    if logits:
        numbers["logsumexp"][t] = total
    if row.id is not None and row.id < len(values):
        numbers["logprobs"][t] = logprobs[row.id]
        numbers["ranks"][t] = int((values > values[row.id]).sum())
    best = np.argsort(-values, kind="stable")[:wide]
    numbers["top_ids"][t, : len(best)] = best
    numbers["top_logprobs"][t, : len(best)] = logprobs[best]
    return tuple(Alternative(float(logprobs[each]), int(each)) for each in best)


def _from_top(
    numbers: dict[str, np.ndarray],
    bounds: dict[str, np.ndarray],
    t: int,
    row: Row,
    top: tuple[Alternative, ...],
    meaning: Meaning,
    *,
    sure: bool,
) -> None:
    """What follows from the token's own value and those of the likeliest ones."""
    known = [each.value for each in row.top if each.value > FLOOR]
    if top:
        numbers["top_ids"][t, : len(top)] = [-1 if each.id is None else each.id for each in top]
        if not meaning.logits:
            numbers["top_logprobs"][t, : len(top)] = [min(each.value, 0.0) for each in top]
    if row.rank is not None:
        numbers["ranks"][t] = row.rank
    elif row.value is not None:
        numbers["ranks"][t] = next((k for k, each in enumerate(row.top) if _same(each, row)), -1)
    if meaning.logits:
        if row.value is not None and row.value > FLOOR:
            # The sum over the vocabulary is at least that over the tokens that are known.
            others = [each.value for each in row.top if each.value > FLOOR and not _same(each, row)]
            bounds["logprobs_at_most"][t] = row.value - float(np.logaddexp.reduce(np.array([row.value, *others])))
        return
    if row.value is not None and row.value <= FLOOR:
        bounds["logprobs_at_most"][t] = row.value if meaning.clamped else min(known, default=math.nan)
    numbers["logprobs"][t] = _known(row.value)
    if top and sure:
        bounds["entropy_at_least"][t] = entropy_at_least(known)


def entropy_at_least(top: Sequence[float]) -> float:
    """The least entropy, nats, of a distribution whose likeliest log-probabilities are ``top``, K of them.

    What is left, r, lies in tokens none of which is likelier than the last one told, p: each adds at least
    -log(min(p, r)) for its share.
    """
    logprobs = [min(each, 0.0) for each in top]
    shares = [math.exp(each) for each in logprobs]
    told = -math.fsum(map(operator.mul, shares, logprobs))
    left = max(0.0, 1.0 - math.fsum(shares))
    likeliest = min(min(shares), left)
    return told + (left * -math.log(likeliest) if likeliest > 0 else 0.0)


def _known(value: float | None) -> float:
    return math.nan if value is None or value <= FLOOR else min(value, 0.0)


def _same(each: Alternative, row: Row) -> bool:
    if each.id is not None and row.id is not None:
        return each.id == row.id
    return each.text == row.text and each.value == row.value
