"""Pure tensor maths over logits: what one row of logits says about one token, in float32 whatever the model's dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RowStats", "processed_logprobs", "row_stats"]


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
    """Reduce rows of logits to what is reported of the tokens drawn from them.

    Args:
        logits: [N, V], any floating dtype; computed in float32.
        ids: [M] int64, the tokens; an id outside ``0..V-1`` has no probability under its row (some models have
            image ids beyond the head): its logprob is NaN and its rank -1.
        top: K, how many of the likeliest tokens to keep (at most V are kept).
        of: [M] int64, the row that each token is drawn from; where None, M = N and token i is of row i.

    Returns:
        :class:`RowStats` of M rows. ``logprobs`` is log-softmax at the token; ``entropy`` is -sum p log p;
        ``ranks`` counts the tokens with a strictly greater logit, so 0 is the most likely.
    """
    logits = logits.float()
    vocabulary = logits.shape[-1]
    inside = (ids >= 0) & (ids < vocabulary)
    within = ids.clamp(0, vocabulary - 1)
    logsumexp = torch.logsumexp(logits, dim=-1)
    top_logits, top_ids = logits.topk(min(top, vocabulary), dim=-1)
    top_logprobs = top_logits - logsumexp.unsqueeze(-1)
    # entr is 0 at p = 0, where -p * log(p) would be NaN; softmax shifts by the maximum, so nothing overflows.
    entropy = torch.special.entr(torch.softmax(logits, dim=-1)).sum(dim=-1)
    if of is None:
        chosen = logits.gather(-1, within.unsqueeze(-1)).squeeze(-1)
        ranks = (logits > chosen.unsqueeze(-1)).sum(dim=-1)
    else:
        of = of.to(logits.device)
        chosen = logits[of, within]
        # One row at a time: many tokens may be drawn from one row, and [M, V] would not fit.
        ranks = torch.stack([(logits[row] > value).sum() for row, value in zip(of, chosen, strict=True)])
        logsumexp, entropy, top_ids, top_logprobs = (each[of] for each in (logsumexp, entropy, top_ids, top_logprobs))
    logprobs = torch.where(inside, chosen - logsumexp, torch.nan)
    return RowStats(logprobs, entropy, torch.where(inside, ranks, -1), logsumexp, top_ids, top_logprobs)


@torch.no_grad()
def processed_logprobs(scores: Tensor, ids: Tensor) -> Tensor:
    """Log-probability [N] of each token under processed scores [N, V] (after penalties, temperature, filters), nats."""
    return torch.log_softmax(scores.float(), dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
