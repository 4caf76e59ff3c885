"""Plot of the answers to several questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmprobe.display import view
from vlmprobe.display.plots.style import axes, bars

__all__ = ["draw_answers"]


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
