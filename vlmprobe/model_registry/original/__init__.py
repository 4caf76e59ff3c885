"""Families in original checkpoint formats, and what an adapter of such a family is made of.

A model whose code ships with its checkpoint needs an :class:`OriginalAdapter` and a :class:`FusedModel`; the names
below are for packages that add one. They are imported when first used, so that an installed adapter loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vlmprobe.model_registry.original.adapter import OriginalAdapter, OriginalProcessor

if TYPE_CHECKING:
    from vlmprobe.model_registry.original.checkpoint import load_weights, read_json
    from vlmprobe.model_registry.original.fused_inputs import ImageTiles, sequence_inputs, stack
    from vlmprobe.model_registry.original.fused_model import FusedConfig, FusedForConditionalGeneration, FusedModel
    from vlmprobe.model_registry.original.language import language_config
    from vlmprobe.model_registry.original.tokenizer import original_tokenizer, token_id

__all__ = [
    "FusedConfig",
    "FusedForConditionalGeneration",
    "FusedModel",
    "ImageTiles",
    "OriginalAdapter",
    "OriginalProcessor",
    "language_config",
    "load_weights",
    "original_tokenizer",
    "read_json",
    "sequence_inputs",
    "stack",
    "token_id",
]

PLACES = {
    "FusedConfig": "fused_model",
    "FusedForConditionalGeneration": "fused_model",
    "FusedModel": "fused_model",
    "ImageTiles": "fused_inputs",
    "language_config": "language",
    "load_weights": "checkpoint",
    "original_tokenizer": "tokenizer",
    "read_json": "checkpoint",
    "sequence_inputs": "fused_inputs",
    "stack": "fused_inputs",
    "token_id": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
