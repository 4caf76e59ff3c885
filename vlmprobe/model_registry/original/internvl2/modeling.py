"""InternVL2: InternViT, a pixel shuffle, a projector, and a stock language model."""

from __future__ import annotations

import torch
from torch import nn

from vlmprobe.model_registry.original.fused_model import FusedForConditionalGeneration, FusedModel
from vlmprobe.model_registry.original.internvl2.configuration import InternVL2Config
from vlmprobe.model_registry.original.internvl2.language import remove_biases
from vlmprobe.model_registry.original.internvl2.vision import InternViT

__all__ = ["InternVL2ForConditionalGeneration", "InternVL2Model", "pixel_shuffle"]

EPS = 1e-5  # of the projector's norm, whatever the tower's is


class InternVL2Model(FusedModel):
    """The backbone."""

    config_class = InternVL2Config

    def __init__(self, config: InternVL2Config) -> None:
        super().__init__(config)
        vision, width = config.vision_config, config.text_config.hidden_size
        shuffled = vision.hidden_size * round(1 / config.downsample_ratio) ** 2
        self.vision_tower = InternViT(vision, layers=config.vision_layers)
        self.projector = nn.Sequential(
            nn.LayerNorm(shuffled, eps=EPS), nn.Linear(shuffled, width), nn.GELU(), nn.Linear(width, width)
        )
        remove_biases(self.language_model, getattr(config.text_config, "without_bias", []))
        self.post_init()

    def image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features [tiles, Q, H] of tiles [tiles, 3, size, size]."""
        patches = self.vision_tower(pixel_values)
        side = round(patches.shape[1] ** 0.5)
        shuffled = pixel_shuffle(patches.unflatten(1, (side, side)), self.config.downsample_ratio)
        # v1 leaves the axes swapped: the projector of such a checkpoint was trained on the transposed grid
        ordered = shuffled if self.config.ps_version == "v2" else shuffled.transpose(1, 2)
        return self.projector(ordered.flatten(1, 2))


def pixel_shuffle(patches: torch.Tensor, ratio: float) -> torch.Tensor:
    """Merge neighbouring patches: [N, rows, columns, C] to [N, rows * ratio, columns * ratio, C / ratio**2].

    ``ratio`` is one over an integer; the channels of neighbours are concatenated row by row.
    """
    step = round(1 / ratio)
    count, rows, columns, width = patches.shape
    grouped = patches.reshape(count, rows // step, step, columns // step, step, width)
    return grouped.permute(0, 1, 3, 2, 4, 5).reshape(count, rows // step, columns // step, step * step * width)


class InternVL2ForConditionalGeneration(FusedForConditionalGeneration):
    """InternVL2 with its LM head."""

    config_class = InternVL2Config
    backbone_class = InternVL2Model
