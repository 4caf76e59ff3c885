"""Plot of boxes and points on their image, with where their sides could have been."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from vlmprobe.display import view
from vlmprobe.display.plots.style import COLOURS, LINES, axes, drawable, matplotlib, verbatim
from vlmprobe.errors import ResultError

__all__ = ["draw_boxes"]

LETTERS = 40  # of a name
SIDE = 4.6  # inches of the longer side of the image


def draw_boxes(
    places: np.ndarray,
    ends: np.ndarray,
    names: Sequence[str],
    size: tuple[int, int] | None,
    image: Image | None = None,
    ax: Any = None,
    *,
    more: int = 0,
) -> Any:
    """Boxes and points on an image, and as a shaded band where each side could have been. Returns the axes.

    Args:
        places: float64 [B, 4], pixels: x1, y1, x2, y2; a point has the first two, NaN in all four is left out.
        ends: float64 [B, 4, 2], pixels: the interval of each side; NaN where unknown.
        names: [B] what is written at each.
        size: width and height of the image that the pixels count in.
        image: what is drawn behind them, of any size.
        ax: axes to draw on.
        more: how many boxes are not drawn.

    Raises:
        ResultError: if there is nothing to draw.
    """
    drawn = np.flatnonzero(~np.isnan(places.reshape(-1, 4)[:, :2]).any(axis=1))
    if size is None or not len(drawn):
        raise ResultError("There is no box to draw.")
    width, height = size
    longer = max(width, height)
    ax = axes(ax, size=(max(1.8, SIDE * width / longer) + 0.6, max(1.8, SIDE * height / longer) + 0.7))
    if image is not None:
        ax.imshow(np.asarray(image), extent=(0, width, height, 0), interpolation="antialiased")
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    ax.tick_params(labelsize="small")
    effects = matplotlib("patheffects")
    outline = [effects.withStroke(linewidth=3.2, foreground="white", alpha=0.8)]
    for row in drawn.tolist():
        colour, line = COLOURS[row % len(COLOURS)], LINES[row // len(COLOURS) % len(LINES)]
        x1, y1, x2, y2 = places[row]
        if np.isnan(x2) or np.isnan(y2):
            _point(ax, places[row], ends[row], colour, outline)
        else:
            _band(ax, places[row], ends[row], colour)
            sides = [x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1]
            ax.plot(*sides, color=colour, linestyle=line, linewidth=1.6, path_effects=outline)
        text = drawable(view.label(names[row])[:LETTERS])
        above = y1 > 0.07 * height
        ax.annotate(
            text,
            (x1, y1),
            (0, 3 if above else -3),
            textcoords="offset points",
            va="bottom" if above else "top",
            fontsize="small",
            color="black",
            bbox={"facecolor": "white", "edgecolor": colour, "alpha": 0.85, "pad": 1.5, "linewidth": 0.8},
            annotation_clip=True,
            **verbatim(text),
        )
    label = "shaded: 90% of where each side could have been"
    label += f"\n{more:,} more not drawn" if more else ""
    ax.set_xlabel(label, fontsize="small")
    return ax


def _band(ax: Any, place: np.ndarray, ends: np.ndarray, colour: str) -> None:
    """Between the largest and the smallest box within the intervals."""
    if np.isnan(ends).any():
        return
    outer = ends[0, 0], ends[1, 0], ends[2, 1], ends[3, 1]
    inner = ends[0, 1], ends[1, 1], ends[2, 0], ends[3, 0]
    path = matplotlib("path").Path
    corners = [_around(*outer)]
    if inner[0] < inner[2] and inner[1] < inner[3]:
        corners.append(_around(*inner)[::-1])  # turned round: a hole
    codes = [path.MOVETO, path.LINETO, path.LINETO, path.LINETO, path.CLOSEPOLY] * len(corners)
    shape = path(np.concatenate(corners), codes)
    ax.add_patch(matplotlib("patches").PathPatch(shape, facecolor=colour, alpha=0.3, linewidth=0))


def _around(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)])


def _point(ax: Any, place: np.ndarray, ends: np.ndarray, colour: str, outline: Sequence[Any]) -> None:
    if not np.isnan(ends[:2]).any():
        (left, right), (top, bottom) = ends[:2]
        shape = matplotlib("patches").Rectangle((left, top), right - left, bottom - top)
        shape.set(facecolor=colour, alpha=0.3, linewidth=0)
        ax.add_patch(shape)
    ax.plot(*place[:2], marker="x", color=colour, markersize=8, markeredgewidth=2, path_effects=outline)
