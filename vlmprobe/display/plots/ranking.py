"""Plot of a ranking: scores as bars, each beside its document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL.Image import Image

from vlmprobe.display.plots.style import axes, bars, matplotlib
from vlmprobe.errors import ResultError

__all__ = ["draw_ranking"]

TALL = 0.58  # inches of a line with an image


def draw_ranking(
    query: str,
    scores: np.ndarray,
    texts: Sequence[str],
    images: Sequence[Image | None],
    ax: Any = None,
    *,
    most: int = 12,
) -> Any:
    """Bars of the scores, each with the document's text, or its image. Returns the axes.

    Args:
        query: shown above the axes.
        scores: [D] from 0 to 1, in the order in which the documents are drawn, the first on top.
        texts: [D].
        images: [D] of the documents, or None.
        ax: axes to draw on.
        most: how many documents are drawn; if there are more, the label says so.

    Raises:
        ResultError: without a document.
    """
    count = min(most, len(scores))
    if not count:
        raise ResultError("There is no document to draw.")
    offsetbox = matplotlib("offsetbox")
    shown = images[:count]
    pictured = [each for each in shown if each is not None]
    ax = axes(ax, size=(5.4, (TALL if pictured else 0.36) * count + 0.8))
    names = ["" if image is not None and not text else text for text, image in zip(texts[:count], shown, strict=True)]
    height = TALL * 0.84 * 72  # points
    wide = max((height * each.width / each.height for each in pictured), default=0.0)
    more = f"\nthe first {count} of {len(scores)} documents" if count < len(scores) else ""
    bars(
        ax,
        names,
        scores[:count],
        [f"{score:.3f}" for score in scores[:count].tolist()],
        label=f"relevance, sigmoid(yes − no){more}",
        title=query,
        beside=wide / 72,
    )
    for place, image in enumerate(shown):
        if image is not None:
            zoom = height / image.height
            thumbnail = offsetbox.OffsetImage(np.asarray(image), zoom=zoom, interpolation="antialiased")
            ax.add_artist(
                offsetbox.AnnotationBbox(
                    thumbnail,
                    (0, place),
                    (-8, 0),
                    boxcoords="offset points",
                    box_alignment=(1, 0.5),
                    frameon=False,
                    pad=0,
                    annotation_clip=False,
                )
            )
    if pictured:
        ax.tick_params(axis="y", pad=8 + wide + 4)
    return ax
