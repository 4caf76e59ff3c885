"""Pure tensor functions: statistics of a token under a row of logits, in float32 whatever the model's dtype."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["RowStats", "numpy_columns", "processed_logprobs", "row_stats"]

# Float32 rows that are reduced together: on a CPU what fits its caches, else what keeps the device busy.
BLOCK_BYTES = {True: 4 * 2**20, False: 128 * 2**20}
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
    of = torch.arange(len(logits)) if of is None else of
    size = max(1, BLOCK_BYTES[logits.device.type == "cpu"] // (4 * logits.shape[-1]))
    bounds = torch.searchsorted(of, torch.arange(0, len(logits) + size, size)).tolist()
    return RowStats.join(
        [
            _block_stats(logits[start : start + size].float(), ids[first:last], top, of[first:last] - start, size)
            for start, first, last in zip(range(0, len(logits), size), bounds, bounds[1:], strict=False)
        ]
    )


def _block_stats(logits: Tensor, ids: Tensor, top: int, of: Tensor, size: int) -> RowStats:
    """The same for float32 rows [N, V] that are held at once; temporaries have at most ``size`` rows."""
    vocabulary = logits.shape[-1]
    inside = (ids >= 0) & (ids < vocabulary)
    greatest = logits.amax(dim=-1, keepdim=True)
    # This far below the maximum a probability is 0 in float32; 0 times a finite number is 0, but 0 times -inf is NaN.
    shifted = (logits - greatest).clamp_(min=NOTHING)
    weights = shifted.exp()
    total = weights.sum(dim=-1)
    entropy = total.log() - torch.linalg.vecdot(weights, shifted) / total
    logsumexp = greatest.squeeze(-1) + total.log()
    top_logits, top_ids = logits.topk(min(top, vocabulary), dim=-1)
    top_logprobs = top_logits - logsumexp.unsqueeze(-1)
    rows = of.to(logits.device)
    chosen = logits[rows, ids.clamp(0, vocabulary - 1)]
    ranks = _ranks(logits, chosen, of, size)
    logprobs = torch.where(inside, chosen - logsumexp[rows], torch.nan)
    return RowStats(
        logprobs,
        entropy[rows],
        torch.where(inside, ranks, -1),
        logsumexp[rows],
        top_ids[rows],
        top_logprobs[rows],
    )


def _ranks(logits: Tensor, chosen: Tensor, of: Tensor, size: int) -> Tensor:
    """How many logits of its row exceed each of the ``chosen`` [M]."""
    if len(of) == len(logits) and bool((of == torch.arange(len(of))).all()):
        return (logits > chosen.unsqueeze(-1)).sum(dim=-1)
    parts = []
    rows, counts = torch.unique_consecutive(of, return_counts=True)
    for row, mine in zip(rows.tolist(), chosen.split(counts.tolist()), strict=True):
        if len(mine) > MANY:
            ordered = logits[row].sort().values
            parts.append(logits.shape[-1] - torch.searchsorted(ordered, mine, right=True))
        else:
            parts += [(logits[row] > some.unsqueeze(-1)).sum(dim=-1) for some in mine.split(size)]
    return torch.cat(parts) if parts else chosen.long()


@torch.no_grad()
def processed_logprobs(scores: Tensor, ids: Tensor) -> Tensor:
    """Log-probability [N] of each token under processed scores [N, V] (after penalties, temperature, filters), nats."""
    return torch.log_softmax(scores.float(), dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def numpy_columns(stats: RowStats) -> dict[str, np.ndarray]:
    """The numeric columns of a table from statistics on the device."""
    return {name: getattr(stats, name).cpu().numpy() for name in stats.__dataclass_fields__}
