"""Settings of tiny vision towers, as keyword arguments of transformers' configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["MEAN_STD", "square", "tower"]

MEAN_STD = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def tower(
    *,
    layers: int = 2,
    heads: int = 2,
    width: int = 32,
    image: int | Sequence[int] = 32,
    patch: int | Sequence[int] = 8,
    **more: Any,
) -> dict[str, Any]:
    """Arguments of CLIP-like towers: ``(image / patch) ** 2`` patches of ``patch`` pixels."""
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
        **more,
    }


def square(side: int) -> dict[str, int]:
    """A square size in the format of image processors."""
    return {"height": side, "width": side}
