"""Plots along a sequence: surprisal of each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmprobe.display.plots.strip import Strip
from vlmprobe.display.plots.style import COLOURS, axes, drawable, inches, legend, paper, shown, verbatim
from vlmprobe.display.shown import ShownTable
from vlmprobe.errors import ResultError

__all__ = ["MOST", "draw_pairs", "draw_table", "draw_tokens", "draw_words"]

MOST = 40  # tokens that fit side by side
NAMED = 8  # how many of the most surprising tokens of a longer run are labelled
ROOM = 0.32  # inches between two of them


def draw_tokens(table: ShownTable, ax: Any = None, *, most: int = MOST) -> Any:
    """Surprisal of each token in bits as bars, with the entropy of its distribution as points. Returns the axes.

    Args:
        table: of T tokens; those without a log-probability are left out.
        ax: axes to draw on.
        most: how many tokens fit in one row; more are wrapped into several.

    Raises:
        ResultError: if no token has a log-probability.
    """
    rows = _readable(table.logprobs, "token")
    names, bits = [table.tokens[row] for row in rows], _bits(table.logprobs[rows])
    points = table.entropy[rows] / np.log(2)
    return _columns(names, bits, points, ax, labels=("surprisal of the token", "entropy of its step"), most=most)


def draw_words(words: Sequence[str], logprobs: np.ndarray, ax: Any = None, *, label: str) -> Any:
    """Surprisal of each word in bits as bars, in as many rows as they need. Returns the axes.

    Args:
        words: [W].
        logprobs: [W], nats; words where it is NaN are left out.
        ax: axes to draw on.
        label: what the bars are.

    Raises:
        ResultError: if no word has a log-probability.
    """
    rows = _readable(logprobs, "word")
    ax = _columns([words[row] for row in rows], _bits(logprobs[rows]), None, ax)
    ax.set(ylabel=label)
    return ax


def draw_pairs(tokens: Sequence[str], first: np.ndarray, second: np.ndarray, ax: Any = None) -> Any:
    """Surprisal of each token in bits under two models: A as bars, B as points. Returns the axes.

    Args:
        tokens: [T], in as many rows as they need.
        first: [T], nats, log-probabilities under A; tokens where it is NaN are left out.
        second: [T], nats, under B; NaN where unknown.
        ax: axes to draw on.

    Raises:
        ResultError: if no token has a log-probability.
    """
    rows = _readable(first, "token")
    names = [tokens[row] for row in rows]
    return _columns(names, _bits(first[rows]), _bits(second[rows]), ax, labels=("surprisal under A", "under B"))


def draw_table(table: ShownTable, ax: Any = None, *, most: int = MOST) -> Any:
    """The tokens of a table side by side, or, if they are too many, as a curve. Returns the axes.

    Args:
        table: of T tokens; those without a log-probability are left out.
        ax: axes to draw on.
        most: how many tokens fit side by side.

    Raises:
        ResultError: if no token has a log-probability.
    """
    rows = _readable(table.logprobs, "token")
    return draw_tokens(table, ax, most=most) if len(rows) <= most else _draw_run(table, rows, ax)


def _draw_run(table: ShownTable, rows: np.ndarray, ax: Any) -> Any:
    """Surprisal along the rows of a table, the most surprising tokens labelled, and a line of the entropy."""
    ax = axes(ax, size=(9.0, 3.2))
    bits = np.full(len(table), np.nan)
    bits[rows] = _bits(table.logprobs[rows])
    edges = np.arange(len(table) + 1) - 0.5
    ax.stairs(np.nan_to_num(bits), edges, fill=True, color=COLOURS[0], alpha=0.85, label="surprisal of the token")
    entropy = table.entropy / np.log(2)
    ax.plot(np.arange(len(table)), entropy, color=COLOURS[1], linewidth=1, label="entropy of its step")
    gap = len(table) * ROOM / max(0.8 * inches(ax)[0], ROOM)
    named: list[int] = []
    for row in rows[np.argsort(-bits[rows], kind="stable")].tolist():
        if len(named) < NAMED and bits[row] > 1 and all(abs(row - other) >= gap for other in named):
            named.append(row)
    style = {"rotation": 40, "rotation_mode": "anchor", "ha": "left", "fontsize": "small"}
    for row in named:
        text = drawable(shown(table.tokens[row], 14))
        ax.annotate(text, (row, bits[row]), (0, 3), textcoords="offset points", **style, **verbatim(text))
    ax.set(xlabel="row of the table", ylabel="bits", xlim=(-0.5, len(table) - 0.5))
    ax.set_ylim(bottom=0, top=1.4 * float(np.nanmax(bits)) or 1.0)
    legend(ax, "upper right", columns=2)
    return ax


def _columns(
    names: Sequence[str],
    bits: np.ndarray,
    points: np.ndarray | None,
    ax: Any,
    labels: tuple[str, str] | None = None,
    most: int = MOST,
) -> Any:
    """A bar for each name, and a point if given; with labels, a legend of the two."""
    highest = float(max(bits.max(), 0.0 if points is None else np.nanmax(points, initial=0.0))) or 1.0
    strip = Strip(names, 0.0, 1.05 * highest, ax, most=most)
    ax = strip.ax
    ax.bar(strip.x, bits, bottom=strip.base, width=0.7, color=COLOURS[0], alpha=0.85, label=labels and labels[0])
    if points is not None:
        label, size = labels and labels[1], 6 if strip.rows == 1 else 5
        ax.plot(
            strip.x, strip.base + points, "D", color=COLOURS[1], markeredgecolor=paper(ax), markersize=size, label=label
        )
    ax.set(ylabel="bits")
    if strip.rows == 1:
        ax.set_ylim(bottom=0, top=1.24 * highest)
    if labels:
        legend(ax, "upper right" if strip.rows == 1 else "above", columns=2)
    return ax


def _readable(logprobs: np.ndarray, what: str) -> np.ndarray:
    """int64: the indices that have a number."""
    rows = np.flatnonzero(~np.isnan(logprobs))
    if not len(rows):
        raise ResultError(f"No {what} has a log-probability, so there is nothing to draw.")
    return rows


def _bits(logprobs: np.ndarray) -> np.ndarray:
    """Surprisal, float64, of log-probabilities in nats."""
    return -logprobs.astype(np.float64) / np.log(2)
