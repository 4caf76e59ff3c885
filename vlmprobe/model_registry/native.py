"""Every decoder that transformers loads as an image-text-to-text model and that has a chat template."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from vlmprobe.adapter import Adapter
from vlmprobe.model_registry.model_kind import is_encoder_decoder
from vlmprobe.model_registry.registry import is_native

__all__ = ["Native"]

LEGACY = "return_legacy_image_output"  # of Video-LLaVA, which warns unless it is set to False


class Native(Adapter):
    """The conventions of transformers and nothing else; tried last."""

    generic = True

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        preprocess = getattr(getattr(processor, "image_processor", None), "preprocess", None)
        if preprocess is not None and LEGACY in inspect.signature(preprocess).parameters:
            self.processor_options = {LEGACY: False}

    @classmethod
    def handles(cls, config: Mapping[str, Any]) -> bool:
        """Whether the installed transformers has it as an image-text-to-text model, and it is no encoder-decoder."""
        return is_native(config.get("model_type")) and not is_encoder_decoder(config)
