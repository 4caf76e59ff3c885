"""The picture of a comparison. Like those of :mod:`vlmprobe.analysis.plots`: on any style, not by colour alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.analysis.plots import COLOURS, MARKERS, axes
from vlmprobe.errors import ResultError

if TYPE_CHECKING:
    from vlmprobe.analysis.comparison import Comparison

__all__ = ["draw_comparison"]

NARROWEST = 1e-6  # nats: half the height of the plot at least, so that float32 noise does not fill the picture


def draw_comparison(comparison: Comparison, ax: Any = None, *, tolerance: float | None = None) -> Any:
    """Difference of every compared token against its log-probability under A.

    Args:
        comparison: of two probes.
        ax: axes to draw on.
        tolerance: nats; drawn as a band where given.
    """
    if not len(comparison.differences):
        raise ResultError("No token has a number from both probes, so there is nothing to draw.")
    ax = axes(ax, size=(6.4, 4.0))
    ink = ax.xaxis.label.get_color()
    own = np.concatenate([each.rows.a for each in comparison.requests]).astype(np.float64)
    gaps = np.concatenate([each.difference for each in comparison.requests])
    other_top = np.concatenate([each.rows.same_top for each in comparison.requests]) == 0
    if tolerance is not None:
        ax.axhspan(-tolerance, tolerance, color=ink, alpha=0.08, linewidth=0, label=f"tolerance {tolerance:g}")
    ax.axhline(0, color=ink, linewidth=0.8)
    groups = ((~other_top, "same likeliest token"), (other_top, "another likeliest token"))
    for place, (chosen, name) in enumerate(groups):
        shown = chosen & ~np.isnan(gaps)
        if shown.any():
            label = f"{name} ({int(shown.sum()):,})"
            ax.scatter(
                own[shown], gaps[shown], s=18 + 10 * place, marker=MARKERS[place], color=COLOURS[place], alpha=0.75,
                linewidth=0, label=label,
            )  # fmt: skip
    largest = float(np.nanmax(np.abs(gaps)))
    # A tolerance that is far from all differences would press them onto one line.
    half = max(largest, min(tolerance or 0.0, 3 * largest), NARROWEST) * 1.08
    ax.set(
        xlabel="log-probability under A (nats)", ylabel="log-probability under B less that under A", ylim=(-half, half)
    )
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    return ax
