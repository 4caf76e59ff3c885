"""Plots along a sequence: how surprising each token was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmprobe.display.plots.style import COLOURS, axes, columns, legend, paper, shown, verbatim
from vlmprobe.display.shown import ShownTable
from vlmprobe.errors import ResultError

__all__ = ["MOST", "draw_columns", "draw_table", "draw_tokens"]

MOST = 40  # tokens that can be read beside each other
NAMED = 8  # of a longer run, so many of the most surprising tokens are named
ROOM = 0.32  # inches between two of them


def draw_tokens(table: ShownTable, ax: Any = None, *, most: int = MOST) -> Any:
    """Surprisal of each token in bits as bars, with the entropy of its distribution as points. Returns the axes.

    Args:
        table: of T tokens; those without a log-probability are left out.
        ax: axes to draw on.
        most: how many tokens can be read beside each other.

    Raises:
        ResultError: for more tokens, or none.
    """
    rows = np.flatnonzero(~np.isnan(table.logprobs))
    if not 0 < len(rows) <= most:
        raise ResultError(
            f"{len(rows)} tokens cannot be drawn side by side; cut the table to 1 to {most}: table[:{most}]"
        )
    names = [table.tokens[row] for row in rows.tolist()]
    return draw_columns(names, _bits(table.logprobs[rows]), table.entropy[rows] / np.log(2), ax)


def draw_columns(
    names: Sequence[str],
    bits: np.ndarray,
    points: np.ndarray | None = None,
    ax: Any = None,
    *,
    labels: Sequence[str] = ("surprisal of the token", "entropy of its step"),
) -> Any:
    """A bar for each token, its name below it, and a point beside where given. Returns the axes.

    Args:
        names: [T].
        bits: [T].
        points: [T], bits.
        ax: axes to draw on.
        labels: of the bars and of the points; without points there is no legend.
    """
    ax = axes(ax, size=(max(4.0, 0.36 * len(names) + 1.4), 3.2))
    at = np.arange(len(names))
    ax.bar(at, bits, width=0.7, color=COLOURS[0], alpha=0.85, label=labels[0])
    if points is not None:
        ax.plot(at, points, "D", color=COLOURS[1], markeredgecolor=paper(ax), markersize=6, label=labels[1])
    columns(ax, names)
    ax.set(ylabel="bits" if points is not None else f"{labels[0]} (bits)", xlim=(-0.7, len(names) - 0.3))
    ax.set_ylim(bottom=0, top=1.18 * ax.get_ylim()[1])
    if points is not None:
        legend(ax, "upper right", columns=2)
    return ax


def draw_table(table: ShownTable, ax: Any = None, *, most: int = MOST) -> Any:
    """The tokens of a table side by side, or, where they are too many to be read so, as a run. Returns the axes.

    Args:
        table: of T tokens; those without a log-probability are left out.
        ax: axes to draw on.
        most: how many tokens can be read beside each other.

    Raises:
        ResultError: where no token has a log-probability.
    """
    rows = np.flatnonzero(~np.isnan(table.logprobs))
    if not len(rows):
        raise ResultError("No token has a log-probability, so there is nothing to draw.")
    return draw_tokens(table, ax, most=most) if len(rows) <= most else _draw_run(table, rows, ax)


def _draw_run(table: ShownTable, rows: np.ndarray, ax: Any) -> Any:
    """Surprisal along the rows of a table, the most surprising tokens named, and a line of the entropy."""
    ax = axes(ax, size=(9.0, 3.2))
    bits = np.full(len(table), np.nan)
    bits[rows] = _bits(table.logprobs[rows])
    edges = np.arange(len(table) + 1) - 0.5
    ax.stairs(np.nan_to_num(bits), edges, fill=True, color=COLOURS[0], alpha=0.85, label="surprisal of the token")
    entropy = table.entropy / np.log(2)
    ax.plot(np.arange(len(table)), entropy, color=COLOURS[1], linewidth=1, label="entropy of its step")
    gap = len(table) * ROOM / max(ax.get_position().width * ax.figure.get_figwidth(), ROOM)
    named: list[int] = []
    for row in rows[np.argsort(-bits[rows], kind="stable")].tolist():
        if len(named) < NAMED and bits[row] > 1 and all(abs(row - other) >= gap for other in named):
            named.append(row)
    style = {"rotation": 40, "rotation_mode": "anchor", "ha": "left", "fontsize": "small", **verbatim()}
    for row in named:
        ax.annotate(shown(table.tokens[row], 14), (row, bits[row]), (0, 3), textcoords="offset points", **style)
    ax.set(xlabel="row of the table", ylabel="bits", xlim=(-0.5, len(table) - 0.5))
    ax.set_ylim(bottom=0, top=1.4 * float(np.nanmax(bits)) or 1.0)
    legend(ax, "upper right", columns=2)
    return ax


def _bits(logprobs: np.ndarray) -> np.ndarray:
    """Surprisal, float64, of log-probabilities in nats."""
    return -logprobs.astype(np.float64) / np.log(2)
