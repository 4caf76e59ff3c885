"""Plot of sampled answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmprobe.display.plots.style import axes, bars, ink

__all__ = ["draw_samples"]


def draw_samples(
    answers: Sequence[str],
    counts: np.ndarray,
    logprobs: np.ndarray,
    ax: Any = None,
    *,
    most: int = 12,
    title: str = "",
) -> Any:
    """Frequency of each meaning as bars, beside the probability of its answers. Returns the axes.

    Args:
        answers: [G] a representative text of each meaning.
        counts: int [G], how often it was drawn.
        logprobs: [G], nats, summed over the distinct answers of the meaning.
        ax: axes to draw on.
        most: how many meanings to draw, the most common first; the others share one hatched bar.
        title: above the axes.
    """
    order = np.lexsort((-logprobs, -counts))
    drawn, left = order[:most], order[most:]
    total = int(counts.sum())
    held, sums = counts[drawn].tolist(), logprobs[drawn].tolist()
    names = [answers[place].strip() or "(nothing)" for place in drawn.tolist()]
    if len(left):
        held, sums = [*held, int(counts[left].sum())], [*sums, float(np.logaddexp.reduce(logprobs[left]))]
        names.append(f"{len(left):,} more")
    ax = axes(ax, size=(5.4, 0.36 * len(names) + 1.2))
    label = "share of the samples\n◆ probability of these answers"
    shares, notes = np.array(held) / total, [f"{each} of {total}" for each in held]
    found = bars(ax, names, shares, notes, label=label, title=title, marks=np.exp(np.array(sums)))
    if len(left):
        found[-1].set(fill=False, hatch="//", edgecolor=ink(ax))
    return ax
