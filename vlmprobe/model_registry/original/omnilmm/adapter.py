"""OmniLMM-12B in its original checkpoint format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmprobe.adapter import Capabilities, Encoding
from vlmprobe.errors import CheckpointError
from vlmprobe.model_registry.original.adapter import OriginalAdapter, Parts

if TYPE_CHECKING:
    from vlmprobe.inputs.messages import Conversation
    from vlmprobe.model_registry.original.omnilmm.modeling import OmniLMMConfig

__all__ = ["OmniLMM"]

TOWER = "eva02_enormous_patch14_clip_224"  # the only one that the original code builds
RENAMED = {r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1."}


class OmniLMM(OriginalAdapter):
    """OmniLMM-12B: one image per conversation, in the first message."""

    model_types = ("omnilmm",)

    capabilities = Capabilities(several_images=False, mixed_images=True, system=False)  # its system text is fixed

    @classmethod
    def parts(cls, folder: Path, config: Mapping[str, Any], options: dict[str, Any]) -> Parts:
        """As in the base class."""
        from transformers.core_model_loading import WeightRenaming

        from vlmprobe.model_registry.original.omnilmm.modeling import OmniLMMForConditionalGeneration
        from vlmprobe.model_registry.original.omnilmm.processing import IMAGE_TOKENS, OmniLMMProcessor
        from vlmprobe.model_registry.original.tokenizer import original_tokenizer

        translated = _translate(folder, config)
        tokenizer = original_tokenizer(folder, prefer_fast=True)
        tokenizer.add_tokens(list(IMAGE_TOKENS), special_tokens=True)  # as in the original, if they are missing
        if max(tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS))) >= translated.text_config.vocab_size:
            raise CheckpointError(f"{folder}: the image tokens lie beyond the vocabulary of config.json.")
        return Parts(
            OmniLMMForConditionalGeneration,
            translated,
            [WeightRenaming(source, target) for source, target in RENAMED.items()],
            OmniLMMProcessor(tokenizer, image_size=translated.image_size, queries=translated.num_query),
            end_ids=[tokenizer.eos_token_id],
            pad_id=tokenizer.pad_token_id,
        )

    def encode(self, conversations: Sequence[Conversation]) -> Encoding:
        """As in the base class; besides ids and mask ``pixel_values`` [P, 3, H, W] and ``image_index`` [N, S]."""
        import torch

        from vlmprobe.model_registry.original.fused_inputs import sequence_inputs

        prompts = []
        for conversation in conversations:
            self.check(conversation)
            prompts.append(self.processor.encode(conversation))
        inputs: dict[str, Any] = sequence_inputs(prompts)
        images = [image for conversation in conversations for image in conversation.images]
        if images:
            inputs["pixel_values"] = torch.stack([self.processor.pixels(image) for image in images])
        return Encoding(inputs, tuple(prompts))

    def tokenize(self, text: str) -> list[int]:
        """Ids of a whole prompt, with BOS."""
        return list(self.tokenizer(text)["input_ids"])


def _translate(folder: Path, config: Mapping[str, Any]) -> OmniLMMConfig:
    from vlmprobe.model_registry.original.language_config import language_config
    from vlmprobe.model_registry.original.omnilmm.modeling import OmniLMMConfig
    from vlmprobe.model_registry.original.timm_towers import read_tower

    named = str(config.get("mm_vision_tower"))
    if named.split(".")[0] != TOWER:
        raise CheckpointError(f"{folder} names the vision tower {named!r}; the original code supports only {TOWER}.")
    queries = config.get("num_query", 64)
    if math.isqrt(queries) ** 2 != queries:
        raise CheckpointError(f"{folder}: num_query is {queries}; the queries form a square grid.")
    return OmniLMMConfig(
        text_config=language_config("mistral", config),
        vision_config=read_tower(folder, "model.vision_tower.", "eva02"),
        num_query=queries,
        image_size=config.get("image_size", 448),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
    )
