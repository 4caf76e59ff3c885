"""Pure tensor functions: statistics of a token under a row of logits, in float32 whatever the model's dtype."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

__all__ = ["RowStats", "mass_of", "numpy_columns", "processed_logprobs", "row_stats"]

# Float32 rows that are reduced together: on a CPU what fits its caches, else what keeps the device busy.
BLOCK_BYTES = {True: 4 * 2**20, False: 128 * 2**20}
SPAN = 128  # neighbouring logits of which the greatest is taken first, to find the greatest of all of them
MANY = 256  # tokens per row above which sorting the row once is faster than comparing it with each of them
NOTHING = -1e4  # exp of it is 0 in float32


@dataclass(frozen=True)
class RowStats:
    """Statistics of N rows of logits, on the device of the logits. See :func:`row_stats`."""

    logprobs: Tensor  # [N] float32, nats
    entropy: Tensor  # [N] float32, nats
    ranks: Tensor  # [N] int64
    logsumexp: Tensor  # [N] float32
    top_ids: Tensor  # [N, K] int64
    top_logprobs: Tensor  # [N, K] float32, nats, best first

    @classmethod
    def join(cls, parts: list[RowStats]) -> RowStats:
        """The rows of several blocks as one block."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    @classmethod
    def empty(cls, count: int, top: int, device: torch.device) -> RowStats:
        """Columns of ``count`` rows to be written by :meth:`put`. Allocated before the large temporaries of a loop:
        small results that stay between them keep an allocator from using their memory again."""
        numbers = partial(torch.empty, count, dtype=torch.float32, device=device)
        ids = partial(torch.empty, dtype=torch.int64, device=device)
        return cls(numbers(), numbers(), ids(count), numbers(), ids(count, top), torch.empty(count, top, device=device))

    def put(self, start: int, part: RowStats) -> None:
        """Write the rows of ``part`` from row ``start`` on."""
        for name in self.__dataclass_fields__:
            values = getattr(part, name)
            getattr(self, name)[start : start + len(values)] = values

    def rows(self, index: Tensor | slice) -> RowStats:
        """A selection of rows."""
        return RowStats(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


@torch.no_grad()
def row_stats(logits: Tensor, ids: Tensor, top: int, of: Tensor | None = None) -> RowStats:
    """Reduce rows of logits to the statistics of the tokens drawn from them.

    Args:
        logits: [N, V], any floating dtype; computed in float32.
        ids: [M] int64, the tokens; an id outside ``0..V-1`` has no probability under its row (some models have
            image ids beyond the head): its logprob is NaN and its rank -1.
        top: K, how many of the most likely tokens to keep (at most V).
        of: [M] int64 on the CPU, ascending: the row that each token is drawn from; if None, M = N and token i is
            drawn from row i.

    Returns:
        :class:`RowStats` of M rows. ``logprobs`` is log-softmax at the token; ``entropy`` is -sum p log p;
        ``ranks`` counts the tokens with a strictly greater logit, so 0 is the most likely.
    """
    vocabulary = logits.shape[-1]
    size = max(1, BLOCK_BYTES[logits.device.type == "cpu"] // (4 * vocabulary))
    if of is None and 0 < len(logits) <= size:
        block = logits.float()
        return _block_stats(block, ids, top, None, (torch.empty_like(block), torch.empty_like(block)))
    of = torch.arange(len(logits)) if of is None else of
    bounds = torch.searchsorted(of, torch.arange(0, len(logits) + size, size)).tolist()
    found = RowStats.empty(len(ids), min(top, vocabulary), logits.device)
    rows = min(size, max(len(logits), len(ids)))
    work = (torch.empty(rows, vocabulary, device=logits.device), torch.empty(rows, vocabulary, device=logits.device))
    for start, first, last in zip(range(0, len(logits), size), bounds, bounds[1:], strict=False):
        block = logits[start : start + size].float()
        found.put(first, _block_stats(block, ids[first:last], top, of[first:last] - start, work))
    return found


def _block_stats(logits: Tensor, ids: Tensor, top: int, of: Tensor | None, work: tuple[Tensor, Tensor]) -> RowStats:
    """The same for float32 rows [N, V] that are held at once; ``work``, each [N or more, V], is overwritten.

    A row is read and written from memory as seldom as possible: softmax is one pass of its own, and everything else is
    written into ``work``.
    """
    vocabulary = logits.shape[-1]
    inside = (ids >= 0) & (ids < vocabulary)
    top_logits, top_ids = _greatest(logits, max(1, min(top, vocabulary)))
    greatest = top_logits[:, :1]
    weights = torch.softmax(logits, dim=-1, out=work[0][: len(logits)])
    # This far below the maximum a probability is 0 in float32; 0 times a finite number is 0, but 0 times -inf is NaN.
    shifted = torch.sub(logits, greatest, out=work[1][: len(logits)]).clamp_(min=NOTHING)
    # Softmax sums less exactly than sum does: its weights are right up to a factor, by which they do not add up to 1.
    # The greatest of them is exp(0) over softmax's own sum.
    factor = weights.sum(dim=-1)
    total = factor.log() - weights.gather(-1, top_ids[:, :1]).squeeze(-1).log()
    entropy = total - torch.linalg.vecdot(weights, shifted) / factor
    logsumexp = greatest.squeeze(-1) + total
    top_logits, top_ids = top_logits[:, :top], top_ids[:, :top]
    top_logprobs = top_logits - logsumexp.unsqueeze(-1)
    known = ids.clamp(0, vocabulary - 1)
    if of is None:
        chosen = logits.gather(-1, known.unsqueeze(-1)).squeeze(-1)
        ranks = _count_above(logits, chosen, work[0])
    else:
        rows = of.to(logits.device)
        chosen = logits[rows, known]
        ranks = _ranks(logits, chosen, of, work[0])
        entropy, logsumexp, top_ids, top_logprobs = (each[rows] for each in (entropy, logsumexp, top_ids, top_logprobs))
    logprobs = torch.where(inside, chosen - logsumexp, torch.nan)
    return RowStats(logprobs, entropy, torch.where(inside, ranks, -1), logsumexp, top_ids, top_logprobs)


def _greatest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``topk(count)`` of rows [N, V], several times as fast.

    One pass finds the greatest logit of each span of neighbours. The greatest of all are in the ``count`` spans with
    the greatest such maximum, or in the rest beyond the last span.
    """
    spans = logits.shape[-1] // SPAN
    if spans <= 2 * count:
        values, ids = logits.topk(count, dim=-1)
        return values, ids
    inside = logits[:, : spans * SPAN].unflatten(-1, (spans, SPAN))
    best = inside.amax(dim=-1).topk(count, dim=-1).indices  # [N, count]
    places = (best.unsqueeze(-1) * SPAN + torch.arange(SPAN, device=logits.device)).flatten(1)
    rest = torch.arange(spans * SPAN, logits.shape[-1], device=logits.device).expand(len(logits), -1)
    places = torch.cat([places, rest], dim=-1)
    values, found = logits.gather(-1, places).topk(count, dim=-1)
    return values, places.gather(-1, found)


def _ranks(logits: Tensor, chosen: Tensor, of: Tensor, work: Tensor) -> Tensor:
    """How many logits of its row exceed each of the ``chosen`` [M]; ``work`` [N or more, V] is overwritten."""
    if len(of) == len(logits) and bool((of == torch.arange(len(of))).all()):
        return _count_above(logits, chosen, work[: len(of)])
    parts = []
    rows, counts = torch.unique_consecutive(of, return_counts=True)
    for row, mine in zip(rows.tolist(), chosen.split(counts.tolist()), strict=True):
        if len(mine) > MANY:
            ordered = logits[row].sort().values
            parts.append(logits.shape[-1] - torch.searchsorted(ordered, mine, right=True))
        else:
            parts += [_count_above(logits[row], some, work[: len(some)]) for some in mine.split(len(work))]
    return torch.cat(parts) if parts else chosen.long()


def _count_above(logits: Tensor, chosen: Tensor, work: Tensor) -> Tensor:
    """How many logits [V] or [M, V] exceed each of the ``chosen`` [M]; ``work`` [M, V] is overwritten.

    Counted in float32, which is exact up to 2^24 and several times as fast as a sum of booleans.
    """
    return torch.gt(logits, chosen.unsqueeze(-1), out=work).sum(dim=-1).long()


@torch.no_grad()
def processed_logprobs(scores: Tensor, ids: Tensor) -> Tensor:
    """Log-probability [N] of each token under processed scores [N, V] (after penalties, temperature, filters), nats."""
    return torch.log_softmax(scores.float(), dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def mass_of(logits: Tensor, allowed: Tensor) -> Tensor:
    """Probability [N] of all that is allowed (bool [N, V]) under raw logits [N, V]."""
    rows = logits.float()
    inside = rows.masked_fill(~allowed.to(rows.device), float("-inf")).logsumexp(dim=-1)
    return (inside - rows.logsumexp(dim=-1)).exp()


def numpy_columns(stats: RowStats) -> dict[str, np.ndarray]:
    """The numeric columns of a table from statistics on the device."""
    return {name: getattr(stats, name).cpu().numpy() for name in stats.__dataclass_fields__}
