"""Families whose language model, head included, is one module inside the whole: Llama 4 and Nemotron-H Omni."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vlmprobe.adapter import Adapter

__all__ = ["Nested"]


class Nested(Adapter):
    """The whole puts image features into the embeddings and hands them on to a causal language model."""

    @classmethod
    def handles(cls, config: Mapping[str, Any]) -> bool:
        """Whether the model type is one of those."""
        return config.get("model_type") in ("llama4", "nemotron_h_omni", "NemotronH_Nano_Omni_Reasoning_V3")

    @property
    def outer(self) -> Any:
        """The causal language model."""
        return self.model.language_model

    @property
    def backbone(self) -> Any:
        """The decoder inside it."""
        return self.outer.model

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return self.backbone.layers

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last decoder layer."""
        return self.backbone.norm_f if hasattr(self.backbone, "norm_f") else self.backbone.norm
