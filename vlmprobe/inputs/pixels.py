"""Convert pixels of any kind (Pillow modes, arrays) to upright 8-bit RGB.

Ranges: 8-bit samples are kept, 16-bit samples are scaled so that 65535 becomes 255, floats range from 0 to 1,
and booleans are black and white. Transparent pixels are composited onto white.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vlmprobe.errors import ImageError

__all__ = ["from_array", "from_pil"]

SIXTEEN_BITS = 65535
FORMATS_OF_16_BITS = ("PNG", "PPM")  # formats whose mode "I" Pillow scales to 65535, whatever the file's own maximum
TIFF_PHOTOMETRIC, TIFF_WHITE_IS_ZERO = 262, 0
OVERSHOOT = 1e-3  # how far a float may lie outside 0..1, as after interpolation


def from_pil(image: Image.Image) -> Image.Image:
    """Rotate an image upright by its EXIF orientation and convert it to 8-bit RGB.

    Args:
        image: any mode. The current frame is used. ``I`` holds 8 bits if no value exceeds 255 and the file
            format does not say otherwise, else 16; ``F`` ranges from 0 to 1, or to 255 as in Pillow's own
            conversions.

    Returns:
        A new image, mode ``RGB``, fully loaded, detached from any file.

    Raises:
        ImageError: for an empty image, values out of range, or a mode that cannot be converted to RGB.
    """
    if 0 in image.size:
        raise ImageError(f"The image is empty ({image.width} x {image.height} pixels): pass one with pixels.")
    image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        # The TIFF tag and the format are attributes of the file object and are lost in the rotated copy.
        tags = getattr(image, "tag_v2", {})
        wide = _wide_grey(image, inverted=tags.get(TIFF_PHOTOMETRIC) == TIFF_WHITE_IS_ZERO)
        wide.info["exif"] = image.info.get("exif", b"")
        return ImageOps.exif_transpose(wide).convert("RGB")
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("La", "RGBa"):
        upright = upright.convert(upright.mode.upper())
    if upright.has_transparency_data and upright.mode in ("1", "L", "P", "PA", "RGB", "LA", "RGBA"):
        return _onto_white(upright.convert("RGBA"))
    return upright if upright.mode == "RGB" else upright.convert("RGB")  # a copy already


def from_array(array: np.ndarray, *, channels_first: bool = False) -> Image.Image:
    """An image from an array.

    Args:
        array: [H, W], [H, W, C] or [C, H, W] with C = 1, 3 or 4 (grey, RGB, RGBA). ``uint8`` and other
            integers from 0 to 255, ``uint16`` from 0 to 65535, ``bool``, or floats from 0 to 1.
        channels_first: which layout to assume if both fit, such as [3, W, 3].

    Returns:
        A new image, mode ``RGB``.

    Raises:
        ImageError: for another shape or type, no elements, NaN, or values out of range.
    """
    axis = _channel_axis(array.shape, channels_first)
    levels = _levels(array)
    levels = levels[:, :, None] if axis is None else np.ascontiguousarray(np.moveaxis(levels, axis, 2))
    height, width, channels = levels.shape
    if channels == 4:
        return _onto_white(Image.fromarray(levels))
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(levels, (height, width, 3))))


def _channel_axis(shape: tuple[int, ...], channels_first: bool) -> int | None:
    """The channel axis of an image array; None if it has none."""
    if 0 in shape:
        raise ImageError(f"The image array is empty (shape {list(shape)}): pass one with pixels.")
    if len(shape) == 2:
        return None
    if len(shape) == 3:
        last, first = shape[2] in (1, 3, 4), shape[0] in (1, 3, 4)
        if first and (channels_first or not last):
            return 0
        if last:
            return 2
    if len(shape) == 4:
        raise ImageError(f"The image array has shape {list(shape)}, a batch: pass a list of its images, list(array).")
    raise ImageError(
        f"The image array has shape {list(shape)}: pass [H, W], [H, W, C] or [C, H, W] with C = 1, 3 or 4 channels."
    )


def _levels(array: np.ndarray) -> np.ndarray:
    """Samples of any type as uint8, same shape."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:  # of either byte order
        return _scaled(array, SIXTEEN_BITS)
    if np.issubdtype(array.dtype, np.integer):
        least, most = int(array.min()), int(array.max())
        if least < 0 or most > 255:
            raise ImageError(
                f"The image array ({array.dtype}) has values from {least} to {most}: "
                "scale them to 0..255 (or pass uint16, which runs to 65535)."
            )
        return array.astype(np.uint8)
    if np.issubdtype(array.dtype, np.floating):
        low, high = _finite_range(array)
        if low < -OVERSHOOT or high > 1 + OVERSHOOT:
            remedy = (
                "pass the image before normalisation by mean and standard deviation"
                if low < -OVERSHOOT
                else "divide by its maximum (255 for 8 bits), or pass it as uint8"
            )
            raise ImageError(
                f"The image array ({array.dtype}) has values from {low:g} to {high:g}; "
                f"floats must be from 0 to 1: {remedy}."
            )
        return _scaled(array.clip(0, 1), 1)
    raise ImageError(f"The image array has type {array.dtype}: pass uint8, uint16, bool, or floats from 0 to 1.")


def _wide_grey(image: Image.Image, *, inverted: bool) -> Image.Image:
    """Convert modes of more than 8 bits per sample (``I;16``, ``I``, ``F``), which Pillow's ``convert`` would clip."""
    values = np.asarray(image)
    low, high = _finite_range(values)
    top: float
    if image.mode.startswith("I;16"):
        top = SIXTEEN_BITS
    elif image.mode == "I":
        top = 255 if high <= 255 and image.format not in FORMATS_OF_16_BITS else SIXTEEN_BITS
    else:
        top = 1 if high <= 1 else 255
    if low < 0 or high > top:
        raise ImageError(
            f"The image (mode {image.mode}) has values from {low:g} to {high:g}: "
            "scale them to 0..255 and pass a uint8 array."
        )
    levels = _scaled(values, top)
    if inverted:
        levels = 255 - levels
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels = np.where(values == transparent, np.uint8(255), levels)
    return Image.fromarray(levels)


def _scaled(values: np.ndarray, top: float) -> np.ndarray:
    """Values from 0 to ``top`` rounded to 256 levels, halves up."""
    return (values * np.float32(255 / top) + np.float32(0.5)).astype(np.uint8)


def _finite_range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())  # NaN and infinities show in one of the two
    if not np.isfinite(low + high):
        bad = np.argwhere(~np.isfinite(values))
        place: list[Any] = bad[0].tolist()
        raise ImageError(
            f"The image has {len(bad)} values that are NaN or infinite, the first at {place}: "
            "replace them, for example with numpy.nan_to_num."
        )
    return low, high


def _onto_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(white, rgba).convert("RGB")
