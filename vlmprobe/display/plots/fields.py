"""Plots of the fields of a JSON answer: how sure the model was of each, and what else one might have been."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmprobe.display import view
from vlmprobe.display.plots.style import axes, bars
from vlmprobe.errors import ResultError

__all__ = ["draw_alternatives", "draw_fields"]


def draw_fields(
    names: Sequence[str], at_least: np.ndarray, at_most: np.ndarray, ax: Any = None, *, more: int = 0
) -> Any:
    """Probability of each field as a bar, the first on top. Returns the axes.

    Args:
        names: [F] path and value.
        at_least: float64 [F], the bar; NaN where unknown.
        at_most: float64 [F], a mark, where it is more.
        ax: axes to draw on.
        more: how many fields are not drawn.

    Raises:
        ResultError: if there is no field.
    """
    if not len(names):
        raise ResultError("There is no field to draw.")
    ax = axes(ax, size=(5.8, 0.36 * len(names) + 1.2))
    upper = np.where(at_most > np.nan_to_num(at_least) + 1e-6, at_most, np.nan)
    label = "probability of the value"
    if not np.isnan(upper).all():
        label += "\nat least; the mark: at most, where a token holds structure too"
    label += f"\n{view.counted(more, 'field')} more not drawn" if more else ""
    notes = [view.percent(float(each)) for each in at_least]
    bars(ax, [view.label(name) for name in names], at_least, notes, label=label, marks=upper)
    return ax


def draw_alternatives(
    path: str, names: Sequence[str], probability: np.ndarray, rest: float, unexplored: float, ax: Any = None
) -> Any:
    """Probability of each value of a field as a bar, and of all else below them. Returns the axes.

    Args:
        path: of the field.
        names: [K], the values.
        probability: float64 [K].
        rest: of all else.
        unexplored: the part of it that might be any value.
        ax: axes to draw on.
    """
    shares = np.append(probability, rest)
    ax = axes(ax, size=(5.8, 0.36 * len(shares) + 1.2))
    label = "probability of the whole value"
    label += f"\nof the rest, {view.percent(unexplored)} is unexplored" if unexplored > 5e-5 else ""
    notes = [view.percent(float(each)) for each in shares]
    bars(ax, [*(view.label(name) for name in names), "all else"], shares, notes, label=label, title=path)
    return ax
