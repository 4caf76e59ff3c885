"""Aligns two tables of what should be the same tokens, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from vlmprobe.results.table import TokenTable

__all__ = ["Aligned", "align", "first_difference", "joined_rows", "same_token"]


@dataclass(frozen=True, eq=False)
class Aligned:
    """The T tokens of one table, with the numbers of two models."""

    tokens: list[str]  # [T]
    a: np.ndarray  # float32 [T], nats
    b: np.ndarray  # float32 [T], nats; NaN where the second has no number for that token after the same prefix
    top_a: list[str | None]  # [T], the likeliest token; None where unknown
    top_b: list[str | None]  # [T]
    same_top: np.ndarray  # float32 [T]: 1 where the likeliest token is the same, 0 where not, NaN where unknown


def same_token(a: TokenTable, row: int, b: TokenTable, other: int) -> bool:
    """Whether two rows are of one token: by ids where both have them, else by text."""
    if a.ids is None or b.ids is None:
        return a.tokens[row] == b.tokens[other]
    return bool(a.ids[row] == b.ids[other])


def first_difference(a: TokenTable, b: TokenTable) -> int | None:
    """The first row at which two answers differ, one past the shorter if it is a prefix of the other; None if equal.

    A server that sends no ids sends no end token either: one on the other side is not a difference.
    """
    short, long = sorted((a, b), key=len)
    for row in range(len(short)):
        if not same_token(a, row, b, row):
            return row
    rest = long.kinds[len(short) :]
    unsaid = short.ids is None and all(kind == "special" for kind in rest)
    return None if unsaid or not rest else len(short)


def align(a: TokenTable, b: TokenTable) -> Aligned:
    """The rows of ``a`` beside those of ``b``, as far as both follow the same prefix.

    At the row where the answers diverge, both distributions still follow the same prefix: there, the number of ``b``
    for the token of ``a`` is taken from its alternatives. Later rows cannot be compared.
    """
    apart = first_difference(a, b)
    shared = min(len(a), len(b)) if apart is None else apart
    numbers = np.full(len(a), np.nan, np.float32)
    numbers[:shared] = b.logprobs[:shared]
    if apart is not None and apart < min(len(a), len(b)):
        numbers[apart] = _alternative(b, apart, a)
    same_top = np.full(len(a), np.nan, np.float32)
    top_b: list[str | None] = [None] * len(a)
    for row in range(min(len(a), len(b), shared + 1)):
        top_b[row] = _top(b, row)
        if _top(a, row) is not None and top_b[row] is not None:
            same_top[row] = _same_top(a, b, row)
    return Aligned(list(a.tokens), a.logprobs, numbers, [_top(a, row) for row in range(len(a))], top_b, same_top)


def joined_rows(parts: Sequence[Aligned]) -> Aligned:
    """The rows of several alignments, concatenated."""
    return Aligned(
        list(chain.from_iterable(each.tokens for each in parts)),
        np.concatenate([each.a for each in parts]),
        np.concatenate([each.b for each in parts]),
        list(chain.from_iterable(each.top_a for each in parts)),
        list(chain.from_iterable(each.top_b for each in parts)),
        np.concatenate([each.same_top for each in parts]),
    )


def _top(table: TokenTable, row: int) -> str | None:
    known = table.top_logprobs.shape[1] and not np.isnan(table.top_logprobs[row, 0])
    return table.top_tokens[row][0] if known else None


def _same_top(a: TokenTable, b: TokenTable, row: int) -> bool:
    one, other = a.top_ids[row, 0], b.top_ids[row, 0]
    if one >= 0 and other >= 0:
        return bool(one == other)
    return a.top_tokens[row][0] == b.top_tokens[row][0]


def _alternative(table: TokenTable, row: int, wanted: TokenTable) -> float:
    """Log-probability of the token of ``wanted`` among the alternatives of ``table``; NaN if it is not among them."""
    for k in range(table.top_logprobs.shape[1]):
        if wanted.ids is None or table.top_ids[row, k] < 0:
            same = table.top_tokens[row][k] == wanted.tokens[row] != ""
        else:
            same = table.top_ids[row, k] == wanted.ids[row]
        if same:
            return float(table.top_logprobs[row, k])
    return float("nan")
