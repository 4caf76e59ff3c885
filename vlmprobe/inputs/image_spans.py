"""Positions of images in a token sequence: runs of placeholders, divided among the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["ImageSpan", "divide_runs", "placeholder_runs"]


@dataclass(frozen=True)
class ImageSpan:
    """A contiguous run of positions that one image, or one tile of it, occupies in the model's sequence."""

    image: int  # which image of the conversation, from 0
    tile: int  # which run of that image, from 0, in sequence order
    start: int  # first position
    stop: int  # one past the last position


def placeholder_runs(ids: np.ndarray, placeholders: frozenset[int]) -> list[tuple[int, int]]:
    """Contiguous runs (start, stop) of placeholder ids, in order."""
    held = np.isin(ids, list(placeholders)).astype(np.int8)
    edges = np.flatnonzero(np.diff(held, prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def divide_runs(runs: Sequence[tuple[int, int]], sizes: Sequence[int]) -> tuple[ImageSpan, ...]:
    """Runs as image spans, where image i takes the next ``sizes[i]`` positions; a run may be split between images."""
    spans: list[ImageSpan] = []
    image, tile, left = 0, 0, sizes[0] if sizes else 0
    for start, stop in runs:
        while start < stop:
            if left == 0:
                image, tile, left = image + 1, 0, sizes[image + 1]
            taken = min(left, stop - start)
            spans.append(ImageSpan(image, tile, start, start + taken))
            start, tile, left = start + taken, tile + 1, left - taken
    return tuple(spans)
