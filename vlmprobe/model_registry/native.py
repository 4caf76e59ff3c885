"""Every checkpoint that transformers loads as an image-text-to-text model and that has a chat template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmprobe.adapter import Adapter
from vlmprobe.model_registry.registry import known_model_types

__all__ = ["Native"]


class Native(Adapter):
    """The conventions of transformers and nothing else; asked last."""

    generic = True

    @classmethod
    def handles(cls, config: Mapping[str, Any]) -> bool:
        """Whether the model type is an image-text-to-text model of the installed transformers."""
        return config.get("model_type") in known_model_types()
