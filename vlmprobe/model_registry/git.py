"""GIT: the model itself puts the image before the text, at positions that no input id stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from torch import nn
from transformers import __version__

from vlmprobe.adapter import Adapter, Capabilities
from vlmprobe.errors import CapabilityError
from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.inputs.messages import Conversation
from vlmprobe.model_registry.no_chat import NoChat

__all__ = ["Git"]


class Git(NoChat):
    """The ids given to the model begin with one placeholder for each position of the image."""

    model_types = ("git",)
    capabilities = Capabilities(batching=False, several_images=False, images_first=True)

    def __init__(self, model: Any, processor: Any) -> None:
        from vlmprobe.model_registry.git_placeholders import with_placeholders

        _refuse_broken()
        super().__init__(with_placeholders(model), processor)

    @classmethod
    def load(cls, checkpoint: str | Path, *, config: Mapping[str, Any], **options: Any) -> Adapter:
        """As in the base class.

        Raises:
            CapabilityError: if the installed transformers cannot run the model.
        """
        _refuse_broken()
        return super().load(checkpoint, config=config, **options)

    def process(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """As in the base class, with placeholders before the text, and positions, which count text only.

        A placeholder has the id that begins the text, so that penalties on tokens of the prompt are those of its text.
        """
        inputs = super().process(conversations)
        count = self.model.image_positions(inputs.get("pixel_values"))
        ids = inputs["input_ids"]
        text = torch.arange(ids.shape[1]).expand_as(ids)
        return {
            **inputs,
            "input_ids": torch.cat([ids[:, :1].expand(-1, count), ids], dim=1),
            "attention_mask": nn.functional.pad(inputs["attention_mask"], (count, 0), value=1),
            "position_ids": nn.functional.pad(text, (count, 0)),
        }

    def spans(self, ids: np.ndarray, conversation: Conversation) -> tuple[ImageSpan, ...]:
        """The image's positions, which come first."""
        if not conversation.images:
            return ()
        pixels = self.processor.image_processor(list(conversation.images), return_tensors="pt")["pixel_values"]
        return (ImageSpan(0, 0, 0, self.model.image_positions(pixels)),)

    def extend(self, inputs: Mapping[str, Any], ids: torch.Tensor, drop: int = 0) -> dict[str, Any]:
        """As the base class; positions count on."""
        grown = super().extend(inputs, ids, drop)
        new = ids.shape[1]
        grown["position_ids"][:, -new:] = grown["position_ids"][:, -new - 1 : -new] + 1 + _counted(ids)
        return grown

    def continue_from(self, inputs: Mapping[str, Any], ids: torch.Tensor) -> dict[str, Any]:
        """As the base class, with the positions of the ids, which the cache's length does not tell."""
        return {"input_ids": ids, "position_ids": inputs["position_ids"][:, -1:] + 1 + _counted(ids)}

    @property
    def outer(self) -> Any:
        """The model without placeholders."""
        return self.model.inner

    @property
    def backbone(self) -> nn.Module:
        """Image encoder, embeddings and decoder layers."""
        return self.outer.git

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return self.outer.git.encoder.layer

    @property
    def final_norm(self) -> nn.Module:
        """Nothing: every layer ends in a norm of its own."""
        return nn.Identity()

    @property
    def image_encoder(self) -> tuple[nn.Module, str] | None:
        """The vision tower: its output is projected and put before the text."""
        return self.backbone, "image_encoder"


def _counted(ids: torch.Tensor) -> torch.Tensor:
    return torch.arange(ids.shape[1], device=ids.device)


def _refuse_broken() -> None:
    # Signatures and outputs do not show this before a run, so the version is checked.
    if Version(__version__) < Version("5.18"):
        raise CapabilityError(
            f"transformers {__version__} cannot continue a GIT prompt from its cache: it moves the position of every "
            "generated token by the length of the image. Install transformers 5.18 or later."
        )
