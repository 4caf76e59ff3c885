"""Plots of confidence: each draws on matplotlib axes (new ones unless given) and returns them.

A single result or figure has ``plot()``; the functions here also put several beside each other. Their look is that of
:mod:`vlmprobe.display.plots.style`, of which the colours, lines and markers stand here too, for plots of one's own.
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
    """Accuracy against confidence, bin by bin; on the diagonal a confidence means what it says.

    The area of a point grows with the number of its answers; its bar is the 95% interval of the bin's accuracy that so
    many answers leave (Wilson 1927).

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
        threshold: where it lies is marked.
        ax: axes to draw on.

    Returns:
        The axes.
    """
    return draw_risk_coverage(curve if isinstance(curve, Mapping) else {"": curve}, threshold, ax)


def tokens(source: Source, ax: Any = None, *, most: int = MOST) -> Any:
    """Surprisal of each token in bits as bars, with the entropy of its distribution as points.

    A bar above its point is a token that was less likely than the model expected of what would come.

    Args:
        source: table or result.
        ax: axes to draw on.
        most: how many tokens can be read beside each other; more are an error, for a cut would hide it. The ``plot()``
            of a table or result draws a longer one as a run, its most surprising tokens named.

    Returns:
        The axes.

    Raises:
        ResultError: for more tokens, or none with a log-probability.
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
