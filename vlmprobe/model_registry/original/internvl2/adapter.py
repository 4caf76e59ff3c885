"""InternVL 1.1 to 3.5 in its original format (``InternVLChatModel``), loaded without its code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmprobe.adapter import Capabilities, Continuation, EncodedPrompt, Encoding
from vlmprobe.model_registry.original.adapter import OriginalAdapter, Parts
from vlmprobe.model_registry.original.internvl2.prompt import IMAGE_CONTEXT
from vlmprobe.model_registry.original.internvl2.releases import is_first_release, require_supported

if TYPE_CHECKING:
    from vlmprobe.inputs.messages import Conversation

__all__ = ["InternVL2"]

RUN_OF_CONTEXTS = re.compile(f"(?:{re.escape(IMAGE_CONTEXT)})+")


class InternVL2(OriginalAdapter):
    """InternVL-Chat 1.1 to 1.5 and InternVL 2 to 3.5, whatever their language model."""

    model_types = ("internvl_chat",)

    capabilities = Capabilities(mixed_images=True)

    def __init__(self, model: Any, processor: Any) -> None:
        super().__init__(model, processor)
        if model.config.text_config.rope_parameters["rope_type"] == "longrope":
            # Phi-3 applies the rope factors of the longest row to the whole batch, which changes short rows
            self.capabilities = replace(self.capabilities, batching=False)
        template = processor.template
        if template.assistant_end.strip() != template.end_token:  # GPT-OSS
            self.capabilities = replace(self.capabilities, one_end=False)

    @classmethod
    def handles(cls, config: Mapping[str, Any]) -> bool:
        """As in the base class; InternVL-Chat 1.0, which calls itself llava, is claimed to be refused by its name."""
        return super().handles(config) or is_first_release(config)

    @classmethod
    def parts(cls, folder: Path, config: Mapping[str, Any], options: dict[str, Any]) -> Parts:
        """As in the base class."""
        from vlmprobe.model_registry.original.internvl2.configuration import tile_size, translate
        from vlmprobe.model_registry.original.internvl2.modeling import InternVL2ForConditionalGeneration
        from vlmprobe.model_registry.original.internvl2.processing import InternVL2Processor
        from vlmprobe.model_registry.original.internvl2.weights import CONVERSIONS
        from vlmprobe.model_registry.original.tokenizer import original_tokenizer, token_id

        require_supported(config)
        tokenizer = original_tokenizer(folder)
        translated = translate(config, image_token_id=token_id(tokenizer, IMAGE_CONTEXT))
        processor = InternVL2Processor.build(
            config, tokenizer, size=tile_size(config), positions=translated.image_seq_length, folder=folder
        )
        end = token_id(tokenizer, processor.template.end_token)
        return Parts(
            InternVL2ForConditionalGeneration,
            translated,
            CONVERSIONS,
            processor,
            end_ids=[end],  # the original stops only at the template's separator
            pad_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )

    def encode(self, conversations: Sequence[Conversation]) -> Encoding:
        """The conversations as one left-padded batch of model inputs, on the CPU; one span for each tile."""
        for conversation in conversations:
            self.check(conversation)
        return self.processor.encode(conversations, self.model.config.image_token_id)

    def tokenize(self, text: str) -> list[int]:
        """Ids of a rendered prompt, with BOS if the tokenizer adds it."""
        return self.processor.tokenize(text)

    def continuation(self, prompt: EncodedPrompt, text: str) -> Continuation:
        """The ids of ``text`` directly after the prompt, tokenised together with it."""
        # One placeholder replaces thousands: each is a separate token and does not affect what follows.
        short = RUN_OF_CONTEXTS.sub(IMAGE_CONTEXT, prompt.text) if prompt.spans else prompt.text
        return super().continuation(replace(prompt, text=short), text)
