"""Vision towers that an original config only names (a timm model): their sizes are read from the weights.

For the two models in use, timm's own definition supplies what no weight shows: the number of heads and the kind of
block. Everything else (widths, depth, native grid) comes from the shapes in the checkpoint.
"""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from vlmprobe.errors import CheckpointError, MissingExtraError
from vlmprobe.model_registry.original.checkpoint import weight_files

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TimmTowerConfig", "build_tower", "read_tower"]

HEADS = 16  # of both models: so400m SigLIP (width 1152) and EVA02-E (width 1792)


class TimmTowerConfig(PreTrainedConfig):
    """Sizes of a timm vision transformer."""

    model_type = "vlmprobe_timm_tower"

    kind: str = "siglip"  # or "eva02": class token, post-norm residuals, no bias on keys
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 26
    patch_size: int = 14
    grid: int = 27  # side of the stored position embedding, in patches


def read_tower(folder: Path, prefix: str, kind: str) -> TimmTowerConfig:
    """Sizes of the tower whose weights begin with ``prefix``, from the shapes in the checkpoint.

    Raises:
        CheckpointError: a weight that determines a size is missing.
    """
    shapes = _shapes(folder, prefix)
    try:
        width, _, patch, _ = shapes["patch_embed.proj.weight"]
        tokens = shapes["pos_embed"][1] - (kind == "eva02")
        intermediate = shapes["blocks.0.mlp.fc1.weight"][0]
    except KeyError as error:
        raise CheckpointError(
            f"{folder} has no weight {prefix}{error.args[0]}, which determines the size of the vision tower."
        ) from error
    blocks = {int(found[1]) for name in shapes if (found := re.match(r"blocks\.(\d+)\.", name))}
    return TimmTowerConfig(
        kind=kind,
        hidden_size=width,
        intermediate_size=intermediate,
        num_hidden_layers=max(blocks) + 1,
        patch_size=patch,
        grid=math.isqrt(tokens),
    )


def build_tower(config: TimmTowerConfig) -> nn.Module:
    """The tower: from pixels [B, 3, H, W] to [B, prefix + H/patch * W/patch, hidden_size], final norm applied.

    Raises:
        MissingExtraError: timm is not installed.
    """
    try:
        from timm.models import Eva, VisionTransformer
    except ImportError as error:
        raise MissingExtraError("timm", "timm") from error
    sizes: dict[str, Any] = {
        "img_size": config.grid * config.patch_size,
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": HEADS,
        # timm truncates width * ratio; half a channel more prevents losing one to rounding
        "mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size,
        "num_classes": 0,
        "global_pool": "",
        "dynamic_img_size": True,
        "dynamic_img_pad": True,
    }
    if config.kind == "eva02":
        return Eva(**sizes, use_post_norm=True)
    return VisionTransformer(**sizes, class_token=False)


def _shapes(folder: Path, prefix: str) -> Mapping[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(folder):
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as weights:
                named = [name for name in weights.keys() if name.startswith(prefix)]  # noqa: SIM118 - no iterator
                shapes |= {name.removeprefix(prefix): tuple(weights.get_slice(name).get_shape()) for name in named}
        else:
            held = _bin_shapes(file)
            shapes |= {name.removeprefix(prefix): shape for name, shape in held.items() if name.startswith(prefix)}
    return shapes


def _bin_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        held = torch.load(file, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in held.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        raise CheckpointError(
            f"{file} contains something other than tensors, or is damaged ({type(error).__name__}); it is not loaded. "
            "Download it again, or use a safetensors version."
        ) from error
