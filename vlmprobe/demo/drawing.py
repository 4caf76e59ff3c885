"""Draws pairs of handwritten digits: strokes of real samples, enlarged, placed and coloured."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from vlmprobe.demo.handwriting import samples

__all__ = ["COLOURS", "placement", "render", "to_pil"]

COLOURS = {
    "red": (235, 64, 60),
    "orange": (255, 146, 30),
    "yellow": (250, 226, 70),
    "green": (70, 190, 85),
    "blue": (70, 130, 250),
    "purple": (170, 85, 225),
    "white": (244, 244, 240),
}
BACKGROUND = (17, 21, 32)
CENTRES = (0.27, 0.73)  # of the two digits, as a share of the image's width
BOX = 0.46  # side of the square that the 8 x 8 sample fills, as a share of the image's width
PAD = 2  # empty pixels around a sample, so that warped strokes are not cut


def placement(rng: np.random.Generator, count: int, *, strength: float = 0.0) -> torch.Tensor:
    """Affine maps from the image to each sample's own square, float32 [count, 2, 2, 3].

    Args:
        rng: source of randomness.
        count: how many pairs.
        strength: 0 for small shifts and sizes only, as in test scenes; 1 adds rotation and shear.
    """
    shape = (count, 2)
    centre_x = np.array(CENTRES) + rng.uniform(-0.03, 0.03, shape)
    centre_y = 0.5 + rng.uniform(-0.12, 0.12, shape)
    size = BOX * rng.uniform(0.92 - 0.1 * strength, 1.06 + 0.08 * strength, shape)
    angle = strength * rng.normal(0, 0.12, shape)
    shear = strength * rng.normal(0, 0.13, shape)
    stretch = np.exp(strength * rng.normal(0, 0.08, shape))
    forward = np.empty((*shape, 2, 2))  # sample square [-1, 1] -> image [-1, 1]
    forward[..., 0, 0] = size * stretch * np.cos(angle)
    forward[..., 0, 1] = size * (stretch * np.cos(angle) * shear - np.sin(angle))
    forward[..., 1, 0] = size / stretch * np.sin(angle)
    forward[..., 1, 1] = size / stretch * (np.sin(angle) * shear + np.cos(angle))
    backward = np.linalg.inv(forward)
    centre = np.stack([2 * centre_x - 1, 2 * centre_y - 1], axis=-1)[..., None]
    return torch.from_numpy(np.concatenate([backward, -backward @ centre], axis=-1).astype(np.float32))


def render(
    pairs: np.ndarray,
    colours: np.ndarray,
    placements: torch.Tensor,
    *,
    side: int,
    warp: torch.Tensor | None = None,
    ink: torch.Tensor | None = None,
    shades: torch.Tensor | None = None,
    visible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Draw N scenes: float32 [N, 3, side, side] in 0 to 1.

    Args:
        pairs: samples, int [N, 2].
        colours: indices into COLOURS, int [N, 2].
        placements: of :func:`placement`, [N, 2, 2, 3].
        side: height and width of the image.
        warp: displacement of the sampling grid in the sample's square, [2N, 2, h, w], enlarged to ``side``.
        ink: thickness of each stroke, [N, 2], 1 for unchanged.
        shades: added to each digit's colour, [N, 2, 3].
        visible: bool [N, 2]; False leaves the digit out.
    """
    count = len(pairs)
    written = torch.from_numpy(samples()[0][pairs.reshape(-1)])[:, None]
    written = functional.pad(written, (PAD,) * 4)
    own = placements.reshape(-1, 2, 3) * (8 / (8 + 2 * PAD))
    grid = functional.affine_grid(own, [2 * count, 1, side, side], align_corners=False)
    if warp is not None:
        grid = grid + functional.interpolate(warp, (side, side), mode="bicubic").permute(0, 2, 3, 1)
    stroke = functional.grid_sample(written, grid, mode="bicubic", align_corners=False)
    stroke = stroke.reshape(count, 2, 1, side, side)
    if ink is not None:
        stroke = stroke * ink[..., None, None, None]
    if visible is not None:
        stroke = stroke * visible[..., None, None, None]
    cover = ((stroke - 0.14) / 0.62).clamp(0, 1)
    cover = cover * cover * (3 - 2 * cover)
    palette = torch.tensor(list(COLOURS.values()), dtype=torch.float32) / 255
    paint = palette[torch.from_numpy(colours)]
    if shades is not None:
        paint = (paint + shades).clamp(0, 1)
    image = (torch.tensor(BACKGROUND) / 255)[None, :, None, None].expand(count, 3, side, side)
    for place in range(2):
        image = image + cover[:, place] * (paint[:, place, :, None, None] - image)
    return image


def to_pil(pictures: torch.Tensor) -> list[Image.Image]:
    """Image tensors [N, 3, H, W] in 0 to 1 as RGB PIL images."""
    pixels = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(each) for each in pixels]
