"""The language model's configuration from a flat original ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from vlmprobe.errors import CheckpointError

__all__ = ["language_config", "stretches"]

REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
OPTIONAL = (
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_scaling",
    "original_max_position_embeddings",
    "attention_bias",
    "mlp_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "bos_token_id",
    "eos_token_id",
)


def language_config(model_type: str, config: Mapping[str, Any], *, also: Iterable[str] = ()) -> PreTrainedConfig:
    """The configuration of the language model. Fields that name code or files are dropped.

    Args:
        model_type: its architecture in transformers.
        config: the original ``config.json``.
        also: further fields that this architecture has, taken where ``config`` has them.

    Raises:
        CheckpointError: for fields that are missing or of a wrong type.
    """
    missing = [name for name in REQUIRED if name not in config]
    if missing:
        raise CheckpointError(f"config.json lacks {', '.join(missing)}; download it again.")
    fields = {name: config[name] for name in (*REQUIRED, *OPTIONAL, *also) if name in config}
    # The tokenizer names the special tokens; the defaults of an architecture may lie beyond the vocabulary.
    fields = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")) | fields
    theta = config.get("rope_theta", 10000.0)
    if model_type == "phi3" and config.get("rope_scaling"):
        fields["rope_scaling"] = _phi3_rope(config)
    try:
        # Caching is not a property of the weights, so use_cache of config.json is ignored.
        return AutoConfig.for_model(model_type, **fields, rope_theta=theta, use_cache=True)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"config.json does not describe a {model_type} model: {error}") from error


def _phi3_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """``rope_scaling`` of Phi-3 under the name of today; releases until 3.5 call it ``su`` or ``yarn``."""
    rope = {name: value for name, value in config["rope_scaling"].items() if name != "type"}
    kind = rope.get("rope_type") or config["rope_scaling"].get("type")
    if kind not in ("su", "yarn"):
        return dict(config["rope_scaling"])
    trained = int(config.get("original_max_position_embeddings", 4096))
    factor = int(config.get("max_position_embeddings", 4096)) / trained
    if kind == "yarn":  # Phi-3's variant: the frequencies of longrope, another attention factor
        rope["attention_factor"] = 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0
    return rope | {"rope_type": "longrope", "original_max_position_embeddings": trained, "factor": factor}


def stretches(language: PreTrainedConfig) -> bool:
    """Whether rotary frequencies depend on the longest row of a batch, which changes the numbers of short rows."""
    rope = getattr(language, "rope_parameters", None) or {}
    return rope.get("rope_type") in ("dynamic", "longrope")
