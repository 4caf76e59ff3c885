"""InternVL's dynamic tiling: an image is split into a grid of square tiles and, optionally, a thumbnail."""

from __future__ import annotations

from functools import lru_cache

from PIL import Image

__all__ = ["choose_grid", "tile_image"]


def choose_grid(width: int, height: int, *, min_tiles: int, max_tiles: int, size: int) -> tuple[int, int]:
    """The grid (columns, rows) whose aspect ratio is closest to that of the image.

    Among equally close grids, a later one (of at least as many tiles) wins only if the image has more than half of
    its pixels.

    Args:
        width: of the image, pixels.
        height: of the image, pixels.
        min_tiles: the fewest tiles of a grid.
        max_tiles: the most tiles of a grid.
        size: side of a tile, pixels.
    """
    aspect = width / height
    best, least = (1, 1), float("inf")
    for columns, rows in _grids(min_tiles, max_tiles):
        distance = abs(aspect - columns / rows)
        if distance < least:
            best, least = (columns, rows), distance
        elif distance == least and width * height > 0.5 * size * size * columns * rows:
            best = (columns, rows)
    return best


def tile_image(image: Image.Image, *, min_tiles: int, max_tiles: int, size: int, thumbnail: bool) -> list[Image.Image]:
    """The tiles of an image, row by row, each ``size`` pixels square; a thumbnail comes last, if there are several."""
    columns, rows = choose_grid(*image.size, min_tiles=min_tiles, max_tiles=max_tiles, size=size)
    whole = image.resize((columns * size, rows * size), Image.Resampling.BICUBIC)
    tiles = [
        whole.crop((column * size, row * size, (column + 1) * size, (row + 1) * size))
        for row in range(rows)
        for column in range(columns)
    ]
    if thumbnail and len(tiles) > 1:
        tiles.append(image.resize((size, size), Image.Resampling.BICUBIC))
    return tiles


@lru_cache(maxsize=64)
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    # The original sorts a set by number of tiles only, so grids of equal number keep the set's own order, which breaks
    # ties between equally close ones. The set is therefore filled in the original's order.
    grids: set[tuple[int, int]] = set()
    for most in range(min_tiles, max_tiles + 1):
        for columns in range(1, most + 1):
            for rows in range(1, most + 1):
                if min_tiles <= columns * rows <= max_tiles:
                    grids.add((columns, rows))
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))
