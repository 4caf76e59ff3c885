"""The cross-attention resamplers of MiniCPM-V and OmniLMM: pool a grid of patch features to a fixed number of rows.

All releases share one cross-attention (:class:`Resampler`) and differ in where positions come from:

===============  ===================================  ==========================================
release          queries                              keys
===============  ===================================  ==========================================
OmniLMM-12B      stored grid                          stored grid, resized if the sizes differ
MiniCPM-V 1.0    stored grid                          stored grid, resized if the sizes differ
MiniCPM-V 2.0    stored grid                          sine-cosine of the patch's column and row
MiniCPM-V 2.5+   none                                 sine-cosine of the patch's column and row
===============  ===================================  ==========================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["HEAD_WIDTH", "AdaptiveResampler", "GridResampler", "Resampler", "sincos_grid"]

HEAD_WIDTH = 128  # every release has one attention head for each 128 channels
NORM_EPS = 1e-6


@lru_cache(maxsize=8)
def _sincos(length: int, width: int) -> torch.Tensor:
    """Sine-cosine codes [length, width] of the positions 0, 1, ...: sines first, then cosines; float32."""
    rates = 1.0 / 10000 ** (np.arange(width // 2, dtype=np.float32) / np.float32(width / 2))
    angles = np.arange(length, dtype=np.float32)[:, None] * rates.astype(np.float32)
    return torch.from_numpy(np.concatenate([np.sin(angles), np.cos(angles)], axis=1))


def sincos_grid(height: int, width: int, channels: int) -> torch.Tensor:
    """Position codes [height * width, channels] of a grid in row-major order, float32.

    The first half of the channels encodes the column and the second half the row: the originals name them the
    other way round but compute these numbers.
    """
    columns = _sincos(width, channels // 2).expand(height, width, -1)
    rows = _sincos(height, channels // 2).unsqueeze(1).expand(height, width, -1)
    return torch.cat([columns, rows], dim=-1).flatten(0, 1)


class Resampler(nn.Module):
    """One cross-attention from learned queries to patch features; positions are added to keys, never to values.

    Args:
        queries: Q, the output rows of each image or slice.
        hidden_size: D, width of the language model.
        kv_size: width of the vision tower.
    """

    def __init__(self, queries: int, hidden_size: int, kv_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.query = nn.Parameter(torch.zeros(queries, hidden_size))
        same = kv_size == hidden_size
        self.kv_proj = nn.Identity() if same else nn.Linear(kv_size, hidden_size, bias=False)
        self.attn = nn.MultiheadAttention(hidden_size, hidden_size // HEAD_WIDTH)
        self.ln_q = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.ln_kv = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.ln_post = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.proj = nn.Parameter(torch.zeros(hidden_size, hidden_size))

    def attend(
        self,
        features: torch.Tensor,
        key_positions: torch.Tensor,
        query_positions: torch.Tensor | None = None,
        padding: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Resample patch features.

        Args:
            features: [B, L, kv_size].
            key_positions: [B, L, D] or [1, L, D], added to the keys.
            query_positions: [Q, D], added to the queries.
            padding: [B, L] bool, True where a patch is padding.

        Returns:
            [B, Q, D].
        """
        values = self.ln_kv(self.kv_proj(features)).transpose(0, 1)
        keys = values + key_positions.to(values).transpose(0, 1)
        queries = self.ln_q(self.query).unsqueeze(1).expand(-1, values.shape[1], -1)
        if query_positions is not None:
            queries = queries + query_positions.unsqueeze(1)
        mixed = self.attn(queries, keys, values, key_padding_mask=padding, need_weights=False)[0]
        return self.ln_post(mixed.transpose(0, 1)) @ self.proj


class AdaptiveResampler(Resampler):
    """MiniCPM-V 2.5 and later: slices of any shape in one padded batch."""

    def forward(self, features: torch.Tensor, grids: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Resample [B, L, kv_size], where item b has rows x columns ``grids[b]`` and padding after; to [B, Q, D]."""
        lengths = torch.tensor([rows * columns for rows, columns in grids], device=features.device)
        padding = torch.arange(features.shape[1], device=features.device) >= lengths[:, None]
        positions = features.new_zeros(*features.shape[:2], self.hidden_size)
        for item, (rows, columns) in enumerate(grids):
            positions[item, : rows * columns] = sincos_grid(rows, columns, self.hidden_size).to(features)
        return self.attend(features, positions, padding=padding)


class GridResampler(Resampler):
    """OmniLMM and MiniCPM-V 1.0 and 2.0: the queries form a square grid whose position codes are stored.

    Args:
        queries: a square number.
        adaptive: keys take sine-cosine codes of their own grid (MiniCPM-V 2.0) instead of the stored grid.
    """

    def __init__(self, queries: int, hidden_size: int, kv_size: int, *, adaptive: bool) -> None:
        super().__init__(queries, hidden_size, kv_size)
        self.side = math.isqrt(queries)
        self.adaptive = adaptive
        self.pos_embed = nn.Parameter(torch.zeros(queries, hidden_size), requires_grad=False)

    def forward(self, features: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Resample [B, rows * columns, kv_size] with ``grid`` = (rows, columns) to [B, Q, D]."""
        positions = sincos_grid(*grid, self.hidden_size) if self.adaptive else self._stored(grid)
        return self.attend(features, positions.unsqueeze(0), query_positions=self.pos_embed)

    def _stored(self, grid: tuple[int, int]) -> torch.Tensor:
        if grid == (self.side, self.side):
            return self.pos_embed
        square = self.pos_embed.float().reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(square, size=grid, mode="bicubic", align_corners=False)
        return resized.permute(0, 2, 3, 1).flatten(0, 2).to(self.pos_embed.dtype)
