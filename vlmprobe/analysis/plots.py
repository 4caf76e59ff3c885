"""Plots of confidence: each draws on matplotlib axes (new ones unless given) and returns them.

Readable in greyscale and on a dark background: series differ by marker, line or hatching and not by colour alone, the
colours have about the same contrast to white and to black, and text, ticks and guides take the colour of the style in
use (``with matplotlib.pyplot.style.context("dark_background")``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlmprobe.analysis.calibration import Reliability, RiskCoverage
from vlmprobe.analysis.gating import Threshold
from vlmprobe.analysis.uncertainty import Source, surprisal, table_of
from vlmprobe.errors import MissingExtraError, ResultError

__all__ = ["COLOURS", "LINES", "MARKERS", "axes", "reliability_diagram", "risk_coverage", "scores", "tokens"]

# Blue, orange, green and purple of contrast 3 to 6 with both white and black (WCAG 2).
COLOURS = ("#2f7fd0", "#d9660b", "#2f9460", "#a35bc4")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")


def axes(ax: Any = None, *, size: tuple[float, float] = (5.0, 4.0)) -> Any:
    """The axes given, or new ones in a figure of ``size`` inches, without a frame above and to the right."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    if ax is None:
        ax = pyplot.figure(figsize=size, layout="constrained").add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def reliability_diagram(reliability: Reliability | Mapping[str, Reliability], ax: Any = None) -> Any:
    """Accuracy against confidence, bin by bin; on the diagonal a confidence means what it says.

    The area of a point grows with the number of its answers; its bar is the 95% interval of the bin's accuracy that so
    many answers leave (Wilson 1927).

    Args:
        reliability: one, or several by name (before and after recalibration).
        ax: axes to draw on.
    """
    several = reliability if isinstance(reliability, Mapping) else {"": reliability}
    ax = axes(ax, size=(4.6, 4.4))
    ax.plot([0, 1], [0, 1], color=_ink(ax), alpha=0.5, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for place, (name, each) in enumerate(several.items()):
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        line = LINES[place % len(LINES)]
        ax.vlines(each.confidence, *_wilson(each), color=colour, linewidth=1.2, alpha=0.8, zorder=2)
        ax.plot(each.confidence, each.accuracy, color=colour, linestyle=line, linewidth=1.2, zorder=3)
        sizes = 18 + 110 * each.count / each.count.max()
        ax.scatter(
            each.confidence, each.accuracy, s=sizes, color=colour, marker=marker, edgecolor=_paper(ax), zorder=4 + place
        )
        label = f"{name + ': ' if name else ''}ECE {each.ece:.3f}, {int(each.count.sum())} answers"
        ax.plot([], [], color=colour, marker=marker, linestyle=line, label=label)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="confidence", ylabel="share of right answers")
    ax.set_aspect("equal")
    # Above the axes: within them a bar may reach any corner.
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize="small", handlelength=2.6)
    return ax


def risk_coverage(
    curve: RiskCoverage | Mapping[str, RiskCoverage], threshold: Threshold | None = None, ax: Any = None
) -> Any:
    """Share of wrong answers among those kept, against the share kept.

    Args:
        curve: one, or several by name (different confidences).
        threshold: where it lies is marked.
        ax: axes to draw on.
    """
    several = curve if isinstance(curve, Mapping) else {"": curve}
    ax = axes(ax)
    for place, (name, each) in enumerate(several.items()):
        label = f"{name + ': ' if name else ''}area {each.area:.4f}"
        colour, line = COLOURS[place % len(COLOURS)], LINES[place % len(LINES)]
        ax.plot(each.coverage, 100 * each.risk, color=colour, linestyle=line, linewidth=2, label=label)
    highest = max(float(each.risk[-1]) for each in several.values())
    ax.axhline(100 * highest, color=_ink(ax), alpha=0.5, linewidth=1, linestyle=(0, (4, 3)))
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
        ax.plot(*at, marker="D", markersize=8, color=COLOURS[1], markeredgecolor=_paper(ax), zorder=4)
        wrong = f"{threshold.wrong} of {threshold.kept} wrong"
        ax.annotate(
            f"confidence ≥ {threshold.value:.3g}\nkeeps {threshold.coverage:.0%}, {wrong}",
            at,
            (-12, 22),
            textcoords="offset points",
            ha="right",
            fontsize="small",
            arrowprops={"arrowstyle": "-", "color": _ink(ax), "alpha": 0.6},
        )
    ax.set(xlim=(0, 1.01), xlabel="share of answers kept, most confident first", ylabel="wrong among them (%)")
    ax.set_ylim(bottom=0, top=max(100 * highest * 1.25, 1e-3))
    _legend(ax, "upper left")
    return ax


