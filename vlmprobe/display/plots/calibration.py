"""Plots of confidence over many answers: reliability, risk and coverage, recalibration, scores in groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmprobe.display.plots.style import COLOURS, LINES, MARKERS, axes, drawable, ink, legend, paper, verbatim
from vlmprobe.display.shown import ShownReliability, ShownRiskCoverage, ShownThreshold
from vlmprobe.errors import ResultError

__all__ = ["draw_groups", "draw_map", "draw_reliability", "draw_risk_coverage", "draw_sets", "wilson"]

GUIDE: dict[str, Any] = {"alpha": 0.5, "linewidth": 1, "linestyle": (0, (4, 3))}


def draw_reliability(several: Mapping[str, ShownReliability], ax: Any = None) -> Any:
    """Accuracy against confidence, bin by bin; the diagonal is perfect calibration. Returns the axes.

    The area of a point grows with the number of its answers; its bar is the 95% interval of the bin's accuracy for that
    number (Wilson 1927).

    Args:
        several: by name; an empty name is omitted.
        ax: axes to draw on.
    """
    ax = axes(ax, size=(4.6, 4.4))
    ax.plot([0, 1], [0, 1], color=ink(ax), zorder=1, **GUIDE)
    for place, (name, each) in enumerate(several.items()):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        line = LINES[place % len(LINES)]
        ax.vlines(each.confidence, *wilson(each), color=colour, linewidth=1.2, alpha=0.8, zorder=2)
        ax.plot(each.confidence, each.accuracy, color=colour, linestyle=line, linewidth=1.2, zorder=3)
        sizes = 18 + 110 * each.count / each.count.max()
        ax.scatter(
            each.confidence, each.accuracy, s=sizes, color=colour, marker=marker, edgecolor=paper(ax), zorder=4 + place
        )
        label = f"{name + ': ' if name else ''}ECE {each.ece:.3f}, {int(each.count.sum())} answers"
        ax.plot([], [], color=colour, marker=marker, linestyle=line, label=label)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence", ylabel="share of right answers")
    ax.set_aspect("equal")
    legend(ax)  # above the axes: inside, a bar may reach any corner
    return ax


def draw_risk_coverage(
    several: Mapping[str, ShownRiskCoverage], threshold: ShownThreshold | None = None, ax: Any = None
) -> Any:
    """Share of wrong answers among those kept, against the share kept. Returns the axes.

    Args:
        several: by name; an empty name is omitted.
        threshold: to be marked.
        ax: axes to draw on.
    """
    ax = axes(ax)
    for place, (name, each) in enumerate(several.items()):
        label = f"{name + ': ' if name else ''}area {each.area:.4f}"
        colour, line = COLOURS[place % len(COLOURS)], LINES[place % len(LINES)]
        ax.plot(each.coverage, 100 * each.risk, color=colour, linestyle=line, linewidth=2, label=label)
    highest = max(float(each.risk[-1]) for each in several.values())
    ax.axhline(100 * highest, color=ink(ax), **GUIDE)
    ax.annotate(
        f"all answers kept: {highest:.1%} wrong",
        (0.0, 100 * highest),
        (4, -4),
        textcoords="offset points",
        va="top",
        fontsize="small",
        alpha=0.8,
    )
    if threshold is not None:
        at = (threshold.coverage, 100 * threshold.wrong / max(threshold.kept, 1))
        ax.plot(*at, marker="D", markersize=8, color=COLOURS[1], markeredgecolor=paper(ax), zorder=4)
        wrong = f"{threshold.wrong} of {threshold.kept} wrong"
        ax.annotate(
            f"confidence ≥ {threshold.value:.3g}\nkeeps {threshold.coverage:.0%}, {wrong}",
            at,
            (-12, 22),
            textcoords="offset points",
            ha="right",
            fontsize="small",
            arrowprops={"arrowstyle": "-", "color": ink(ax), "alpha": 0.6},
        )
    ax.set(xlim=(0, 1.01), xlabel="share of answers kept, most confident first", ylabel="wrong among them (%)")
    ax.set_ylim(bottom=0, top=max(100 * highest * 1.25, 1e-3))
    legend(ax, "upper left")
    return ax


def draw_sets(
    sizes: np.ndarray, promised: np.ndarray, held: np.ndarray | None, chosen: int, count: int, ax: Any = None
) -> Any:
    """How many candidates it takes to hold the right one how often. Returns the axes.

    Args:
        sizes: [N] mean size of the sets at each of N thresholds, ascending.
        promised: [N] coverage guaranteed with each.
        held: [N] coverage seen, if known.
        chosen: index of the threshold to be marked.
        count: answers that the means are over.
        ax: axes to draw on.
    """
    ax = axes(ax)
    ax.plot(sizes, 100 * promised, color=COLOURS[0], linewidth=2, label="promised")
    if held is not None:
        ax.plot(
            sizes, 100 * held, color=COLOURS[2], linestyle=LINES[1], linewidth=2, label=f"held, of {count:,} answers"
        )
    at = (float(sizes[chosen]), 100 * float(promised[chosen]))
    ax.plot(*at, marker="D", markersize=8, color=COLOURS[1], markeredgecolor=paper(ax), zorder=4)
    seen = "" if held is None else f", held {held[chosen]:.1%}"
    widest = 1.05 * max(float(sizes[-1]), 1.0)
    left = at[0] > widest / 2  # where there is room for the note
    ax.annotate(
        f"promised {promised[chosen]:.1%}{seen}\n{sizes[chosen]:.2f} candidates on average",
        at,
        (-14 if left else 14, -34),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize="small",
        arrowprops={"arrowstyle": "-", "color": ink(ax), "alpha": 0.6},
    )
    lowest = 100 * min(0.5, float(promised[chosen]) - 0.1)
    ax.set(xlabel="candidates in a set, on average", ylabel="sets that hold the right one (%)")
    ax.set(xlim=(0, widest), ylim=(lowest, 100.5))
    legend(ax)
    return ax


def draw_map(before: np.ndarray, after: np.ndarray, label: str, ax: Any = None) -> Any:
    """Recalibrated against original confidence; the diagonal is no change. Returns the axes.

    Args:
        before: [P] confidences, ascending.
        after: [P].
        label: of the map.
        ax: axes to draw on.
    """
    ax = axes(ax, size=(4.6, 4.4))
    ax.plot([0, 1], [0, 1], color=ink(ax), zorder=1, **GUIDE)
    ax.plot(before, after, color=COLOURS[0], linewidth=2, label=label)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence", ylabel="recalibrated confidence")
    ax.set_aspect("equal")
    legend(ax)
    return ax


def draw_groups(groups: Mapping[str, Sequence[float] | np.ndarray], ax: Any = None, *, label: str = "score") -> Any:
    """Values of one score in several groups (usual input, noise, attacks), with their quartiles and median.

    Args:
        groups: numbers by the name of the group; NaN is left out.
        ax: axes to draw on.
        label: what the numbers are.

    Returns:
        The axes.

    Raises:
        ResultError: for a group without numbers.
    """
    ax = axes(ax, size=(5.4, 0.62 * len(groups) + 1.3))
    random = np.random.default_rng(0)
    for place, (name, values) in enumerate(groups.items()):
        numbers = np.asarray(values, dtype=np.float64)
        numbers = numbers[~np.isnan(numbers)]
        if not len(numbers):
            raise ResultError(f"group {name!r} holds no numbers")
        colour = COLOURS[place % len(COLOURS)]
        height = place + random.uniform(-0.24, 0.24, len(numbers))
        ax.plot(numbers, height, MARKERS[place % len(MARKERS)], color=colour, markersize=3.5, alpha=0.6, zorder=2)
        low, middle, high = np.quantile(numbers, [0.25, 0.5, 0.75])
        ax.plot([low, high], [place, place], color=ink(ax), linewidth=2.5, solid_capstyle="butt", zorder=3)
        ax.plot([middle, middle], [place - 0.3, place + 0.3], color=ink(ax), linewidth=2.5, zorder=3)
    names = [drawable(name) for name in groups]
    ax.set_yticks(range(len(groups)), names, **verbatim(*names))
    ax.set(xlabel=label, ylim=(len(groups) - 0.5, -0.5))
    return ax


def wilson(reliability: ShownReliability, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends [B] of the intervals of the bins' accuracies."""
    count, accuracy = reliability.count, reliability.accuracy
    centre = (accuracy + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(accuracy * (1 - accuracy) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return centre - half, centre + half
