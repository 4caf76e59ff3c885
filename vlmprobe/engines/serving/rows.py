"""Rows as an engine returns them, and table columns computed from them; what cannot be computed is NaN."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from vlmprobe.engines.serving.value_kind import FLOOR, Meaning
from vlmprobe.errors import EngineResponseError

__all__ = ["Alternative", "Columns", "Row", "columns", "whole_row"]

ROUNDING = 1e-3  # nats by which rounding may put a log-probability above 0


class Alternative(NamedTuple):
    """One of the most likely tokens at a position; a tuple, because an answer has hundreds or thousands of them."""

    value: float
    id: int | None = None
    text: str | None = None  # None: the tokenizer decodes it
    raw: bytes | None = None  # of the token, where the engine sends them

    @property
    def shown(self) -> str:
        """Its text; bytes of a piece of a character are written as ``<0xE7>``, as by a tokenizer."""
        if self.raw is None:
            return self.text or ""
        try:
            return self.raw.decode()
        except UnicodeDecodeError:
            return "".join(f"<0x{byte:02X}>" for byte in self.raw)


@dataclass(frozen=True, slots=True)
class Row:
    """One token of a prompt or answer, with the engine's own numbers."""

    value: float | None = None  # None if the engine returned none
    id: int | None = None
    text: str | None = None  # None: the tokenizer decodes it
    rank: int | None = None  # 0 = the most likely token
    top: tuple[Alternative, ...] = ()  # the most likely tokens, best first, without gaps
    full: np.ndarray | None = None  # float32 [V], values of the whole vocabulary
    at_most: float | None = None  # nats, a bound on the log-probability where there is no value


@dataclass(frozen=True)
class Columns:
    """Numeric columns of T rows, named as in :class:`~vlmprobe.results.table.TokenTable`."""

    numbers: dict[str, np.ndarray]
    top: list[tuple[Alternative, ...]] = field(default_factory=list)  # [T], the tokens of top_ids


def columns(rows: Sequence[Row], alternatives: int, meaning: Meaning, processing: str, where: str) -> Columns:
    """The columns of T rows.

    Args:
        rows: as the engine returned them.
        alternatives: K, the maximum number of most likely tokens to keep.
        meaning: of the engine's numbers.
        processing: what was done to the distribution before a token was drawn (:attr:`Decoding.processing`).
        where: names the rows in an error.

    Raises:
        EngineResponseError: for a log-probability above 0.
    """
    kind = meaning.of(processing)
    own = np.array([np.nan if row.value is None else row.value for row in rows], np.float64)
    above = np.flatnonzero(own > ROUNDING)
    if len(above) and not meaning.logits:
        raise EngineResponseError(
            f"{where}: row {above[0]} has a log-probability of {own[above[0]]:g}, above 0. Is the engine set to return "
            "logits?"
        )
    if kind not in ("raw", "unknown"):
        numbers = _empty(len(rows), 0)
        numbers["scores"] = (_of_logits(rows) if meaning.logits else _logprobs(own)).astype(np.float32)
        return Columns(numbers, [()] * len(rows))
    wide = max((min(alternatives, len(row.top) if row.full is None else len(row.full)) for row in rows), default=0)
    numbers = _empty(len(rows), wide)
    whole = [row.full is not None for row in rows]
    told: list[tuple[Alternative, ...]] = [() if row.full is not None else row.top for row in rows]
    known = [tuple([each for each in top if each.value > FLOOR]) for top in told]
    kept = [top[:wide] for top in known]
    _from_top(numbers, rows, np.where(whole, np.nan, own), known, kept, meaning, sure=kind == "raw")
    for t in np.flatnonzero(whole).tolist():
        kept[t] = _from_full(numbers, t, rows[t], wide, meaning.logits)
    shapes = {row.full.shape for row in rows if row.full is not None}
    if meaning.logits and len(shapes) == 1:
        blank = np.full(shapes.pop(), np.nan, np.float32)
        numbers["logits"] = np.stack([blank if row.full is None else row.full for row in rows])
    return Columns(numbers, kept)


def whole_row(listed: Sequence[Alternative], vocabulary: int | None) -> np.ndarray | None:
    """float32 [V]: the values of the whole vocabulary, for :attr:`Row.full`; None where not all of it is listed."""
    if vocabulary is None or len(listed) != vocabulary:
        return None
    ids = np.array([-1 if each.id is None else each.id for each in listed])
    if not np.array_equal(np.sort(ids), np.arange(vocabulary)):
        return None
    full = np.empty(vocabulary, np.float32)
    full[ids] = [each.value for each in listed]
    return full


def _empty(count: int, wide: int) -> dict[str, np.ndarray]:
    from vlmprobe.results.table import empty_numbers

    return empty_numbers(count, wide)


