"""The SigLIP tower of MiniCPM-V 2.5 and later, which reads slices of any shape as strips of patches.

A slice of rows x columns patches arrives as a strip [3, 14, 14 * L]: its patches side by side, row by row, then
zeros. Weights and layers are those of Idefics2's tower; the positions are not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.idefics2.modeling_idefics2 import Idefics2VisionTransformer

__all__ = ["NavitTower", "grid_positions", "patch_positions", "patches_mask"]

Grid = tuple[int, int]  # (rows, columns) of patches


def _buckets(length: int, side: int) -> torch.Tensor:
    """Which of the ``side`` stored positions each of ``length`` evenly spaced patches takes: [length] int64.

    The step is rounded to float32 first, as where the originals divide by a tensor: at patches that fall on the
    boundary of two positions the rounding decides.
    """
    boundaries = torch.arange(1 / side, 1.0, 1 / side)
    step = torch.tensor(1.0).div(length).item()
    return torch.bucketize(torch.arange(0, 1 - 1e-6, step), boundaries, right=True)


def grid_positions(grids: Sequence[Grid], longest: int, side: int) -> torch.Tensor:
    """Position ids [n, longest] of slices (2.6 and later): row and column of each patch in the stored grid."""
    ids = torch.zeros(len(grids), longest, dtype=torch.long)
    for item, (rows, columns) in enumerate(grids):
        ids[item, : rows * columns] = (_buckets(rows, side)[:, None] * side + _buckets(columns, side)).flatten()
    return ids


def patch_positions(grids: Sequence[Grid], longest: int, side: int) -> torch.Tensor:
    """Position ids [n, longest] of slices in 2.5: the strip as one row of patches, padding included."""
    return _buckets(longest, side).expand(len(grids), -1)


def patches_mask(grids: Sequence[Grid], longest: int) -> torch.Tensor:
    """Which patches of the strips are there and no padding: [n, longest] bool."""
    lengths = torch.tensor([rows * columns for rows, columns in grids])
    return torch.arange(longest) < lengths[:, None]


class NavitTower(Idefics2VisionTransformer):
    """Idefics2's vision tower with position ids and patch mask given."""

    def forward(
        self, pixel_values: torch.Tensor, position_ids: torch.Tensor, patches: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Encode strips.

        Args:
            pixel_values: [n, 3, 14, 14 * L].
            position_ids: [n, L].
            patches: [n, L] bool, what may be attended to; None for everything.

        Returns:
            [n, L, hidden_size], final norm applied.
        """
        embeds = self.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        embeds = embeds + self.embeddings.position_embedding(position_ids.to(embeds.device))
        if patches is not None:
            patches = patches.to(embeds.device)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=embeds, attention_mask=patches)
        return self.post_layernorm(self.encoder(inputs_embeds=embeds, attention_mask=mask).last_hidden_state)
