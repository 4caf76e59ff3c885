"""From the numbers of a notation to pixels of the image: which image, how large it is, and how its file stores it."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmprobe.errors import ResultError
from vlmprobe.inputs.images import FORMATS, ORIENTATION
from vlmprobe.inputs.messages import Conversation

__all__ = ["as_stored", "frame_of", "image_sizes", "orientation_of", "which_image"]

Size = tuple[int, int]


def image_sizes(meta: dict[str, Any], image: Any) -> list[Size]:
    """Width and height of each image of a result, upright.

    Args:
        meta: of the result.
        image: one or several images, if the result does not say it.

    Raises:
        ResultError: if neither does.
    """
    sizes = meta.get("image_sizes")
    if sizes is None and image is not None:
        sizes = [each.size for each in Conversation.build("?", image).images]
    if not sizes:
        raise ResultError("The size of the image is not known: pass image=, the image that the answer is about.")
    return [(int(width), int(height)) for width, height in sizes]


def which_image(count: int, which: int | None) -> int:
    """The number of the image that boxes lie on.

    Raises:
        ResultError: if there are several and none is named, or there is no such image.
    """
    if which is None:
        if count > 1:
            raise ResultError(f"The answer is about {count} images: pass which=, the number of one, from 0.")
        return 0
    if isinstance(which, bool) or not isinstance(which, (int, np.integer)) or not 0 <= which < count:
        raise ResultError(f"which must be the number of an image, from 0 to {count - 1}, not {which!r}")
    return int(which)


def orientation_of(image: Any) -> tuple[int, Size]:
    """The EXIF orientation of an image file, from 1 to 8, and the size at which its pixels are stored.

    Args:
        image: a path, the bytes of a file, or a Pillow image as it was opened.
    """
    if isinstance(image, Image.Image):
        return _orientation(image), image.size
    source = BytesIO(image) if isinstance(image, bytes) else Path(image)
    with Image.open(source, formats=[each for each in FORMATS if each in Image.OPEN]) as opened:
        return _orientation(opened), opened.size


def _orientation(image: Image.Image) -> int:
    found = image.getexif().get(ORIENTATION, 1)
    return found if found in range(1, 9) else 1


def as_stored(boxes: np.ndarray, size: Size, orientation: int) -> np.ndarray:
    """Boxes [..., 4] of an upright image, in the rows and columns of the file that was rotated by its EXIF orientation.

    Args:
        boxes: x1, y1, x2, y2 in pixels; NaN where there is none.
        size: width and height of the upright image.
        orientation: from 1 to 8, as EXIF counts them.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(*np.shape(boxes)[:-1], 2, 2)
    x, y = corners[..., 0], corners[..., 1]
    width, height = size
    if orientation in (5, 6, 7, 8):  # rows are columns
        column = y if orientation in (5, 6) else height - y
        row = x if orientation in (5, 8) else width - x
    else:
        column = x if orientation in (1, 4) else width - x
        row = y if orientation in (1, 2) else height - y
    stored = np.stack([column, row], axis=-1)
    sides = np.sort(stored, axis=-2)  # NaN last, where a point has no second corner
    return sides.reshape(boxes.shape)


def frame_of(meta: dict[str, Any], frame: Sequence[int] | None, which: int) -> Size:
    """The size in pixels at which the model receives an image.

    Raises:
        ResultError: if the result does not say it.
    """
    if frame is not None:
        width, height = frame
        return int(width), int(height)
    sizes = meta.get("resized_sizes")
    if not sizes:
        raise ResultError(
            "The numbers count in pixels of the image as the model receives it, and the result does not say how large "
            "that is: pass frame=(width, height), or probe=."
        )
    width, height = sizes[which]
    return int(width), int(height)
