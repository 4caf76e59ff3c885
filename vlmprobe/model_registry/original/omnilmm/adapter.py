"""OmniLMM-12B in its original checkpoint format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vlmprobe.adapter import Capabilities
from vlmprobe.errors import CheckpointError
from vlmprobe.model_registry.original.adapter import OriginalAdapter

if TYPE_CHECKING:
    import numpy as np

    from vlmprobe.adapter import ImageSpan
    from vlmprobe.inputs.messages import Conversation, ImagePart
    from vlmprobe.model_registry.original.fused_inputs import ImageTiles
    from vlmprobe.model_registry.original.omnilmm.modeling import OmniLMMConfig, OmniLMMForConditionalGeneration
    from vlmprobe.model_registry.original.omnilmm.processing import OmniLMMProcessor

__all__ = ["OmniLMM"]

TOWER = "eva02_enormous_patch14_clip_224"  # the only one that the original code builds


class OmniLMM(OriginalAdapter):
    """OmniLMM-12B: one image per conversation, in the first message."""

    model_types = ("omnilmm",)
    weight_names = MappingProxyType({r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1."})

    capabilities = Capabilities(several_images=False, mixed_images=True, system=False)  # its system text is fixed

    @classmethod
    def model_class(cls) -> type[OmniLMMForConditionalGeneration]:
        """As in the base class."""
        from vlmprobe.model_registry.original.omnilmm.modeling import OmniLMMForConditionalGeneration

        return OmniLMMForConditionalGeneration

    @classmethod
    def translate(cls, config: Mapping[str, Any], folder: Path) -> OmniLMMConfig:
        """As in the base class."""
        return _translate(folder, config)

    @classmethod
    def read_tokenizer(cls, folder: Path, config: Mapping[str, Any]) -> Any:
        """The tokenizer, with the image tokens added if they are missing, as in the original."""
        from vlmprobe.model_registry.original.omnilmm.processing import IMAGE_TOKENS
        from vlmprobe.model_registry.original.tokenizer import original_tokenizer

        tokenizer = original_tokenizer(folder, prefer_fast=True)
        tokenizer.add_tokens(list(IMAGE_TOKENS), special_tokens=True)
        return tokenizer

    @classmethod
    def read_processor(
        cls, folder: Path, config: Mapping[str, Any], tokenizer: Any, translated: Any, options: dict[str, Any]
    ) -> OmniLMMProcessor:
        """As in the base class.

        Raises:
            CheckpointError: the image tokens lie beyond the vocabulary.
        """
        from vlmprobe.model_registry.original.omnilmm.processing import IMAGE_TOKENS, OmniLMMProcessor

        if max(tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS))) >= translated.text_config.vocab_size:
            raise CheckpointError(f"{folder}: the image tokens lie beyond the vocabulary of config.json.")
        return OmniLMMProcessor(tokenizer, image_size=translated.image_size, queries=translated.num_query)

    def prompt(self, conversation: Conversation, images: Sequence[ImageTiles]) -> str:
        """As in the base class."""
        return self.processor.write(conversation)

    def pixels(self, image: ImagePart) -> ImageTiles:
        """One square image [1, 3, image_size, image_size]."""
        return self.processor.tiles(image.image)

    def image_places(self, ids: np.ndarray, images: Sequence[ImageTiles]) -> tuple[ImageSpan, ...]:
        """What the image tags enclose, as in the original."""
        return self.processor.spans(ids, bool(images))


def _translate(folder: Path, config: Mapping[str, Any]) -> OmniLMMConfig:
    from vlmprobe.model_registry.original.language import language_config
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
