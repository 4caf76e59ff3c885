"""Values along a sequence, each above its name: side by side, or wrapped into rows below each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.cells import cell_len

from vlmprobe.display.plots.style import (
    axes,
    columns,
    drawable,
    inches,
    ink,
    letter_size,
    matplotlib,
    shown,
    verbatim,
)

__all__ = ["Strip"]

EACH, BESIDE = 0.36, 1.4  # inches: width of one value, and of what stands beside a row
TALL, ROW = 3.2, 1.1  # inches: height of a single row, and of one of several without its names
WIDEST = 28  # values in one of several rows
ANGLE = np.radians(55)  # of the names
LONGEST = 16  # letters of a name in several rows
LETTER = 0.62  # width of a letter, in sizes of the font


class Strip:
    """Places for T values on one pair of axes.

    A single row is an ordinary plot with its names as tick labels. Several rows share one scale: value v of place t
    is drawn at ``(x[t], base[t] + v)``.
    """

    def __init__(self, names: Sequence[str], low: float, high: float, ax: Any = None, *, most: int) -> None:
        """Make the axes, or take those given, and write the names.

        Args:
            names: [T], at least one.
            low: least value to be drawn, at most 0.
            high: largest value to be drawn, above 0.
            ax: axes to draw on.
            most: how many fit in one row. More are wrapped into rows of about equal length.
        """
        count = len(names)
        self.rows = 1 if count <= most else -(-count // min(most, WIDEST))
        each = -(-count // self.rows)
        longest = min(LONGEST, max(cell_len(shown(name)) for name in names))
        below = (longest * LETTER * 8.3 * np.sin(ANGLE) + 14) / 72  # inches that the names of a row take
        height = TALL if self.rows == 1 else (ROW + below) * self.rows + 0.5
        self.ax = axes(ax, size=(max(4.0, EACH * each + BESIDE), height))
        row, self.x = np.divmod(np.arange(count), each)
        share = below / (ROW + below)  # of the height of a row
        self.base = -(high - low) / (1 - share) * row  # float64 [T]
        self.ax.set_xlim(-0.7, each - 0.3)
        if self.rows == 1:
            columns(self.ax, names)
        else:
            self._wrap(names, low, high, share)

    def zero(self) -> None:
        """Draw the line of zero, of each row."""
        for base in np.unique(self.base)[::-1].tolist():
            self.ax.axhline(base, color=ink(self.ax), linewidth=0.8)

    def _wrap(self, names: Sequence[str], low: float, high: float, share: float) -> None:
        ax, size = self.ax, letter_size(self.ax, int(self.x.max()) + 1)
        room = 72 * inches(ax)[1] * share / self.rows - 6  # points
        letters = max(3, min(LONGEST, int(room / (LETTER * size * np.sin(ANGLE)))))
        for x, base, name in zip(self.x.tolist(), self.base.tolist(), names, strict=True):
            written = drawable(shown(name, letters))
            ax.annotate(
                written,
                (x, base + low),
                (3, -4),
                textcoords="offset points",
                rotation=np.degrees(ANGLE),
                rotation_mode="anchor",
                ha="right",
                va="top",
                fontsize=size,
                **verbatim(written),
            )
        ticks = matplotlib("ticker").MaxNLocator(3).tick_values(low, high)
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        bases = np.unique(self.base)[::-1]
        ax.set_yticks((bases[:, None] + ticks).ravel(), [f"{tick:g}" for tick in ticks] * len(bases), fontsize="small")
        ax.set_xticks([])
        ax.spines[:].set_visible(False)
        ax.set_ylim(bases[-1] + low - (high - low) * share / (1 - share), high)
        self.zero()
