"""Llama 4 and Nemotron-H Omni: the language model, head included, is a submodule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import __version__

from vlmprobe.adapter import Adapter
from vlmprobe.errors import CapabilityError

__all__ = ["Nested"]


class Nested(Adapter):
    """The top-level model inserts image features into the embeddings and passes them to a causal language model."""

    model_types = ("llama4", "nemotron_h_omni", "NemotronH_Nano_Omni_Reasoning_V3")

    def __init__(self, model: Any, processor: Any) -> None:
        _refuse_broken(model.config.model_type)
        super().__init__(model, processor)

    @classmethod
    def load(cls, checkpoint: str | Path, *, config: Mapping[str, Any], **options: Any) -> Adapter:
        """As in the base class.

        Raises:
            CapabilityError: if the installed transformers cannot run the model.
        """
        _refuse_broken(config.get("model_type"))
        return super().load(checkpoint, config=config, **options)

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


def _refuse_broken(model_type: Any) -> None:
    # Signatures and outputs do not show this before a run, so the version is checked.
    if model_type == "llama4" and __version__ == "5.24.0":
        raise CapabilityError(
            "transformers 5.24.0 cannot run llama4: its own forward fails ('MoeCausalLMOutputWithPast' object has no "
            "attribute 'image_outputs'). Install another version of transformers."
        )
