"""The plot of a ranking: scores as bars, each beside what it is the score of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.analysis.plots import COLOURS, axes
from vlmprobe.errors import MissingExtraError, ResultError

if TYPE_CHECKING:
    from vlmprobe.probe.rank import Ranking

__all__ = ["draw_ranking"]

LETTERS = 40  # of a document's text
TALL = 0.58  # inches of a line with a picture


def draw_ranking(ranking: Ranking, ax: Any = None, *, most: int = 12) -> Any:
    """Bars of the scores, the most relevant document on top, with its text, or its picture. Returns the axes."""
    try:
        from matplotlib.offsetbox import AnnotationBbox, OffsetImage
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    shown = list(ranking)[:most]
    if not shown:
        raise ResultError("There is no document to draw.")
    pictures = any(each.picture is not None for each in shown)
    ax = axes(ax, size=(5.4, (TALL if pictures else 0.36) * len(shown) + 0.8))
    at = np.arange(len(shown))
    ax.barh(at, [each.score for each in shown], height=0.62, color=COLOURS[0])
    for place, each in enumerate(shown):
        ax.annotate(
            f"{each.score:.3f}", (each.score, place), (4, 0), textcoords="offset points", va="center", fontsize="small"
        )
        if each.picture is not None:
            height = TALL * 0.84 * 72  # points
            image = OffsetImage(
                np.asarray(each.picture), zoom=height / each.picture.height, interpolation="antialiased"
            )
            box = AnnotationBbox(
                image,
                (0, place),
                (-8, 0),
                boxcoords="offset points",
                box_alignment=(1, 0.5),
                frameon=False,
                pad=0,
                annotation_clip=False,
            )
            ax.add_artist(box)
    labels = ["" if each.picture is not None and not each.text else _short(each.text) for each in shown]
    ax.set_yticks(at, labels, parse_math=False)
    if pictures:
        wide = max(each.picture.width / each.picture.height for each in shown if each.picture is not None)
        ax.tick_params(axis="y", length=0, pad=8 + TALL * 0.84 * 72 * wide + 4)
    ax.set(xlim=(0, 1.12), ylim=(len(shown) - 0.5, -0.5), xlabel="relevance, sigmoid(yes − no)")
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.set_title(_short(ranking.query), loc="left", fontsize="medium", parse_math=False)
    return ax


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LETTERS else line[: LETTERS - 1] + "…"
