"""InternVL 1.1 to 3.5 in its original format (``InternVLChatModel``), loaded without its code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmprobe.adapter import Capabilities
from vlmprobe.model_registry.original.adapter import OriginalAdapter
from vlmprobe.model_registry.original.internvl2.prompt import IMAGE_CONTEXT
from vlmprobe.model_registry.original.internvl2.releases import is_first_release

if TYPE_CHECKING:
    from vlmprobe.inputs.messages import Conversation, ImagePart
    from vlmprobe.model_registry.original.fused_inputs import ImageTiles
    from vlmprobe.model_registry.original.internvl2.configuration import InternVL2Config
    from vlmprobe.model_registry.original.internvl2.modeling import InternVL2ForConditionalGeneration
    from vlmprobe.model_registry.original.internvl2.processing import InternVL2Processor

__all__ = ["InternVL2"]


class InternVL2(OriginalAdapter):
    """InternVL-Chat 1.1 to 1.5 and InternVL 2 to 3.5, whatever their language model."""

    model_types = ("internvl_chat",)
    image_token = IMAGE_CONTEXT

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
    def model_class(cls) -> type[InternVL2ForConditionalGeneration]:
        """As in the base class."""
        from vlmprobe.model_registry.original.internvl2.modeling import InternVL2ForConditionalGeneration

        return InternVL2ForConditionalGeneration

    @classmethod
    def conversions(cls) -> Sequence[Any]:
        """Names, and the packed projections of InternLM2."""
        from vlmprobe.model_registry.original.internvl2.weights import CONVERSIONS

        return CONVERSIONS

    @classmethod
    def translate(cls, config: Mapping[str, Any], folder: Path) -> InternVL2Config:
        """As in the base class."""
        from vlmprobe.model_registry.original.internvl2.configuration import translate

        return translate(config)

    @classmethod
    def read_processor(
        cls, folder: Path, config: Mapping[str, Any], tokenizer: Any, translated: Any, options: dict[str, Any]
    ) -> InternVL2Processor:
        """The rules of tiling, the conversation template and its system text."""
        from vlmprobe.model_registry.original.internvl2.configuration import tile_size
        from vlmprobe.model_registry.original.internvl2.processing import InternVL2Processor

        return InternVL2Processor.build(
            config, tokenizer, size=tile_size(config), positions=translated.image_seq_length, folder=folder
        )

    @classmethod
    def to_save(cls, files: dict[str, dict[str, Any]], processor: Any) -> dict[str, dict[str, Any]]:
        """As in the base class, with the system text, which a checkpoint may keep elsewhere."""
        return files | {"config.json": {**files["config.json"], "system_message": processor.system}}

    @property
    def answer_ends(self) -> Sequence[str]:
        """The template's separator: the original stops at nothing else."""
        return (self.processor.template.end_token,)

    @property
    def pad_id(self) -> int:
        """As in the base class; Llama's tokenizer has no token for it."""
        found = self.tokenizer.pad_token_id
        return int(self.tokenizer.convert_tokens_to_ids(self.answer_ends[0]) if found is None else found)

    def prompt(self, conversation: Conversation, images: Sequence[ImageTiles]) -> str:
        """As in the base class."""
        return self.processor.write(conversation, [sum(image.positions) for image in images])

    def pixels(self, image: ImagePart) -> ImageTiles:
        """Tiles [tiles, 3, size, size], each with as many positions."""
        return self.processor.tiles(image.image)
