"""Plots along a sequence: surprisal of each token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmprobe.display.plots.style import COLOURS, axes, columns, inches, legend, paper, shown, verbatim
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
        most: how many tokens fit side by side.

    Raises:
        ResultError: for more tokens, or none.
    """
    rows = np.flatnonzero(~np.isnan(table.logprobs))
    if not 0 < len(rows) <= most:
        raise ResultError(
            f"{len(rows)} tokens cannot be drawn side by side; cut the table to 1 to {most}: table[:{most}]"
        )
    names, bits = [table.tokens[row] for row in rows.tolist()], _bits(table.logprobs[rows])
    points = table.entropy[rows] / np.log(2)
    return _columns(names, bits, points, ax, labels=("surprisal of the token", "entropy of its step"))


def draw_words(words: Sequence[str], logprobs: np.ndarray, ax: Any = None, *, label: str) -> Any:
    """Surprisal of each word in bits as bars. Returns the axes.

    Args:
        words: [W].
        logprobs: [W], nats; words where it is NaN are left out.
        ax: axes to draw on.
        label: what the bars are.

    Raises:
        ResultError: for more words than fit side by side, or none.
    """
    rows = _readable(logprobs, "words")
    ax = _columns([words[row] for row in rows], _bits(logprobs[rows]), None, ax)
    ax.set(ylabel=label)
    return ax


def draw_pairs(tokens: Sequence[str], first: np.ndarray, second: np.ndarray, ax: Any = None) -> Any:
    """Surprisal of each token in bits under two models: A as bars, B as points. Returns the axes.

    Args:
        tokens: [T].
        first: [T], nats, log-probabilities under A; tokens where it is NaN are left out.
        second: [T], nats, under B; NaN where unknown.
        ax: axes to draw on.

    Raises:
        ResultError: for more tokens than fit side by side, or none.
    """
    rows = _readable(first, "tokens")
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
    rows = np.flatnonzero(~np.isnan(table.logprobs))
    if not len(rows):
        raise ResultError("No token has a log-probability, so there is nothing to draw.")
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
    style = {"rotation": 40, "rotation_mode": "anchor", "ha": "left", "fontsize": "small", **verbatim()}
    for row in named:
        ax.annotate(shown(table.tokens[row], 14), (row, bits[row]), (0, 3), textcoords="offset points", **style)
    ax.set(xlabel="row of the table", ylabel="bits", xlim=(-0.5, len(table) - 0.5))
    ax.set_ylim(bottom=0, top=1.4 * float(np.nanmax(bits)) or 1.0)
    legend(ax, "upper right", columns=2)
    return ax


def _columns(
    names: Sequence[str], bits: np.ndarray, points: np.ndarray | None, ax: Any, labels: tuple[str, str] | None = None
) -> Any:
    """A bar for each name, and a point if given; with labels, a legend of the two."""
    ax = axes(ax, size=(max(4.0, 0.36 * len(names) + 1.4), 3.2))
    at = np.arange(len(names))
    ax.bar(at, bits, width=0.7, color=COLOURS[0], alpha=0.85, label=labels and labels[0])
    if points is not None:
        label = labels and labels[1]
        ax.plot(at, points, "D", color=COLOURS[1], markeredgecolor=paper(ax), markersize=6, label=label)
    columns(ax, names)
    ax.set(ylabel="bits", xlim=(-0.7, len(names) - 0.3))
    ax.set_ylim(bottom=0, top=1.18 * ax.get_ylim()[1])
    if labels:
        legend(ax, "upper right", columns=2)
    return ax


def _readable(logprobs: np.ndarray, what: str) -> list[int]:
    """The indices that have a number, if they fit side by side."""
    rows = np.flatnonzero(~np.isnan(logprobs)).tolist()
    if not 0 < len(rows) <= MOST:
        raise ResultError(f"{len(rows)} {what} cannot be drawn side by side, at least 1 and at most {MOST}.")
    return rows


def _bits(logprobs: np.ndarray) -> np.ndarray:
    """Surprisal, float64, of log-probabilities in nats."""
    return -logprobs.astype(np.float64) / np.log(2)
