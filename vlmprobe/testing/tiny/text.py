"""Settings of tiny language models, as keyword arguments of transformers' configurations."""

from __future__ import annotations

from typing import Any

__all__ = ["decoder", "ids_of"]


def decoder(tokenizer: Any, *, layers: int = 3, heads: int = 4, width: int = 64, **settings: Any) -> dict[str, Any]:
    """What nearly every decoder's configuration takes: sizes, vocabulary and special ids.

    The vocabulary is the tokenizer's unless ``settings`` say otherwise.
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
    """The special ids that a configuration repeats."""
    return {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
