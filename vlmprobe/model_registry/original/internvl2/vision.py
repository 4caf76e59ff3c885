"""InternViT, the vision tower of InternVL: 300M parameters (layer norms) or 6B (RMS norms on queries and keys too)."""

from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig

from vlmprobe.model_registry.original.vision_blocks import FeedForward

__all__ = ["NORMS", "InternViT", "InternViTConfig"]

NORMS = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}


@strict  # reads the annotations, which therefore must not be strings in this module
class InternViTConfig(PreTrainedConfig):
    """Sizes of the tower, under the names of the original ``vision_config``; the defaults are those of the 6B tower."""

    model_type = "vlmprobe_intern_vit"

    hidden_size: int = 3200
    num_hidden_layers: int = 48
    num_attention_heads: int = 25
    intermediate_size: int = 12800
    qkv_bias: bool = False
    qk_normalization: bool = True
    hidden_act: str = "gelu"
    norm_type: str = "rms_norm"
    layer_norm_eps: float = 1e-6
    image_size: int = 224  # image side, pixels, that the stored position embeddings cover
    patch_size: int = 14
    num_channels: int = 3


class InternViT(nn.Module):
    """From pixels to patch features, without a final norm.

    Args:
        config: of the tower.
        layers: how many of its layers run; the others keep their weights and never run.
    """

    def __init__(self, config: Any, layers: int) -> None:
        super().__init__()
        self.used = layers
        self.embeddings = Embeddings(config)
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))})

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features [B, rows * columns, D] of images [B, 3, H, W], the class token left out."""
        hidden = self.embeddings(pixel_values)
        for layer in islice(self.encoder["layers"].children(), self.used):
            hidden = layer(hidden)
        return hidden[:, 1:]


class Embeddings(nn.Module):
    """Patch embeddings after a class token, plus position embeddings, resized if the image has another size."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.side = config.image_size // patch
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch)
        self.position_embedding = nn.Parameter(torch.zeros(1, self.side**2 + 1, width))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(pixel_values)  # [B, D, rows, columns]
        positions = self._positions(patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        return torch.cat([self.class_embedding.expand(len(patches), -1, -1), patches], dim=1) + positions

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        held = self.position_embedding
        if (rows, columns) == (self.side, self.side):
            return held
        # In float32, whatever the type of the weights.
        grid = held[:, 1:].float().reshape(1, self.side, self.side, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([held[:, :1], grid.flatten(2).transpose(1, 2).to(held.dtype)], dim=1)


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each scaled per channel before it is added."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, norm = config.hidden_size, partial(NORMS[config.norm_type], eps=config.layer_norm_eps)
        self.norm1, self.norm2 = norm(width), norm(width)
        self.ls1, self.ls2 = nn.Parameter(torch.ones(width)), nn.Parameter(torch.ones(width))
        self.attn = Attention(config)
        self.mlp = FeedForward(width, config.intermediate_size, config.hidden_act)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attn(self.norm1(hidden)) * self.ls1
        return hidden + self.mlp(self.norm2(hidden)) * self.ls2


class Attention(nn.Module):
    """Full attention; queries and keys are normalised, if at all, over all heads at once."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        self.q_norm: nn.Module
        self.k_norm: nn.Module
        if config.qk_normalization:  # RMS norms, whichever norm the layers have
            self.q_norm, self.k_norm = (nn.RMSNorm(width, eps=config.layer_norm_eps) for _ in range(2))
        else:
            self.q_norm = self.k_norm = nn.Identity()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        heads = [
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.q_norm(query), self.k_norm(key), value)
        ]
        return self.proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
