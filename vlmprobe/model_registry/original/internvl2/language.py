"""The language model inside InternVL: from ``llm_config`` to the configuration of a stock model of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from vlmprobe.errors import CheckpointError, near
from vlmprobe.model_registry.original.language import language_config

__all__ = ["LANGUAGE_MODELS", "language_model", "remove_biases"]

LANGUAGE_MODELS = {  # architecture -> model type in transformers
    "GptOssForCausalLM": "gpt_oss",
    "InternLM2ForCausalLM": "llama",
    "InternLM3ForCausalLM": "llama",
    "LlamaForCausalLM": "llama",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
EXPERTS = {  # fields of a mixture of experts
    "gpt_oss": ("num_local_experts", "num_experts_per_tok", "swiglu_limit", "layer_types"),
    "qwen3_moe": (
        "num_experts",
        "num_experts_per_tok",
        "moe_intermediate_size",
        "norm_topk_prob",
        "decoder_sparse_step",
        "mlp_only_layers",
    ),
}
GPT_OSS_ROPE = {  # of a config.json without rope_scaling
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def language_model(original: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of the language model that ``llm_config`` describes.

    The ids of special tokens are left out: the tokenizer defines them.

    Raises:
        CheckpointError: for a language model that is not supported, and for fields that are missing or wrong.
    """
    architecture = str((original.get("architectures") or [None])[0])
    kind = LANGUAGE_MODELS.get(architecture)
    if kind is None:
        raise CheckpointError(
            f"config.json has the language model {architecture!r}; supported are {', '.join(LANGUAGE_MODELS)}."
            f"{near(architecture, LANGUAGE_MODELS)}"
        )
    fields = {**original, **_rope(original, kind), "bos_token_id": None, "eos_token_id": None}
    if architecture == "InternLM2ForCausalLM":
        fields["attention_bias"] = bool(original.get("bias", True))
    if architecture == "InternLM3ForCausalLM":
        rest, inputs = bool(original.get("bias", False)), bool(original.get("qkv_bias", False))
        fields |= {"attention_bias": rest or inputs, "mlp_bias": rest}
    language = language_config(kind, fields, also=EXPERTS.get(kind, ()))
    language.tie_word_embeddings = bool(original.get("tie_word_embeddings", False))
    if architecture == "InternLM3ForCausalLM" and rest != inputs:
        language.without_bias = ["q_proj", "k_proj", "v_proj"] if rest else ["o_proj"]
    return language


def remove_biases(language: nn.Module, names: list[str]) -> None:
    """Take the biases of these projections out of every attention layer.

    InternLM3 has one switch for the biases of queries, keys and values, and one for all others; Llama, which it
    otherwise is, has one for all of attention.
    """
    for name, module in language.named_modules():
        if name.rpartition(".")[2] in names and isinstance(module, nn.Linear):
            module.register_parameter("bias", None)


def _rope(original: Mapping[str, Any], kind: str) -> dict[str, Any]:
    rope = dict(original.get("rope_scaling", GPT_OSS_ROPE if kind == "gpt_oss" else None) or {})
    rope["rope_type"] = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    theta = float(original.get("rope_theta", 150000.0 if kind == "gpt_oss" else 10000.0))
    return {"rope_scaling": {**rope, "rope_theta": theta}, "rope_theta": theta}
