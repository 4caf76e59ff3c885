"""MiniCPM-V in its original checkpoint format, running none of the checkpoint's code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmprobe.adapter import Encoding
from vlmprobe.errors import CapabilityError
from vlmprobe.model_registry.original.adapter import OriginalAdapter, Parts
from vlmprobe.model_registry.original.minicpmv.releases import RELEASES, Release, release_of

if TYPE_CHECKING:
    from vlmprobe.inputs.messages import Conversation

__all__ = ["MiniCPMV"]

RENAMED = {
    r"^llm\.lm_head\.": "lm_head.",
    r"^llm\.model\.": "model.language_model.",
    r"^vpm\.": "model.vision_tower.",
    r"^resampler\.": "model.resampler.",
}


class MiniCPMV(OriginalAdapter):
    """MiniCPM-V 2.0, Llama3-V 2.5, 2.6, 4.0 and 4.5.

    An image part may set ``max_slice_nums``, the most slices that its image is cut into.
    """

    model_types = ("minicpmv",)

    def __init__(self, model: Any, processor: Any) -> None:
        from vlmprobe.model_registry.original.language_config import stretches

        super().__init__(model, processor)
        self.capabilities = replace(
            self.capabilities,
            mixed_images=True,
            several_images=self.release.version != "2.0",
            images_first=self.release.version == "2.0",
            system=self.release.version != "2.0",
            batching=not stretches(model.config.text_config),
        )

    @classmethod
    def parts(cls, folder: Path, config: Mapping[str, Any], options: dict[str, Any]) -> Parts:
        """As in the base class; 4.5 also takes ``enable_thinking``, as its original ``chat()`` does."""
        from transformers.core_model_loading import WeightRenaming

        from vlmprobe.model_registry.original.minicpmv.config import translate
        from vlmprobe.model_registry.original.minicpmv.modeling import MiniCPMVForConditionalGeneration
        from vlmprobe.model_registry.original.minicpmv.processing import MiniCPMVProcessor
        from vlmprobe.model_registry.original.tokenizer import original_tokenizer, token_id

        release = release_of(config)
        thinking = bool(options.pop("enable_thinking", False))
        if thinking and release.version != "4.5":
            raise CapabilityError(f"enable_thinking is for MiniCPM-V 4.5; this checkpoint is {release.version}.")
        translated, rules = translate(folder, config)
        # The original of 2.0 reads tokenizer.model; those of later releases read tokenizer.json.
        tokenizer = original_tokenizer(folder, prefer_fast=release.version != "2.0")
        processor = MiniCPMVProcessor(tokenizer, rules, release, thinking=thinking)
        return Parts(
            MiniCPMVForConditionalGeneration,
            translated,
            [WeightRenaming(source, target) for source, target in RENAMED.items()],
            processor,
            end_ids=[token_id(tokenizer, token) for token in release.ends],
            pad_id=0,
        )

    @property
    def release(self) -> Release:
        """The release of the checkpoint."""
        return RELEASES[self.model.config.release]

    @property
    def image_options(self) -> frozenset[str]:
        """``max_slice_nums``."""
        return frozenset({"max_slice_nums"})

    @property
    def batch_arguments(self) -> frozenset[str]:
        """The conversation of each slice."""
        return frozenset({"owners"})

    def encode(self, conversations: Sequence[Conversation]) -> Encoding:
        """As in the base class.

        Inputs besides ids and mask: ``pixel_values`` [P, ...] of all P slices, ``tgt_sizes`` [P, 2] (rows and columns
        of patches), ``owners`` [P] (the conversation of each slice) and ``image_index`` [N, S].
        """
        import torch

        from vlmprobe.model_registry.original.fused_inputs import sequence_inputs

        prompts, images, owners = [], [], []
        for place, conversation in enumerate(conversations):
            self.check(conversation)
            cut = [self.processor.cut(part) for part in conversation.image_parts]
            prompts.append(self.processor.encode(conversation, cut))
            images += cut
            owners += [place] * sum(len(each.grids) for each in cut)
        inputs: dict[str, Any] = sequence_inputs(prompts, hidden_id=0 if self.release.hides_first_id else None)
        if images:
            inputs["pixel_values"] = self.processor.stack(images)
            inputs["tgt_sizes"] = torch.tensor([grid for image in images for grid in image.grids])
            inputs["owners"] = torch.tensor(owners)
        return Encoding(inputs, tuple(prompts))

    def tokenize(self, text: str) -> list[int]:
        """Ids of a whole prompt, as the original encodes it: special tokens are always added."""
        return list(self.tokenizer.encode(text))
