"""Plots of confidence: each draws on matplotlib axes (new ones unless given) and returns them.

A single result or metric has ``plot()``; the functions here also draw several side by side. They use the style of
:mod:`vlmprobe.display.plots.style`, whose colours, lines and markers are also available here, for custom plots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmprobe.analysis.calibration import Reliability, RiskCoverage
from vlmprobe.analysis.gating import Threshold
from vlmprobe.analysis.uncertainty import Source, table_of
from vlmprobe.display.plots.calibration import draw_groups, draw_reliability, draw_risk_coverage
from vlmprobe.display.plots.style import COLOURS, LINES, MARKERS, axes
from vlmprobe.display.plots.tokens import MOST, draw_tokens

__all__ = ["COLOURS", "LINES", "MARKERS", "axes", "reliability_diagram", "risk_coverage", "scores", "tokens"]


def reliability_diagram(reliability: Reliability | Mapping[str, Reliability], ax: Any = None) -> Any:
    """Accuracy against confidence, bin by bin; the diagonal is perfect calibration.

    The area of a point grows with the number of its answers; its bar is the 95% interval of the bin's accuracy for that
    number (Wilson 1927).

    Args:
        reliability: one, or several by name (before and after recalibration).
        ax: axes to draw on.

    Returns:
        The axes.
    """
    return draw_reliability(reliability if isinstance(reliability, Mapping) else {"": reliability}, ax)


def risk_coverage(
    curve: RiskCoverage | Mapping[str, RiskCoverage], threshold: Threshold | None = None, ax: Any = None
) -> Any:
    """Share of wrong answers among those kept, against the share kept.

    Args:
        curve: one, or several by name (different confidences).
        threshold: to be marked.
        ax: axes to draw on.

    Returns:
        The axes.
    """
    return draw_risk_coverage(curve if isinstance(curve, Mapping) else {"": curve}, threshold, ax)


def tokens(source: Source, ax: Any = None, *, most: int = MOST) -> Any:
    """Surprisal of each token in bits as bars, with the entropy of its distribution as points.

    A bar above its point is a token that was less likely than the model expected.

    Args:
        source: table or result.
        ax: axes to draw on.
        most: how many tokens fit in one row; more are wrapped into rows of about equal length. The ``plot()`` of a
            table or result draws them as a curve instead, its most surprising tokens labelled.

    Returns:
        The axes. In a plot of several rows, row r is drawn lower by r times a constant.

    Raises:
        ResultError: if no token has a log-probability.
    """
    return draw_tokens(table_of(source), ax, most=most)


def scores(groups: Mapping[str, Sequence[float] | np.ndarray], ax: Any = None, *, label: str = "score") -> Any:
    """Values of one score in several groups (usual input, noise, attacks), with their quartiles and median.

    Args:
        groups: numbers by the name of the group.
        ax: axes to draw on.
        label: what the numbers are.

    Returns:
        The axes.

    Raises:
        ResultError: for a group without numbers.
    """
    return draw_groups(groups, ax, label=label)