def tokens(source: Source, ax: Any = None, *, most: int = 40) -> Any:
    """Surprisal of each token in bits as bars, with the entropy of its distribution as points.

    A bar above its point is a token that was less likely than the model expected of what would come.

    Args:
        source: table or result.
        ax: axes to draw on.
        most: how many tokens can be read beside each other; more are an error, for a cut would hide it.
    """
    table = table_of(source)
    rows = np.flatnonzero(table.scored)
    if not 0 < len(rows) <= most:
        raise ResultError(
            f"{len(rows)} tokens cannot be drawn side by side; cut the table to 1 to {most}: table[:{most}]"
        )
    ax = axes(ax, size=(max(4.0, 0.36 * len(rows) + 1.4), 3.2))
    at = np.arange(len(rows))
    ax.bar(at, surprisal(table)[rows], width=0.7, color=COLOURS[0], alpha=0.85, label="surprisal of the token")
    entropy = table.entropy[rows] / np.log(2)
    ax.plot(at, entropy, "D", color=COLOURS[1], markeredgecolor=_paper(ax), markersize=6, label="entropy of its step")
    names = [_shown(table.tokens[row]) for row in rows]
    ax.set_xticks(at, names, rotation=55, ha="right", rotation_mode="anchor", fontsize="small", parse_math=False)
    ax.set(ylabel="bits", xlim=(-0.7, len(rows) - 0.3))
    ax.set_ylim(bottom=0, top=1.18 * ax.get_ylim()[1])
    _legend(ax, "upper right", columns=2)
    return ax


def scores(groups: Mapping[str, Sequence[float] | np.ndarray], ax: Any = None, *, label: str = "score") -> Any:
    """Values of one score in several groups (usual input, noise, attacks), with their quartiles and median.

    Args:
        groups: numbers by the name of the group.
        ax: axes to draw on.
        label: what the numbers are.
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
        ax.plot([low, high], [place, place], color=_ink(ax), linewidth=2.5, solid_capstyle="butt", zorder=3)
        ax.plot([middle, middle], [place - 0.3, place + 0.3], color=_ink(ax), linewidth=2.5, zorder=3)
    ax.set_yticks(range(len(groups)), list(groups), parse_math=False)
    ax.set(xlabel=label, ylim=(len(groups) - 0.5, -0.5))
    return ax


def _wilson(reliability: Reliability, z: float = 1.96) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends [B] of the intervals of the bins' accuracies."""
    count, accuracy = reliability.count, reliability.accuracy
    centre = (accuracy + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(accuracy * (1 - accuracy) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return centre - half, centre + half


def _legend(ax: Any, where: str, columns: int = 1) -> None:
    ax.legend(loc=where, frameon=False, fontsize="small", ncols=columns, handlelength=2.6)


def _ink(ax: Any) -> Any:
    """The colour of text and ticks under the style in use."""
    return ax.xaxis.label.get_color()


def _paper(ax: Any) -> Any:
    """The colour behind the axes."""
    return ax.get_facecolor()


def _shown(token: str) -> str:
    """A token's text with white space made visible."""
    return token.strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣"
