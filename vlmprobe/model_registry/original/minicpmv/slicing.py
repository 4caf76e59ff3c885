"""How MiniCPM-V cuts an image: one overview, and a grid of slices if the image is large.

The decisions are those of the original ``slice_image``, including that Python's ``round`` rounds half to even and
``int`` truncates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

__all__ = ["SlicePlan", "plan_slices", "slice_image"]

Size = tuple[int, int]  # (width, height) in pixels


@dataclass(frozen=True)
class SlicePlan:
    """How an image of one size is cut."""

    source: Size  # size of the overview
    grid: Size | None  # (columns, rows) of slices; None if there is only the overview
    slice: Size | None  # size of each slice


def plan_slices(size: Size, *, max_slices: int, resolution: int, patch: int) -> SlicePlan:
    """Decide how to cut an image of ``size``.

    Args:
        size: (width, height).
        max_slices: the most slices besides the overview.
        resolution: the side of the square whose area an overview or slice should have.
        patch: sides become multiples of this.
    """
    width, height = size
    wanted = min(math.ceil(width * height / resolution**2), max_slices)
    if wanted <= 1:
        return SlicePlan(_fit(size, resolution, patch, upscale=True), None, None)
    grid = _nearest_grid(math.log(width / height), wanted, max_slices)
    columns, rows = grid
    cell = _multiple(width, columns) / columns, _multiple(height, rows) / rows
    return SlicePlan(_fit(size, resolution, patch, upscale=False), grid, _fit(cell, resolution, patch, upscale=True))


def slice_image(image: Image.Image, plan: SlicePlan) -> list[Image.Image]:
    """The overview, then the slices row by row."""
    pieces = [image.resize(plan.source, Image.Resampling.BICUBIC)]
    if plan.grid is None or plan.slice is None:
        return pieces
    (columns, rows), (width, height) = plan.grid, plan.slice
    refined = image.resize((columns * width, rows * height), Image.Resampling.BICUBIC)
    for top in range(0, rows * height, height):
        pieces += [refined.crop((left, top, left + width, top + height)) for left in range(0, columns * width, width)]
    return pieces


def _nearest_grid(log_ratio: float, wanted: int, max_slices: int) -> Size:
    """The grid of ``wanted`` cells, one fewer or one more whose shape is closest to the image's; ties: the first."""
    counts = [count for count in (wanted - 1, wanted, wanted + 1) if 1 < count <= max_slices]
    grids = [(columns, count // columns) for count in counts for columns in range(1, count + 1) if count % columns == 0]
    return min(grids, key=lambda grid: abs(log_ratio - math.log(grid[0] / grid[1])))


def _fit(size: tuple[float, float], resolution: int, patch: int, *, upscale: bool) -> Size:
    """``size`` in the same aspect ratio with about ``resolution`` squared pixels, sides as multiples of ``patch``."""
    width, height = size
    if upscale or width * height > resolution**2:
        ratio = width / height
        height = int(resolution / math.sqrt(ratio))
        width = int(height * ratio)
    return _multiple(width, patch), _multiple(height, patch)


def _multiple(length: float, of: int) -> int:
    return max(round(length / of) * of, of)
