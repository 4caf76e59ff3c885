"""MiniCPM-V: vision tower, resampler and a stock language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from vlmprobe.model_registry.original.fused_model import FusedForConditionalGeneration, FusedModel
from vlmprobe.model_registry.original.minicpmv.config import MiniCPMVConfig
from vlmprobe.model_registry.original.minicpmv.releases import RELEASES
from vlmprobe.model_registry.original.minicpmv.vision import NavitTower, grid_positions, patch_positions, patches_mask
from vlmprobe.model_registry.original.resampler import AdaptiveResampler, GridResampler
from vlmprobe.model_registry.original.timm_towers import build_tower

__all__ = ["MiniCPMVForConditionalGeneration", "MiniCPMVModel"]

Grid = tuple[int, int]  # (rows, columns) of patches


class MiniCPMVModel(FusedModel):
    """The backbone."""

    config_class = MiniCPMVConfig

    def __init__(self, config: MiniCPMVConfig) -> None:
        super().__init__(config)
        self.release = RELEASES[config.release]
        sizes = config.query_num, config.text_config.hidden_size, config.vision_config.hidden_size
        self.vision_tower: nn.Module
        self.resampler: nn.Module
        if self.release.strips:
            self.vision_tower = NavitTower(config.vision_config)
            self.resampler = AdaptiveResampler(*sizes)
        else:
            self.vision_tower = build_tower(config.vision_config)
            self.resampler = GridResampler(*sizes, adaptive=not self.release.square)
        self.post_init()

    def embed(self, input_ids: torch.Tensor | None) -> torch.Tensor:
        """Text embeddings [N, S, H], scaled in 1.0 and 2.0."""
        embeds = super().embed(input_ids)
        return embeds if self.config.embedding_scale == 1 else embeds * self.config.embedding_scale

    def image_features(
        self, pixel_values: torch.Tensor, *, tgt_sizes: torch.Tensor, owners: torch.Tensor
    ) -> torch.Tensor:
        """Features [P, Q, H] of P slices.

        Args:
            pixel_values: strips [P, 3, 14, 14 * L], or before 2.5 images [P, 3, H, W]; each slice zero-padded.
            tgt_sizes: [P, 2], rows and columns of patches.
            owners: [P], the conversation of each slice.
        """
        grids = [(rows, columns) for rows, columns in tgt_sizes.tolist()]
        if not self.release.strips:
            features = [self._alone(pixel_values[item], grid) for item, grid in enumerate(grids)]
        else:
            features = [
                self._together(pixel_values[start:stop], grids[start:stop])
                for start, stop in self._batches(grids, owners.tolist())
            ]
        return torch.cat(features)

    def _alone(self, pixels: torch.Tensor, grid: Grid) -> torch.Tensor:
        patch = self.config.vision_config.patch_size
        encoded = self.vision_tower(pixels[None, :, : grid[0] * patch, : grid[1] * patch])
        return self.resampler(encoded, grid)

    def _together(self, strips: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        vision = self.config.vision_config
        longest = max(rows * columns for rows, columns in grids)
        place = grid_positions if self.release.patch_mask else patch_positions
        encoded = self.vision_tower(
            strips[..., : longest * vision.patch_size],
            place(grids, longest, vision.image_size // vision.patch_size),
            patches_mask(grids, longest) if self.release.patch_mask else None,
        )
        return self.resampler(encoded, grids)

    def _batches(self, grids: Sequence[Grid], owners: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Which slices are padded together.

        In 2.5 padding is attended to, so a slice's features depend on the longest slice of its call. Each conversation
        is one call, so that it gets the same numbers in a batch as alone.
        """
        start = 0
        for stop in range(1, len(grids) + 1):
            if stop == len(grids) or self._divides(owners, start, stop):
                yield start, stop
                start = stop

    def _divides(self, owners: Sequence[int], start: int, stop: int) -> bool:
        if self.release.patch_mask:
            return stop - start == self.config.vision_batch
        return not self.config.pad_together or owners[stop] != owners[start]


class MiniCPMVForConditionalGeneration(FusedForConditionalGeneration):
    """MiniCPM-V with its LM head."""

    config_class = MiniCPMVConfig
    backbone_class = MiniCPMVModel

    def enter_head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Divided in 1.0 and 2.0, before the head as in the original, so that low precision rounds the same way."""
        return hidden if self.config.head_divisor == 1 else hidden / self.config.head_divisor
