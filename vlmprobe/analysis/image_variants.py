"""Variants that replace an image: blank, blurred, noise, partly masked; or none.

Every variant keeps the size of its image, so that a model gives it equally many positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vlmprobe.errors import CapabilityError, MessageError, near
from vlmprobe.inputs.images import load_image
from vlmprobe.inputs.messages import Conversation, ImagePart

__all__ = ["VARIANTS", "Box", "Cover", "blank", "blur", "cells", "covered", "diffused", "exchanged", "noise", "variant"]

Box: TypeAlias = tuple[int, int, int, int]  # left, upper, right, lower, in pixels; right and lower are outside
Cover: TypeAlias = Literal["blank", "blur", "noise"] | tuple[int, int, int]

BLUR = 0.1  # standard deviation of the blur, as a share of the shorter side


def blank(image: Image.Image, colour: tuple[int, int, int] | None = None) -> Image.Image:
    """A uniform colour: the given one, else the image's mean, which keeps the brightness but no shapes."""
    mean = tuple(np.asarray(image.convert("RGB"), dtype=np.float64).mean(axis=(0, 1)).round().astype(int).tolist())
    return Image.new("RGB", image.size, colour or mean)


def blur(image: Image.Image, radius: float | None = None) -> Image.Image:
    """Blurred by a Gaussian of ``radius`` pixels (standard deviation), a tenth of the shorter side if None."""
    sigma = BLUR * min(image.size) if radius is None else radius
    return image.convert("RGB").filter(ImageFilter.GaussianBlur(sigma))


def noise(image: Image.Image, seed: int = 0) -> Image.Image:
    """Independent uniform colours, pixel by pixel."""
    shape = (image.height, image.width, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def diffused(image: Image.Image, step: int = 500, seed: int = 0) -> Image.Image:
    """The image after ``step`` of 1,000 diffusion steps, as in visual contrastive decoding (Leng et al. 2024).

    The same schedule (sigmoid from -6 to 6, betas of 1e-5 to 5e-3) on colours scaled to -1 .. 1, clipped to the valid
    range. The authors add the noise to the normalised input of the vision tower, whose scale differs by model.
    """
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step < 1000:
        raise MessageError(f"step must be an integer from 0 to 999, not {step!r}")
    betas = 1e-5 + (0.5e-2 - 1e-5) / (1 + np.exp(-np.linspace(-6, 6, 1000)))
    kept = np.cumprod(1 - betas)[step]
    colours = np.asarray(image.convert("RGB"), dtype=np.float64) / 127.5 - 1
    drawn = np.random.default_rng(seed).standard_normal(colours.shape)
    noisy = np.sqrt(kept) * colours + np.sqrt(1 - kept) * drawn
    return Image.fromarray(((noisy + 1) * 127.5).round().clip(0, 255).astype(np.uint8))


def covered(image: Image.Image, box: Box, cover: Cover = "blank") -> Image.Image:
    """Mask one rectangle of the image: painted in its mean colour or one given, blurred, or noise."""
    left, upper, right, lower = box
    if not (0 <= left < right <= image.width and 0 <= upper < lower <= image.height):
        raise MessageError(f"The box {box} does not lie in an image of {image.width} x {image.height} pixels.")
    image = image.convert("RGB")
    if isinstance(cover, tuple):
        put = blank(image, cover)
    elif cover in ("blank", "blur", "noise"):
        put = VARIANTS[cover](image)
    else:
        raise MessageError(f"cover must be 'blank', 'blur', 'noise' or a colour (r, g, b), not {cover!r}")
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rectangle((left, upper, right - 1, lower - 1), fill=255)
    return Image.composite(put, image, mask)


def cells(size: tuple[int, int], grid: tuple[int, int]) -> Iterator[tuple[int, int, Box]]:
    """The cells of a grid of (rows, columns) over an image of (width, height): row, column and box of each."""
    rows, columns = grid
    if min(grid) < 1 or rows > size[1] or columns > size[0]:
        raise MessageError(f"A grid of {rows} x {columns} does not fit an image of {size[0]} x {size[1]} pixels.")
    across = np.linspace(0, size[0], columns + 1).round().astype(int).tolist()
    down = np.linspace(0, size[1], rows + 1).round().astype(int).tolist()
    for row in range(rows):
        for column in range(columns):
            yield row, column, (across[column], down[row], across[column + 1], down[row + 1])


VARIANTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blank": blank,
    "blur": blur,
    "noise": noise,
    "diffused": diffused,
}


def variant(image: Image.Image, wanted: Any) -> Image.Image | None:
    """The image that replaces ``image``; None for no image.

    Args:
        image: the real one.
        wanted: a name of :data:`VARIANTS`, ``"none"``, or any image source (path, URL, open file, bytes, PIL
            image, array).
    """
    if isinstance(wanted, str):
        if wanted == "none":
            return None
        if wanted in VARIANTS:
            return VARIANTS[wanted](image)
        if not any(mark in wanted for mark in "./\\:"):
            names = (*VARIANTS, "none")
            raise MessageError(f"There is no variant {wanted!r}, only {', '.join(names)}.{near(wanted, names)}")
    return load_image(wanted)


def exchanged(conversation: Conversation, images: Mapping[int, Image.Image | None]) -> Conversation:
    """The conversation with some of its images, by index, replaced, or removed if None."""
    missing = [place for place in images if not 0 <= place < len(conversation.images)]
    if missing:
        raise CapabilityError(
            f"The conversation has {len(conversation.images)} image(s), so there is no image {missing[0]}."
        )
    place = -1
    messages = []
    for message in conversation.messages:
        parts = []
        for part in message.parts:
            if isinstance(part, ImagePart):
                place += 1
                if place in images:
                    put = images[place]
                    if put is None:
                        continue
                    part = replace(part, image=put)
            parts.append(part)
        messages.append(replace(message, parts=tuple(parts)))
    return Conversation.build(replace(conversation, messages=tuple(messages)))  # a message may be left empty
