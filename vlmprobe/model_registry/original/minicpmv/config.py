"""Translates MiniCPM-V's original ``config.json`` and ``preprocessor_config.json`` to the configuration here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from vlmprobe.errors import CheckpointError, near
from vlmprobe.model_registry.original.checkpoint import PREPROCESSOR, read_json
from vlmprobe.model_registry.original.fused_model import FusedConfig
from vlmprobe.model_registry.original.language import language_config
from vlmprobe.model_registry.original.minicpmv.releases import ImageRules, release_of
from vlmprobe.model_registry.original.minicpmv.vision import NavitConfig
from vlmprobe.model_registry.original.timm_towers import TimmTowerConfig, read_tower
from vlmprobe.model_registry.original.vision_blocks import ACTIVATIONS

__all__ = ["MiniCPMVConfig", "image_rules", "translate"]


TOWER = "vit_so400m_patch14_siglip_384"  # of 1.0 and 2.0
VISION_KEYS = (
    "hidden_size",
    "image_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
    "num_channels",
)


class MiniCPMVConfig(FusedConfig):
    """Sizes of the components, and the release, which determines how they work together."""

    model_type = "minicpmv"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig, "vision_config": PreTrainedConfig}

    release: str = "2.6"
    query_num: int = 64
    vision_batch: int = 16  # slices per forward of the tower (2.6 and later)
    pad_together: bool = True  # 2.5: strips of a conversation are padded to one length
    embedding_scale: float = 1.0  # of text embeddings only, not of image features
    head_divisor: float = 1.0  # of the input of the LM head


def translate(folder: Path, config: Mapping[str, Any]) -> MiniCPMVConfig:
    """The configuration of an original checkpoint folder.

    Raises:
        CheckpointError: for an unsupported version, or files that contradict each other.
    """
    release = release_of(config)
    language = language_config(release.language, config)
    scales: dict[str, Any] = {}
    vision: PreTrainedConfig
    if not release.strips:
        language.residual_multiplier = config.get("scale_depth", 1) / math.sqrt(language.num_hidden_layers)
        language.attention_multiplier = (language.hidden_size // language.num_attention_heads) ** -0.5
        scales["embedding_scale"] = config.get("scale_emb", 1)
        scales["head_divisor"] = language.hidden_size / config.get("dim_model_base", 1)
        vision = _named_tower(folder, config, release.title)
    else:
        vision = _vision(config)
    if config.get("init_vision", True) is not True:
        raise CheckpointError(
            f"{folder} sets init_vision to false: this {release.title} has no vision tower, so it reads no images."
        )
    if config.get("slice_mode", True) is not True:
        raise CheckpointError(f"{folder} sets slice_mode to false, which no release does: it is not supported.")
    return MiniCPMVConfig(
        release=release.version,
        text_config=language,
        vision_config=vision,
        query_num=config.get("query_num", 64),
        vision_batch=config.get("vision_batch_size", 16),
        pad_together=config.get("batch_vision_input", True),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        **scales,
    )


def _named_tower(folder: Path, config: Mapping[str, Any], title: str) -> TimmTowerConfig:
    named = str(config["vision_encoder"])
    if named.split(".")[0] != TOWER:
        raise CheckpointError(f"{folder} names the vision tower {named!r}; {title} supports only {TOWER}.")
    queries = config.get("query_num", 64)
    if math.isqrt(queries) ** 2 != queries:
        raise CheckpointError(f"{folder}: query_num is {queries}; in {title} the queries form a square grid.")
    return read_tower(folder, "vpm.", "siglip")


def _vision(config: Mapping[str, Any]) -> NavitConfig:
    given = config.get("vision_config") or {}
    try:
        vision = NavitConfig(**{key: given[key] for key in VISION_KEYS if key in given})
    except StrictDataclassError as error:
        raise CheckpointError(f"vision_config in config.json does not describe a vision tower: {error}") from error
    if vision.hidden_act not in ACTIVATIONS:
        raise CheckpointError(
            f"vision_config in config.json has hidden_act {vision.hidden_act!r}; supported are "
            f"{', '.join(ACTIVATIONS)}.{near(str(vision.hidden_act), ACTIVATIONS)}"
        )
    vision.num_hidden_layers -= bool(config.get("drop_vision_last_layer", True))
    return vision


def image_rules(folder: Path, config: Mapping[str, Any]) -> ImageRules:
    """How a checkpoint turns images into slices, pixels and placeholders.

    Raises:
        CheckpointError: for files that are missing or contradict each other.
    """
    held = read_json(folder / PREPROCESSOR) if release_of(config).strips else config
    queries = config.get("query_num", 64)
    if (stated := held.get("image_feature_size", queries)) != queries:
        raise CheckpointError(
            f"{folder}: config.json has query_num {queries} and preprocessor_config.json image_feature_size {stated}. "
            "Take both files from one checkpoint."
        )
    return ImageRules(
        max_slices=held.get("max_slice_nums", 9),
        resolution=held.get("scale_resolution", 448),
        patch=held.get("patch_size", 14),
        queries=queries,
        mean=tuple(held.get("norm_mean", (0.5, 0.5, 0.5))),
        std=tuple(held.get("norm_std", (0.5, 0.5, 0.5))),
        numbered=bool(held.get("use_image_id", False)),
        side=config.get("image_size", 448),
    )
