"""The part of a flat original ``config.json`` that describes the language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["language_config"]

KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "original_max_position_embeddings",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
)


def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the language model's configuration class; nothing that names code or files goes through."""
    return {key: config[key] for key in KEYS if key in config}
