"""Plot of the metrics of yes/no questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vlmprobe.display.plots.style import axes, bars
from vlmprobe.display.view import DASH

__all__ = ["draw_poll"]


def draw_poll(figures: Mapping[str, float], references: Mapping[str, float], ax: Any = None, *, label: str = "") -> Any:
    """Metrics from 0 to 1 as bars, some with a reference mark. Returns the axes.

    Args:
        figures: by name; NaN is written as a dash.
        references: values of the marks, by the same names; not drawn where the metric is NaN.
        ax: axes to draw on.
        label: below the axes.
    """
    values = np.array(list(figures.values()), dtype=np.float64)
    marks = np.array([references.get(name, np.nan) for name in figures], dtype=np.float64)
    marks[np.isnan(values)] = np.nan
    ax = axes(ax, size=(4.6, 0.34 * len(values) + 1.0))
    notes = [DASH if np.isnan(each) else f"{each:.3f}" for each in values]
    bars(ax, [name.replace("_", " ") for name in figures], values, notes, label=label, marks=marks)
    return ax
