"""GIT with placeholders for its image, so that ids, positions and logits are those of one sequence."""

from __future__ import annotations

from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel

__all__ = ["WithPlaceholders", "with_placeholders"]


class WithPlaceholders(PreTrainedModel, GenerationMixin):
    """A GIT model that takes placeholders for the image's positions, so that ids and logits have equal length.

    Everything else is the model's own: it is called, not copied.
    """

    main_input_name = "input_ids"
    _supports_sdpa = _supports_flash_attn = True  # the attention that the model was loaded with is kept

    def __init__(self, inner: Any) -> None:
        super().__init__(inner.config)
        self.inner = inner
        self._given: GenerationConfig | None = None
        self.training = inner.training

    @property
    def generation_config(self) -> Any:
        """That of the model, unless this copy was given another."""
        return self.inner.generation_config if self._given is None else self._given

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self._given = config

    def get_input_embeddings(self) -> nn.Module:
        """Those of the model."""
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        """The head of the model."""
        return self.inner.get_output_embeddings()

    def image_positions(self, pixels: torch.Tensor | None) -> int:
        """How many positions the model puts before the text for ``pixels`` [N, C, H, W]: patches and a class token."""
        side = self.config.vision_config.patch_size
        return 0 if pixels is None else (pixels.shape[-2] // side) * (pixels.shape[-1] // side) + 1

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **rest: Any,
    ) -> Any:
        """The model's output for ids [N, S] and positions [N, S], of which an image's come first.

        The mask is left out: prompts are not padded, and on a cache the model would widen it by an image.
        """
        count = self.image_positions(pixel_values)
        # Embedded here with the placeholders, so that a hook on the embeddings sees one row per position.
        embedded = self.get_input_embeddings()(input_ids)[:, count:]
        given = {**rest, "pixel_values": pixel_values, "logits_to_keep": logits_to_keep}
        return self.inner(inputs_embeds=embedded, position_ids=position_ids[:, count:], **given)


_MADE: WeakValueDictionary[int, WithPlaceholders] = WeakValueDictionary()


def with_placeholders(inner: Any) -> WithPlaceholders:
    """The one instance for a model, so that all probes of the model share its lock."""
    made = _MADE.get(id(inner))  # which keeps its model alive, so that no other has this id
    if made is None:
        made = _MADE[id(inner)] = WithPlaceholders(inner)
    return made
