"""Settings of tiny language models, as keyword arguments of transformers' configurations."""

from __future__ import annotations

from typing import Any

__all__ = ["decoder", "ids_of", "latent"]


def decoder(tokenizer: Any, *, layers: int = 3, heads: int = 4, width: int = 64, **settings: Any) -> dict[str, Any]:
    """Arguments of nearly every decoder's configuration: sizes, vocabulary and special ids.

    The vocabulary size is the tokenizer's unless ``settings`` override it.
    """
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": width + 32,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": 4096,
        **ids_of(tokenizer),
        **settings,
    }


def ids_of(tokenizer: Any) -> dict[str, int | None]:
    """The special ids that a configuration repeats from the tokenizer."""
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def latent(**more: Any) -> dict[str, Any]:
    """Multi-head latent attention and experts with a shared one, as in DeepSeek V3 and related models."""
    return {
        "num_key_value_heads": 4,
        "kv_lora_rank": 16,
        "q_lora_rank": None,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "moe_intermediate_size": 32,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        **more,
    }
