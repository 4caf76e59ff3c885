"""Chameleon, BLIP-2, InstructBLIP and Kosmos-2: families from before chat templates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vlmprobe.adapter import Adapter, Capabilities
from vlmprobe.errors import CapabilityError
from vlmprobe.inputs.chat_templates import templates_of
from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.inputs.messages import Conversation, TextPart

__all__ = ["Chameleon", "Kosmos2", "NoChat", "QueryTransformer"]


class NoChat(Adapter):
    """Asked plainly: the processor gets the text of the one user message, and its images.

    ``meta["chat_template"]`` is then None. A chat template that was put on the processor is used, as everywhere.
    """

    image_text = ""  # what stands for an image in the text; empty if the processor puts it in itself

    @property
    def plain(self) -> bool:
        """Whether there is no chat template."""
        return not templates_of(self.processor, self.tokenizer)

    def asked_plainly(self, conversation: Conversation) -> bool:
        """Whether a conversation is written without a chat template."""
        format = conversation.format
        return format.raw_prompt or (self.plain and format.chat_template is None)

    def facts(self, conversation: Conversation | None = None) -> dict[str, Any]:
        """``chat_template`` is None for a prompt without one."""
        plain = self.plain if conversation is None else self.asked_plainly(conversation)
        return {**super().facts(conversation), **({"chat_template": None} if plain else {})}

    def check(self, conversation: Conversation) -> None:
        """As the base class; without a chat template, a conversation is one user message."""
        super().check(conversation)
        if self.asked_plainly(conversation) and [message.role for message in conversation.messages] != ["user"]:
            raise CapabilityError(
                f"{self.model.config.model_type} has no chat template, so it takes one user message, without turns "
                "before or after it: put everything into its text, or pass chat_template=."
            )

    def check_format(self, conversation: Conversation) -> None:
        """As the base class; without a chat template nothing reads its arguments."""
        if not self.asked_plainly(conversation):
            super().check_format(conversation)
        elif conversation.format.chat_template_kwargs or conversation.format.tools:
            raise CapabilityError(
                f"{self.model.config.model_type} is asked without a chat template, so nothing reads "
                "chat_template_kwargs or tools: leave them out, or pass chat_template=."
            )

    def render(self, conversations: Sequence[Conversation]) -> list[str]:
        """The text that the processor is given for each conversation."""
        if not self.asked_plainly(conversations[0]):
            return super().render(conversations)
        return [self._plain_text(each) for each in conversations]

    def _plain_text(self, conversation: Conversation) -> str:
        written = conversation.format.raw_prompt and self.writes_images(conversation)
        mark = "" if written else self.image_text
        parts = [part for message in conversation.messages for part in message.parts]
        return "".join(part.text if isinstance(part, TextPart) else mark for part in parts)

    def process(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """What the processor makes of texts and images."""
        if not self.asked_plainly(conversations[0]):
            return super().process(conversations)
        images = [image for conversation in conversations for image in conversation.images]
        pad = {"padding": True, "padding_side": "left"} if len(conversations) > 1 else {}
        options = {**({"images": images} if images else {}), **self.processor_options, **pad}
        return dict(self.processor(text=self.render(conversations), return_tensors="pt", **options))

    def tokenize(self, text: str) -> list[int]:
        """Ids of a prompt that is written out with its special tokens, as the ids of a plain prompt decode."""
        if not self.plain:
            return super().tokenize(text)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


class Chameleon(NoChat):
    """Chameleon: images become tokens of a codebook; the processor ends a prompt in a separator."""

    model_types = ("chameleon",)

    @property
    def image_text(self) -> str:  # type: ignore[override]
        """The token that the processor replaces by the image's positions."""
        return str(self.processor.image_token)


class QueryTransformer(NoChat):
    """BLIP-2 and InstructBLIP: a fixed number of queries read the image, and come before the text.

    The language model, head included, is a submodule, as that of any causal language model.
    """

    model_types = ("blip-2", "instructblip")
    # The processor pads between image and text.
    capabilities = Capabilities(batching=False, several_images=False, text_only=False, images_first=True)

    def __init__(self, model: Any, processor: Any) -> None:
        _require_decoder(model.config.to_dict())
        super().__init__(model, processor)

    @classmethod
    def load(cls, checkpoint: str | Path, *, config: Mapping[str, Any], **options: Any) -> Adapter:
        """As in the base class.

        Raises:
            CapabilityError: if the language model is an encoder-decoder.
        """
        _require_decoder(config)
        return super().load(checkpoint, config=config, **options)

    @property
    def outer(self) -> Any:
        """The causal language model."""
        return self.model.language_model

    @property
    def backbone(self) -> nn.Module:
        """The decoder inside it; OPT's stands in another module."""
        decoder = self.outer.get_decoder()
        return getattr(decoder, "decoder", decoder)

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return self.backbone.layers  # type: ignore[return-value]

    @property
    def final_norm(self) -> nn.Module:
        """From the last decoder layer to the head: one norm, or in OPT a norm and a projection, or either."""
        decoder: Any = self.backbone
        if hasattr(decoder, "norm"):
            return decoder.norm
        return nn.Sequential(*(each for each in (decoder.final_layer_norm, decoder.project_out) if each is not None))


class Kosmos2(NoChat):
    """Kosmos-2: images are read by queries, and stand between two markers.

    An image is as many positions as the model has queries; a mask says where it is.
    """

    model_types = ("kosmos-2",)
    # After the prefill of a batch, its positions count the padding.
    capabilities = Capabilities(batching=False, several_images=False, text_only=False, images_first=True)

    @property
    def image_ids(self) -> frozenset[int]:
        """The markers: the ids between them stand for ordinary text elsewhere."""
        marks = (self.processor.boi_token, self.processor.eoi_token)
        return frozenset(map(int, self.tokenizer.convert_tokens_to_ids(list(marks))))

    def spans(self, ids: np.ndarray, conversation: Conversation) -> tuple[ImageSpan, ...]:
        """The positions between the markers."""
        start, stop = np.flatnonzero(np.isin(ids, list(self.image_ids)))[:2].tolist()
        return (ImageSpan(0, 0, start + 1, stop),)

    def extend(self, inputs: Mapping[str, Any], ids: torch.Tensor, drop: int = 0) -> dict[str, Any]:
        """As the base class; new positions are no image's."""
        grown = super().extend(inputs, ids, drop)
        grown["image_embeds_position_mask"][:, -ids.shape[1] :] = 0
        return grown

    @property
    def outer(self) -> Any:
        """The causal language model."""
        return self.model.text_model

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
        return self.backbone.layer_norm


def _require_decoder(config: Mapping[str, Any]) -> None:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    kind = (config.get("text_config") or {}).get("model_type", "opt")
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CapabilityError(
            f"This {config.get('model_type')} has {kind} as its language model, an encoder-decoder: the prompt is not "
            "in the sequence that is generated, so its tokens have no distribution. Use a checkpoint with a decoder, "
            "such as blip2-opt or instructblip-vicuna."
        )
