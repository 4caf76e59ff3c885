"""Plot of a paired comparison."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmprobe.display.plots.style import COLOURS, axes, inches, ink, paper, short, verbatim
from vlmprobe.display.shown import ShownPaired

__all__ = ["draw_paired"]

BETTER = {"accuracy": "higher is better", "ECE": "lower is better", "Brier": "lower is better"}


def draw_paired(found: ShownPaired, ax: Any = None) -> Any:
    """The difference of each metric, B minus A, with its interval; an interval beside 0 is filled. Returns the axes.

    Args:
        found: metrics of A and of B.
        ax: axes to draw on.
    """
    ax = axes(ax, size=(7.0, 0.5 * len(found.metrics) + 1.1))
    ax.axvline(0, color=ink(ax), linewidth=0.8)
    for place, each in enumerate(found.metrics.values()):
        change = each.difference
        beside = change.low > 0 or change.high < 0
        ax.plot([change.low, change.high], [place, place], color=COLOURS[0], linewidth=2, solid_capstyle="butt")
        face = COLOURS[0] if beside else paper(ax)
        ax.plot(change.value, place, "o", color=COLOURS[0], markersize=7, markerfacecolor=face, zorder=3)
        ax.annotate(
            f"{change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]".replace("-", "−"),
            (1, place),
            (5, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize="small",
        )
    names = [f"{name}\n({BETTER[name]})" if name in BETTER else name for name in found.metrics]
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    largest = max(max(abs(each.difference.low), abs(each.difference.high)) for each in found.metrics.values())
    half = 1.15 * max(float(np.nan_to_num(largest)), 0.01)
    ax.set(xlim=(-half, half), ylim=(len(names) - 0.5, -0.5))
    ax.locator_params(axis="x", nbins=4 if inches(ax)[0] > 5 else 2)  # labels of small numbers are wide
    letters = max(8, int(inches(ax)[0] * 2.5))
    a, b = (short(name, letters) for name in found.names)
    level = next(iter(found.metrics.values())).difference.level
    ax.set_xlabel(f"{b} minus {a}, {100 * level:g}% interval, {found.n:,} pairs", **verbatim())
    return ax
