"""The SigLIP tower of MiniCPM-V 2.5 and later, which reads slices of any shape as strips of patches.

A slice of rows x columns patches is passed as a strip [3, 14, 14 * L]: its patches side by side, row by row, then
zeros.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig

from vlmprobe.model_registry.original.vision_blocks import FeedForward

__all__ = ["NavitConfig", "NavitTower", "grid_positions", "patch_positions", "patches_mask"]

Grid = tuple[int, int]  # (rows, columns) of patches


def _buckets(length: int, side: int) -> torch.Tensor:
    """Which of the ``side`` stored positions each of ``length`` evenly spaced patches takes: [length] int64.

    The step is rounded to float32 first, as in the originals, which divide by a tensor: for patches that fall on the
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
    """Which patches of the strips are not padding: [n, longest] bool."""
    lengths = torch.tensor([rows * columns for rows, columns in grids])
    return torch.arange(longest) < lengths[:, None]


@strict  # reads the annotations, which therefore must not be strings in this module
class NavitConfig(PreTrainedConfig):
    """Sizes of the tower; the defaults are those of the original configuration class."""

    model_type = "vlmprobe_navit"

    hidden_size: int = 1152
    image_size: int = 980
    intermediate_size: int = 4304
    num_attention_heads: int = 16
    num_hidden_layers: int = 27
    patch_size: int = 14
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    num_channels: int = 3


class NavitTower(nn.Module):
    """The tower; position ids and patch mask are passed in."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.embeddings = nn.ModuleDict(
            {
                "patch_embedding": nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch),
                "position_embedding": nn.Embedding((config.image_size // patch) ** 2, width),
            }
        )
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})
        self.post_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self, pixel_values: torch.Tensor, position_ids: torch.Tensor, patches: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Encode strips.

        Args:
            pixel_values: [n, 3, 14, 14 * L].
            position_ids: [n, L].
            patches: [n, L] bool, True for patches to attend to; None for all.

        Returns:
            [n, L, hidden_size], final norm applied.
        """
        hidden = self.embeddings["patch_embedding"](pixel_values).flatten(2).transpose(1, 2)
        hidden = hidden + self.embeddings["position_embedding"](position_ids.to(hidden.device))
        mask = None if patches is None else patches.to(hidden.device)[:, None, None]
        for layer in self.encoder["layers"].children():
            hidden = layer(hidden, mask)
        return self.post_layernorm(hidden)


class Layer(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.self_attn = Attention(width, config.num_attention_heads)
        self.mlp = FeedForward(width, config.intermediate_size, config.hidden_act)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), mask)
        return hidden + self.mlp(self.layer_norm2(hidden))


class Attention(nn.Module):
    """Full attention under the mask [n, 1, 1, L]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        query, key, value = (
            project(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))
