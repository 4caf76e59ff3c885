"""Limits on the size of images, of files and in memory alike: preprocessing takes many times an image's bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from vlmprobe.errors import ImageError

__all__ = ["DEFAULT_LIMITS", "Limits", "mark", "require_held", "require_pixels"]

MARK = "vlmprobe.max_pixels"  # in the info of an image: the greater limit under which its owner loaded it


@dataclass(frozen=True)
class Limits:
    """Limits on loading. Of a Pillow image or an array only the pixels are limited."""

    max_pixels: int = 89_478_485  # width x height; the size above which Pillow warns of decompression bombs
    max_bytes: int = 256 * 1024**2  # of a file, of bytes, of a decoded data URL
    url_bytes: int = 64 * 1024**2  # of a download
    url_seconds: float = 20.0  # for a whole download, redirects included
    url_redirects: int = 5


DEFAULT_LIMITS = Limits()


def require_pixels(width: int, height: int, name: str, most: int) -> None:
    """Reject an image of too many pixels.

    Raises:
        ImageError: it calls the image ``name``.
    """
    if width * height > most:
        raise ImageError(
            f"{name} is {width} x {height} pixels, more than {most:,}: shrink it, or pass "
            "load_image(source, Limits(max_pixels=...)) instead if you trust it."
        )


def require_held(width: int, height: int, name: str, limits: Limits, info: Mapping[Any, Any] | None = None) -> None:
    """:func:`require_pixels` of an image in memory, of which ``info`` may say under which limits it was loaded."""
    marked = (info or {}).get(MARK, 0)
    require_pixels(width, height, name, max(limits.max_pixels, DEFAULT_LIMITS.max_pixels, marked))


def mark(image: Image, limits: Limits) -> Image:
    """The image; if its limits exceed the default, they hold for it from now on."""
    if limits.max_pixels > DEFAULT_LIMITS.max_pixels:
        image.info[MARK] = limits.max_pixels
    return image