def _from_full(numbers: dict[str, np.ndarray], t: int, row: Row, wide: int, logits: bool) -> tuple[Alternative, ...]:
    """Fill every column of row ``t`` from the values of the whole vocabulary."""
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
    rows: Sequence[Row],
    own: np.ndarray,
    known: Sequence[tuple[Alternative, ...]],
    kept: Sequence[tuple[Alternative, ...]],
    meaning: Meaning,
    *,
    sure: bool,
) -> None:
    """Fill columns from the tokens' own values, float64 [T], and those of the most likely tokens at their positions."""
    wide = numbers["top_ids"].shape[1]
    numbers["top_ids"][:] = _padded([[-1 if each.id is None else each.id for each in top] for top in kept], wide, -1)
    numbers["ranks"][:] = [_rank(row) for row in rows]
    bounds = {}
    if meaning.logits:
        bounds["logprobs_at_most"] = np.array([_logit_at_most(row, top) for row, top in zip(rows, known, strict=True)])
    else:
        values = _padded([[each.value for each in top] for top in known], max([wide, *map(len, known)]), np.nan)
        numbers["logprobs"][:] = _logprobs(own)
        numbers["top_logprobs"][:] = np.minimum(values[:, :wide], 0.0)
        least = own if meaning.clamped else np.fmin.reduce(values, axis=1, initial=np.nan)
        bounds["logprobs_at_most"] = np.where(own <= FLOOR, least, np.nan)
        if sure:
            bounds["entropy_at_least"] = entropy_at_least(values)
    given = np.array([np.nan if row.at_most is None else row.at_most for row in rows], np.float64)
    bounds["logprobs_at_most"] = np.where(np.isnan(given), bounds["logprobs_at_most"], given)
    for name, bound in bounds.items():
        if not np.isnan(bound).all():
            with np.errstate(over="ignore"):  # a bound from a sentinel such as the lowest float64 becomes -inf
                numbers[name] = bound.astype(np.float32)


def entropy_at_least(top: np.ndarray) -> np.ndarray:
    """Lower bound on the entropy of next-token distributions of which only the top K log-probabilities are known.

    The known tokens contribute -sum p log p. Each unknown token is at most as likely as the least likely known one, p,
    and as the remaining mass r, so the unknown tokens together contribute at least -r log(min(p, r)).

    Args:
        top: float64 [..., K], log-probabilities of the most likely tokens, nats; NaN where fewer are known.

    Returns:
        float64 [...], nats; NaN where no token is known.
    """
    logprobs = np.minimum(top, 0.0)
    shares = np.exp(logprobs)
    known = -np.nansum(shares * logprobs, axis=-1)
    left = np.maximum(0.0, 1.0 - np.nansum(shares, axis=-1))
    likeliest = np.minimum(np.fmin.reduce(shares, axis=-1, initial=np.nan), left)
    with np.errstate(divide="ignore", invalid="ignore"):
        rest = np.where(likeliest > 0, left * -np.log(likeliest), 0.0)
    return np.where(np.isnan(likeliest), np.nan, known + rest)


def _logit_at_most(row: Row, known: tuple[Alternative, ...]) -> float:
    """Upper bound on the log-probability of a token from its logit and those of the ``known`` tokens."""
    if row.full is not None or row.value is None or row.value <= FLOOR:
        return np.nan
    others = [each.value for each in known if not _same(each, row)]
    return row.value - float(np.logaddexp.reduce(np.array([row.value, *others])))


def _rank(row: Row) -> int:
    """The rank of a token among all tokens, from 0; -1 if unknown."""
    if row.rank is not None:
        return row.rank
    if row.value is None or row.full is not None:
        return -1
    return next((k for k, each in enumerate(row.top) if _same(each, row)), -1)


def _of_logits(rows: Sequence[Row]) -> np.ndarray:
    """float64 [T]: log-probabilities of tokens from logits of the whole vocabulary; NaN where these are not known."""
    return np.array(
        [
            np.nan
            if row.full is None or row.value is None or row.value <= FLOOR
            else row.value - np.logaddexp.reduce(row.full[row.full > FLOOR], dtype=np.float64)
            for row in rows
        ],
        np.float64,
    )


def _logprobs(own: np.ndarray) -> np.ndarray:
    """Log-probabilities [T], clipped to at most 0; sentinels become NaN."""
    return np.where(own > FLOOR, np.minimum(own, 0.0), np.nan)


def _padded(rows: list[list[Any]], wide: int, blank: float) -> np.ndarray:
    """[T, wide]: lists of at most ``wide`` numbers, padded with ``blank``."""
    filled = [row + [blank] * (wide - len(row)) for row in rows]
    return np.array(filled, np.int64 if isinstance(blank, int) else np.float64).reshape(len(rows), wide)


def _same(each: Alternative, row: Row) -> bool:
    if each.id is not None and row.id is not None:
        return each.id == row.id
    return each.text == row.text and each.value == row.value
