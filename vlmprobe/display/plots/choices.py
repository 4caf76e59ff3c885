"""Plot of choices: the likeliest tokens of each step, darker for higher probability, the chosen one framed."""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmprobe.display.plots.style import COLOURS, axes, drawable, inches, ink, matplotlib, shown, verbatim
from vlmprobe.display.shown import ShownChoices
from vlmprobe.errors import ResultError

__all__ = ["draw_choices"]

MOST = 24  # steps that fit side by side
LEAST = 0.005  # lowest probability of a token that is labelled
LETTERS = 9
SIZE = 7.5  # points
DARK = 0.55  # shade from which text is white


def draw_choices(choices: ShownChoices, ax: Any = None) -> Any:
    """One column per step, its likeliest token on top; a frame marks the chosen one. Returns the axes.

    Args:
        choices: of at most 24 steps.
        ax: axes to draw on.

    Raises:
        ResultError: for more steps, or none.
    """
    rectangle = matplotlib("patches").Rectangle
    steps = np.unique(choices.steps)
    if not 0 < len(steps) <= MOST:
        raise ResultError(f"{len(steps)} steps cannot be drawn side by side: cut the table to 1 to {MOST} rows.")
    ax = axes(ax, size=(0.72 * len(steps) + 0.7, 0.42 * (choices.k + 1) + 0.6))
    letters = max(2, min(LETTERS, int(72 * 0.9 * inches(ax)[0] / len(steps) / (0.62 * SIZE))))
    beyond = False
    for column, step in enumerate(steps):
        rows = np.flatnonzero(choices.steps == step)
        beyond = beyond or len(rows) > choices.k
        for place, row in enumerate(rows.tolist()):
            share, said = float(choices.probabilities[row]), bool(choices.chosen[row])
            ax.add_patch(
                rectangle(
                    (column - 0.48, place - 0.46),
                    0.96,
                    0.92,
                    facecolor=(*_rgb(COLOURS[0]), 0.06 + 0.94 * share),
                    edgecolor=COLOURS[1] if said else "none",
                    linewidth=2.2 if said else 0,
                    zorder=3 if said else 2,
                )
            )
            if share >= LEAST or said:
                text = f"{drawable(shown(choices.tokens[row], letters))}\n{100 * share:.0f}%"
                colour = "white" if share > DARK else ink(ax)
                ax.text(
                    column,
                    place,
                    text,
                    ha="center",
                    va="center",
                    fontsize=SIZE,
                    color=colour,
                    zorder=4,
                    **verbatim(text),
                )
    ax.set(xlim=(-0.6, len(steps) - 0.4), ylim=(choices.k - 0.4 + beyond, -0.6))
    ax.set_xticks(range(len(steps)), [str(step) for step in steps], fontsize="small")
    names = [str(place + 1) for place in range(choices.k)] + ["said"] * beyond
    ax.set_yticks(range(len(names)), names, fontsize="small")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="step of the answer", ylabel="rank")
    return ax


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
