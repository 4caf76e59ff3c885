"""Plots of a rating, and of the answers to several questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmprobe.display import view
from vlmprobe.display.plots.style import axes, bars

__all__ = ["draw_answers", "draw_rating"]


def draw_answers(names: Sequence[str], shares: np.ndarray, ax: Any = None) -> Any:
    """Bars of the probability of the likeliest answer to each question. Returns the axes.

    Args:
        names: [Q] of the questions, with their answers.
        shares: [Q] from 0 to 1.
        ax: axes to draw on.
    """
    ax = axes(ax, size=(5.4, 0.36 * len(names) + 1.0))
    notes = [view.percent(share) for share in shares.tolist()]
    bars(ax, [view.label(name) for name in names], shares, notes, label="probability of the likeliest answer")
    return ax


def draw_rating(
    levels: Sequence[str], shares: np.ndarray, said: str, ax: Any = None, *, title: str = "", mass: float = 1.0
) -> Any:
    """Bars of the probability of each level, in the order of the scale, the first on top. Returns the axes.

    Args:
        levels: [N].
        shares: [N] from 0 to 1.
        said: the answer as text.
        ax: axes to draw on.
        title: above the axes.
        mass: what the levels hold of what the model would say.
    """
    ax = axes(ax, size=(5.4, 0.36 * len(levels) + 1.2))
    label = f"probability among the levels, which hold {view.percent(mass)} of what the model would say"
    notes = [view.percent(share) for share in shares.tolist()]
    heading = f"{title}  {view.plain(said)}".strip()
    bars(ax, [view.label(name) for name in levels], shares, notes, label=label, title=heading)
    return ax
