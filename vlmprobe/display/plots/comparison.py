"""Plot of a comparison of two probes."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmprobe.display.plots.style import COLOURS, MARKERS, axes, ink, legend
from vlmprobe.errors import ResultError

__all__ = ["draw_comparison"]

NARROWEST = 1e-6  # nats: least half height of the plot, so that float32 noise does not fill it


def draw_comparison(
    logprobs: np.ndarray,
    differences: np.ndarray,
    same_top: np.ndarray,
    ax: Any = None,
    *,
    tolerance: float | None = None,
) -> Any:
    """Difference of every compared token against its log-probability under A. Returns the axes.

    Args:
        logprobs: float [T], nats, under A.
        differences: float [T], nats, log-probability under B minus that under A; NaN where not compared.
        same_top: float [T], 1 where the likeliest token is the same, 0 where not, NaN where unknown.
        ax: axes to draw on.
        tolerance: nats; drawn as a band if given.

    Raises:
        ResultError: if no token is compared.
    """
    if np.isnan(differences).all():
        raise ResultError("No token has a number from both probes, so there is nothing to draw.")
    ax = axes(ax, size=(6.4, 4.0))
    logprobs, other_top = logprobs.astype(np.float64), same_top == 0
    if tolerance is not None:
        ax.axhspan(-tolerance, tolerance, color=ink(ax), alpha=0.08, linewidth=0, label=f"tolerance {tolerance:g}")
    ax.axhline(0, color=ink(ax), linewidth=0.8)
    groups = ((~other_top, "same likeliest token"), (other_top, "another likeliest token"))
    for place, (chosen, name) in enumerate(groups):
        shown = chosen & ~np.isnan(differences)
        if shown.any():
            label = f"{name} ({int(shown.sum()):,})"
            ax.scatter(
                logprobs[shown], differences[shown], s=18 + 10 * place, marker=MARKERS[place], color=COLOURS[place],
                alpha=0.75, linewidth=0, label=label,
            )  # fmt: skip
    largest = float(np.nanmax(np.abs(differences)))
    # A tolerance far above all differences would flatten them onto one line.
    half = max(largest, min(tolerance or 0.0, 3 * largest), NARROWEST) * 1.08
    ax.set(
        xlabel="log-probability under A (nats)", ylabel="log-probability under B less that under A", ylim=(-half, half)
    )
    legend(ax, columns=3)
    return ax
