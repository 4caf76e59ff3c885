"""Translates config.json of the original format to the configuration of the model here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from vlmprobe.errors import CheckpointError, near
from vlmprobe.model_registry.original.fused_model import FusedConfig
from vlmprobe.model_registry.original.internvl2.language import language_model
from vlmprobe.model_registry.original.internvl2.releases import require_supported
from vlmprobe.model_registry.original.internvl2.vision import NORMS, InternViTConfig
from vlmprobe.model_registry.original.vision_blocks import ACTIVATIONS

__all__ = ["InternVL2Config", "translate"]

VISION_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "qkv_bias",
    "qk_normalization",
    "hidden_act",
    "norm_type",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
)
PIXEL_SHUFFLES = ("v1", "v2")


class InternVL2Config(FusedConfig):
    """Sizes of the components, and how the tower's patches become positions of the language model."""

    model_type = "internvl_chat"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig, "vision_config": InternViTConfig}

    image_seq_length: int = 256  # positions of a tile
    downsample_ratio: float = 0.5
    vision_layers: int = 24  # number of tower layers to run; the output of the last of them is used
    ps_version: str = "v2"  # v1 leaves the shuffled grid transposed


def translate(original: Mapping[str, Any]) -> InternVL2Config:
    """The configuration of the model that an original config.json describes; absent fields get the original's defaults.

    Args:
        original: the object in config.json.

    Raises:
        CheckpointError: for a release that is not supported; for a language model, pixel shuffle, layer or size that
            the original code does not support either; and for LoRA weights that are not merged.
    """
    require_supported(original)
    vision = original.get("vision_config") or {}
    patch = int(vision.get("patch_size", 14))
    size = tile_size(original)
    ratio = float(original.get("downsample_ratio", 0.5))
    side = size // patch
    if size % patch or not 0 < ratio <= 1 or not (1 / ratio).is_integer() or not (side * ratio).is_integer():
        raise CheckpointError(
            f"config.json gives tiles of {size} px, patches of {patch} px and a downsample ratio of {ratio}: "
            "the patches of a tile do not divide evenly."
        )
    shuffle = original.get("ps_version", "v1")
    if shuffle not in PIXEL_SHUFFLES:
        raise CheckpointError(
            f"config.json has ps_version {shuffle!r}; supported are {', '.join(PIXEL_SHUFFLES)}."
            f"{near(str(shuffle), PIXEL_SHUFFLES)}"
        )
    if original.get("use_llm_lora") or original.get("use_backbone_lora"):
        raise CheckpointError("config.json declares LoRA weights apart from the model's own: merge them first.")
    tower = _vision(vision)
    layer, layers = int(original.get("select_layer", -1)), tower.num_hidden_layers
    if not -layers - 1 <= layer <= layers:
        raise CheckpointError(f"config.json has select_layer {layer} for a vision tower with {layers} layers.")
    language = language_model(original.get("llm_config") or {})
    try:
        return InternVL2Config(
            vision_config=tower,
            text_config=language,
            image_seq_length=int(side * ratio) ** 2,
            downsample_ratio=ratio,
            vision_layers=layer if layer >= 0 else layers + 1 + layer,  # state 0 is the input of the first layer
            tie_word_embeddings=language.tie_word_embeddings,
            ps_version=shuffle,
        )
    except StrictDataclassError as error:
        raise CheckpointError(f"config.json does not describe an InternVL2 model: {error}") from error


def tile_size(original: Mapping[str, Any]) -> int:
    """Side of a tile, pixels; it may differ from the size that the position embeddings were trained for."""
    vision = original.get("vision_config") or {}
    return int(original.get("force_image_size") or vision.get("image_size", InternViTConfig.image_size))


def _vision(original: Mapping[str, Any]) -> InternViTConfig:
    try:
        tower = InternViTConfig(**{name: original[name] for name in VISION_FIELDS if name in original})
    except StrictDataclassError as error:
        raise CheckpointError(f"vision_config in config.json does not describe a vision tower: {error}") from error
    for name, known in (("hidden_act", ACTIVATIONS), ("norm_type", NORMS)):
        if (asked := getattr(tower, name)) not in known:
            raise CheckpointError(
                f"vision_config in config.json has {name} {asked!r}; supported are {', '.join(known)}."
                f"{near(str(asked), known)}"
            )
    return tower
