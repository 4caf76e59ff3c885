"""Prompts and images of a fused model as one left-padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from vlmprobe.adapter import EncodedPrompt

__all__ = ["ImageTiles", "sequence_inputs", "stack"]


@dataclass(frozen=True, kw_only=True)
class ImageTiles:
    """One image as the vision side receives it, and the positions that its features take in the prompt."""

    pixels: torch.Tensor | Sequence[torch.Tensor]  # float32, P tiles: [P, ...], or P tensors of different sizes
    positions: Sequence[int]  # of each span, in the order of the prompt; their sum is the number of feature rows
    sizes: Sequence[tuple[int, int]] = ()  # two numbers for each tile that the model needs, such as rows and columns


def stack(images: Sequence[ImageTiles]) -> torch.Tensor:
    """The tiles of all images as one tensor [P, ...], each zero-padded at its end to the largest of every dimension."""
    tiles = [tile for image in images for tile in image.pixels]
    shape = [max(sides) for sides in zip(*(tile.shape for tile in tiles), strict=True)]
    return torch.stack([F.pad(tile, _to(shape, tile)) for tile in tiles])


def _to(shape: Sequence[int], tile: torch.Tensor) -> list[int]:
    missing = (whole - held for whole, held in zip(reversed(shape), reversed(tile.shape), strict=True))
    return [each for more in missing for each in (0, more)]


def sequence_inputs(
    prompts: Sequence[EncodedPrompt], *, pad_id: int = 0, hidden_id: int | None = None
) -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and, if there are images, ``image_index``, each [N, S] int64.

    Args:
        prompts: N prompts; their spans take the feature rows of the batch in order.
        pad_id: the id for left padding.
        hidden_id: a token id that the original masks from attention wherever it occurs.
    """
    length = max(len(prompt.ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    image_index = torch.zeros_like(input_ids)
    rows = 0
    for item, prompt in enumerate(prompts):
        start = length - len(prompt.ids)
        ids = torch.from_numpy(prompt.ids)
        input_ids[item, start:] = ids
        attention_mask[item, start:] = 1 if hidden_id is None else (ids != hidden_id).long()
        for span in prompt.spans:
            taken = span.stop - span.start
            image_index[item, start + span.start : start + span.stop] = torch.arange(rows + 1, rows + taken + 1)
            rows += taken
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    return {**inputs, "image_index": image_index} if rows else inputs
