"""Plot of numbers logged during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlmprobe.display.plots.style import COLOURS, LINES, MARKERS, axes, legend

__all__ = ["draw_history"]


def draw_history(steps: np.ndarray, values: Mapping[str, np.ndarray], ax: Any = None) -> Any:
    """Lines of several numbers over training steps. Returns the axes.

    Args:
        steps: int [S].
        values: [S] by name; NaN is left out.
        ax: axes to draw on.
    """
    ax = axes(ax, size=(5.2, 3.4))
    for place, (name, column) in enumerate(values.items()):
        turn = place % len(COLOURS)
        known = ~np.isnan(column)
        line = MARKERS[turn] + LINES[(place // len(COLOURS) + turn) % len(LINES)]
        ax.plot(np.asarray(steps)[known], column[known], line, color=COLOURS[turn], markersize=5, label=name)
    ax.set(xlabel="step of training")
    ax.margins(y=0.08)
    legend(ax, columns=3)
    return ax
