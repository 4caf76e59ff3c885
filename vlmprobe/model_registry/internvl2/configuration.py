"""config.json of the original format as transformers' configurations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import InternVLConfig, PreTrainedConfig

from vlmprobe.errors import CheckpointError, near
from vlmprobe.model_registry.language import language_config

__all__ = ["InternVL2Config", "translate"]

LANGUAGE_MODELS = {  # architecture -> model type in transformers
    "InternLM2ForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
}
VISION_FIELDS = {  # name in transformers -> (original name, the original's default: the 6B tower)
    "hidden_size": ("hidden_size", 3200),
    "num_hidden_layers": ("num_hidden_layers", 48),
    "num_attention_heads": ("num_attention_heads", 25),
    "intermediate_size": ("intermediate_size", 12800),
    "attention_bias": ("qkv_bias", False),
    "use_qk_norm": ("qk_normalization", True),
    "hidden_act": ("hidden_act", "gelu"),
    "norm_type": ("norm_type", "rms_norm"),
    "layer_norm_eps": ("layer_norm_eps", 1e-6),
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 14),
    "num_channels": ("num_channels", 3),
}
PIXEL_SHUFFLES = ("v1", "v2")


class InternVL2Config(InternVLConfig):
    """transformers' InternVL configuration, and which pixel shuffle the projector was trained with."""

    model_type = "internvl_chat"

    ps_version: str = "v2"  # v1 leaves the shuffled picture transposed


def translate(original: Mapping[str, Any], image_token_id: int) -> InternVL2Config:
    """The configuration of the model that an original config.json describes; absent fields have its defaults.

    Args:
        original: the object in config.json.
        image_token_id: id of ``<IMG_CONTEXT>``.

    Raises:
        CheckpointError: for a language model, pixel shuffle, layer or size that the original code does not know
            either, and for LoRA weights that are not merged.
    """
    vision = original.get("vision_config") or {}
    patch = int(vision.get("patch_size", 14))
    size = tile_size(original)
    ratio = float(original.get("downsample_ratio", 0.5))
    side = size // patch
    if size % patch or not 0 < ratio <= 1 or not (side * ratio).is_integer():
        raise CheckpointError(
            f"config.json gives tiles of {size} px, patches of {patch} px and a downsample ratio of {ratio}: "
            "the patches of a tile do not divide evenly."
        )
    shuffle = original.get("ps_version", "v1")
    if shuffle not in PIXEL_SHUFFLES:
        raise CheckpointError(
            f"config.json asks for ps_version {shuffle!r}; known are {', '.join(PIXEL_SHUFFLES)}."
            f"{near(str(shuffle), PIXEL_SHUFFLES)}"
        )
    if original.get("use_llm_lora") or original.get("use_backbone_lora"):
        raise CheckpointError("config.json says that LoRA weights stand beside the model's own: merge them first.")
    tower = _vision(vision)
    layer, layers = int(original.get("select_layer", -1)), int(tower["num_hidden_layers"])
    if not -layers - 1 <= layer <= layers:
        raise CheckpointError(f"config.json asks for select_layer {layer} of a vision tower with {layers} layers.")
    language = _language(original.get("llm_config") or {})
    try:
        return InternVL2Config(
            vision_config=tower,
            text_config=language,
            image_token_id=image_token_id,
            image_seq_length=int(side * ratio) ** 2,
            downsample_ratio=ratio,
            vision_feature_layer=layer,
            vision_feature_select_strategy="default",
            projector_hidden_act="gelu",
            tie_word_embeddings=False,
            ps_version=shuffle,
        )
    except StrictDataclassError as error:
        raise CheckpointError(f"config.json does not describe an InternVL2 model: {error}") from error


def tile_size(original: Mapping[str, Any]) -> int:
    """Side of a tile, pixels; it may differ from the size that the position embeddings were trained at."""
    vision = original.get("vision_config") or {}
    return int(original.get("force_image_size") or vision.get("image_size", VISION_FIELDS["image_size"][1]))


def _vision(original: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: original.get(source, default) for name, (source, default) in VISION_FIELDS.items()}
    return {**fields, "model_type": "internvl_vision", "use_mean_pooling": True}  # mean pooling: no norm at the end


def _language(original: Mapping[str, Any]) -> PreTrainedConfig:
    architecture = (original.get("architectures") or [None])[0]
    kind = LANGUAGE_MODELS.get(str(architecture))
    if kind is None:
        raise CheckpointError(
            f"config.json asks for the language model {architecture!r}; known are {', '.join(LANGUAGE_MODELS)}."
            f"{near(str(architecture), LANGUAGE_MODELS)}"
        )
    fields = {**original, "rope_scaling": _rope(original, kind), "bos_token_id": None, "eos_token_id": None}
    if architecture == "InternLM2ForCausalLM":
        fields["attention_bias"] = bool(original.get("bias", True))
    language = language_config(kind, fields)
    language.pad_token_id = None  # like the other two, a matter of the tokenizer
    language.tie_word_embeddings = False
    return language


def _rope(original: Mapping[str, Any], kind: str) -> dict[str, Any]:
    rope = dict(original.get("rope_scaling") or {})
    rope["rope_type"] = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    rope["rope_theta"] = float(original.get("rope_theta", 10000.0))
    if kind == "phi3" and rope["rope_type"] in ("su", "yarn"):
        trained = int(original.get("original_max_position_embeddings", 4096))
        factor = int(original.get("max_position_embeddings", 4096)) / trained
        if rope["rope_type"] == "yarn":  # Phi-3's own: the frequencies of longrope, another attention factor
            rope["attention_factor"] = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": trained, "factor": factor}
    return rope
