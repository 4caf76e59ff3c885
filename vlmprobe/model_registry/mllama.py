"""Mllama (Llama 3.2 Vision): images enter by cross-attention, and their placeholder has no row in the LM head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vlmprobe.adapter import Adapter

__all__ = ["Mllama"]


class Mllama(Adapter):
    """An image takes a single position, whatever its size; the text attends to its tiles through a mask."""

    model_types = ("mllama",)

    @property
    def image_encoder(self) -> tuple[nn.Module, str] | None:
        """The vision tower: its output is projected and attended to, and replaces no embedding."""
        return self.backbone, "vision_model"

    def extend(self, inputs: Mapping[str, Any], ids: torch.Tensor, drop: int = 0) -> dict[str, Any]:
        """As the base class; new positions attend to the images that the last prompt position attends to."""
        grown = super().extend(inputs, ids, drop)
        if (mask := inputs.get("cross_attention_mask")) is not None:
            grown["cross_attention_mask"] = _longer(mask[:, : mask.shape[1] - drop], ids.shape[1])
        return grown

    def continue_from(self, inputs: Mapping[str, Any], ids: torch.Tensor) -> dict[str, Any]:
        """As the base class, with the image mask of the whole sequence, which ``forward`` slices itself."""
        arguments = super().continue_from(inputs, ids)
        if (mask := inputs.get("cross_attention_mask")) is not None:
            arguments["cross_attention_mask"] = _longer(mask, ids.shape[1]).expand(len(ids), -1, -1, -1)
        return arguments


def _longer(mask: torch.Tensor, count: int) -> torch.Tensor:
    """A mask [N, S, images, tiles] with its last row repeated ``count`` times."""
    return torch.cat([mask, mask[:, -1:].expand(-1, count, -1, -1)], dim=1)
