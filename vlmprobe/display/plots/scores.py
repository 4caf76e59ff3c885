"""Plot of scored candidates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmprobe.display import view
from vlmprobe.display.plots.style import axes, bars, ink
from vlmprobe.display.shown import ShownScores
from vlmprobe.errors import ResultError

__all__ = ["draw_adjusted", "draw_scores"]


def draw_scores(scores: ShownScores, ax: Any = None, *, most: int = 12) -> Any:
    """Probabilities among the candidates as bars, the likeliest on top. Returns the axes.

    Args:
        scores: of C candidates.
        ax: axes to draw on.
        most: how many candidates to draw, the likeliest first; the others share one hatched bar.

    Raises:
        ResultError: without a candidate.
    """
    order = view.order(scores)
    if not order:
        raise ResultError("There is no candidate to draw.")
    drawn, left = order[:most], order[most:]
    lengths = [float(scores.probabilities[place]) for place in drawn]
    names = [view.label(scores.candidates[place]) for place in drawn]
    notes = [_note(scores, place) for place in drawn]
    if left:
        rest = float(np.nansum(scores.probabilities[left]))
        lengths, names, notes = [*lengths, rest], [*names, f"{len(left):,} more"], [*notes, view.percent(rest)]
    ax = axes(ax, size=(5.4, 0.36 * len(names) + 1.2))
    label = f"probability among the candidates, which hold {view.held(scores)} of what the model would say"
    title = str(scores.meta.get("question") or "")
    found = bars(ax, names, np.array(lengths), notes, label=label, title=title)
    if left:
        found[-1].set(fill=False, hatch="//", edgecolor=ink(ax))
    return ax


def draw_adjusted(
    names: Sequence[str],
    probabilities: np.ndarray,
    before: np.ndarray,
    ax: Any = None,
    *,
    label: str = "probability without the prior",
    marks: str = "before",
) -> Any:
    """Probabilities as bars, the likeliest on top, with a mark on each. Returns the axes.

    Args:
        names: [G] the candidates.
        probabilities: [G].
        before: [G] where the marks are.
        ax: axes to draw on.
        label: what the bars are.
        marks: what the marks are.
    """
    order = np.argsort(-probabilities, kind="stable")
    ax = axes(ax, size=(5.4, 0.36 * len(names) + 1.2))
    notes = [view.percent(each) for each in probabilities[order]]
    shown = [view.label(names[place]) for place in order]
    bars(ax, shown, probabilities[order], notes, label=f"{label}\n◆ {marks}", marks=before[order])
    return ax


def _note(scores: ShownScores, place: int) -> str:
    known = not np.isnan(scores.probability_bounds[place, 1])
    return view.share(scores, place) if known else "no log-probability"
