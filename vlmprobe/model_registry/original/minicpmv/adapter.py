"""MiniCPM-V and MiniCPM-o in their original checkpoint format, running none of the checkpoint's code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, cast

from vlmprobe.errors import CapabilityError
from vlmprobe.model_registry.original.adapter import OriginalAdapter
from vlmprobe.model_registry.original.minicpmv.releases import RELEASES, Release, is_omni, release_of

if TYPE_CHECKING:
    import numpy as np

    from vlmprobe.adapter import ImageSpan
    from vlmprobe.inputs.messages import Conversation, ImagePart
    from vlmprobe.model_registry.original.fused_inputs import ImageTiles
    from vlmprobe.model_registry.original.minicpmv.config import MiniCPMVConfig
    from vlmprobe.model_registry.original.minicpmv.modeling import MiniCPMVForConditionalGeneration
    from vlmprobe.model_registry.original.minicpmv.processing import MiniCPMVProcessor, Slices

__all__ = ["MiniCPMO", "MiniCPMV"]


class MiniCPMV(OriginalAdapter):
    """MiniCPM-V 1.0, 2.0, Llama3-V 2.5, 2.6, 4.0 and 4.5; MiniCPM-o 2.6 and 4.5, by :class:`MiniCPMO`.

    An image part may set ``max_slice_nums``, the most slices that its image is cut into.
    """

    model_types = ("minicpmv", "minicpmo")
    weight_names = MappingProxyType(
        {
            r"^llm\.lm_head\.": "lm_head.",
            r"^llm\.model\.": "model.language_model.",
            r"^vpm\.": "model.vision_tower.",
            r"^resampler\.": "model.resampler.",
        }
    )

    def __init__(self, model: Any, processor: Any) -> None:
        from vlmprobe.model_registry.original.language import stretches

        super().__init__(model, processor)
        self.capabilities = replace(
            self.capabilities,
            mixed_images=True,
            several_images=self.release.template,
            images_first=not self.release.template,
            system=self.release.template,
            batching=not stretches(model.config.text_config),
        )
        self.hidden_id = 0 if self.release.hides_first_id else None

    @classmethod
    def load(cls, checkpoint: str | Path, *, config: Mapping[str, Any], **options: Any) -> Self:
        """As in the base class; a checkpoint of MiniCPM-o becomes a :class:`MiniCPMO`."""
        if is_omni(config) and not issubclass(cls, MiniCPMO):
            return cast("Self", MiniCPMO.load(checkpoint, config=config, **options))
        return super().load(checkpoint, config=config, **options)

    @classmethod
    def model_class(cls) -> type[MiniCPMVForConditionalGeneration]:
        """As in the base class."""
        from vlmprobe.model_registry.original.minicpmv.modeling import MiniCPMVForConditionalGeneration

        return MiniCPMVForConditionalGeneration

    @classmethod
    def translate(cls, config: Mapping[str, Any], folder: Path) -> MiniCPMVConfig:
        """As in the base class."""
        from vlmprobe.model_registry.original.minicpmv.config import translate

        return translate(folder, config)

    @classmethod
    def read_tokenizer(cls, folder: Path, config: Mapping[str, Any]) -> Any:
        """The originals of 1.0 and 2.0 read tokenizer.model; those of later releases read tokenizer.json."""
        from vlmprobe.model_registry.original.tokenizer import original_tokenizer

        return original_tokenizer(folder, prefer_fast=release_of(config).template)

    @classmethod
    def read_processor(
        cls, folder: Path, config: Mapping[str, Any], tokenizer: Any, translated: Any, options: dict[str, Any]
    ) -> MiniCPMVProcessor:
        """The rules of slicing; 4.5 (V and o) also take ``enable_thinking``, as their original ``chat()`` does."""
        from vlmprobe.model_registry.original.minicpmv.config import image_rules
        from vlmprobe.model_registry.original.minicpmv.processing import MiniCPMVProcessor

        release = release_of(config)
        thinking = bool(options.pop("enable_thinking", False))
        if thinking and not release.thinks:
            able = " and ".join(each.title for each in RELEASES.values() if each.thinks)
            raise CapabilityError(f"enable_thinking is for {able}; this checkpoint is {release.title}.")
        return MiniCPMVProcessor(tokenizer, image_rules(folder, config), release, thinking=thinking)

    @property
    def release(self) -> Release:
        """The release of the checkpoint."""
        return RELEASES[self.model.config.release]

    @property
    def image_options(self) -> frozenset[str]:
        """``max_slice_nums``; 1.0 has none, as it cuts no image."""
        return frozenset() if self.release.square else frozenset({"max_slice_nums"})

    @property
    def prompt_variables(self) -> frozenset[str]:
        """``enable_thinking`` of 4.5 (V and o), which ``load`` takes too; ``use_tts_template`` of o 4.5."""
        taken = {"enable_thinking": self.release.thinks, "use_tts_template": self.release.speaks}
        return frozenset(name for name, takes in taken.items() if takes)

    @property
    def batch_arguments(self) -> frozenset[str]:
        """The conversation of each slice."""
        return frozenset({"owners"})

    @property
    def answer_ends(self) -> Sequence[str]:
        """Those of the original ``chat()``."""
        return self.release.ends

    @property
    def pad_id(self) -> int:
        """As in the original."""
        return 0

    def prompt(self, conversation: Conversation, images: Sequence[ImageTiles]) -> str:
        """As in the base class."""
        return self.processor.write(conversation, images)

    def pixels(self, image: ImagePart) -> Slices:
        """The slices of an image, as strips of patches (before 2.5 as images), and their grids."""
        return self.processor.cut(image)

    def image_places(self, ids: np.ndarray, images: Sequence[ImageTiles]) -> tuple[ImageSpan, ...]:
        """What the image tags enclose: the token there is an ordinary one."""
        return tuple(self.processor.spans(ids, images))

    def image_inputs(self, images: Sequence[Sequence[ImageTiles]]) -> dict[str, Any]:
        """As in the base class, and ``owners`` [P], the conversation of each slice."""
        import torch

        owners = [place for place, seen in enumerate(images) for image in seen for _ in image.positions]
        return super().image_inputs(images) | {"owners": torch.tensor(owners)}

    def tokenize(self, text: str) -> list[int]:
        """Ids of a whole prompt, as the original encodes it: special tokens are always added."""
        return list(self.tokenizer.encode(text))


class MiniCPMO(MiniCPMV):
    """MiniCPM-o 2.6 and 4.5: vision and text. Their audio encoder and speech generator are left out."""

    unused_weights = ("apm.", "audio_projection_layer.", "tts.")

    def tokenize(self, text: str) -> list[int]:
        """As for MiniCPM-V; 4.5 takes the token that stands for listening out of a prompt."""
        ids = super().tokenize(text)
        dropped = self.tokenizer.get_vocab().get(self.release.dropped)
        return [each for each in ids if each != dropped]
