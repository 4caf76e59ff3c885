"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images are resized by the checkpoint's processor, or by Qwen's qwen-vl-utils."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image

from vlmprobe.adapter import Adapter
from vlmprobe.errors import ImageError
from vlmprobe.inputs.messages import Conversation, ImagePart

__all__ = ["QwenVL"]

BOX_FORMATS = {
    "qwen2_vl": "qwen2-vl",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen3_vl_moe": "qwen3-vl",
}
PROCESSOR, UTILS = "processor", "qwen-vl-utils"


class QwenVL(Adapter):
    """An image part may set ``min_pixels``, ``max_pixels``, or ``resized_height`` and ``resized_width``.

    Such a part is resized by qwen-vl-utils, whose options these are; all others by the checkpoint's own image
    processor, as in transformers, vLLM and SGLang. With ``resize="qwen-vl-utils"`` it resizes every image, within the
    pixel limits of the image processor.
    """

    model_types = tuple(BOX_FORMATS)
    resizers: ClassVar[tuple[str, ...]] = (PROCESSOR, UTILS)
    resize = PROCESSOR

    @property
    def image_options(self) -> frozenset[str]:
        """The size options that qwen-vl-utils reads."""
        return frozenset({"min_pixels", "max_pixels", "resized_height", "resized_width"})

    def facts(self, conversation: Conversation | None = None) -> dict[str, Any]:
        """What resizes the images, how large they become, and how the family writes boxes.

        ``resize``: a list with one entry per image if they differ in it. ``resized_sizes``: width and height of each.
        ``box_format``: as :func:`vlmprobe.analysis.boxes` calls it.
        """
        by = [self._resizer(part) for part in conversation.image_parts] if conversation else []
        found = {**super().facts(conversation), "resize": by if len(set(by)) > 1 else (by or [self.resize])[0]}
        if conversation is not None and (sizes := self.resized_sizes(conversation)):
            found |= {"resized_sizes": [list(size) for size in sizes]}
            found |= {"box_format": BOX_FORMATS[self.model.config.model_type]}
        return found

    def resized_sizes(self, conversation: Conversation) -> list[tuple[int, int]]:
        """Width and height in pixels of each image as the model receives it: its grid times the patch size."""
        return [self._resized(part) for part in conversation.image_parts]

    def _resized(self, part: ImagePart) -> tuple[int, int]:
        pixels = self.processor.image_processor
        if self._resizer(part) == UTILS:
            return self._sized(part).size
        if not pixels.do_resize:
            return part.image.size
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        (width, height), limits = part.image.size, pixels.size
        factor = pixels.patch_size * pixels.merge_size
        high, wide = smart_resize(height, width, factor, limits["shortest_edge"], limits["longest_edge"])
        return wide, high

    def process(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """As the base class; what qwen-vl-utils has resized is not resized again.

        Raises:
            ImageError: for an image that cannot be resized, or that does not fit a processor that does not resize.
        """
        parts = [part for conversation in conversations for part in conversation.image_parts]
        for part in parts:
            self._check_sides(part)
        by = {self._resizer(part) for part in parts}
        if by <= {PROCESSOR}:
            return super().process(conversations)
        if by == {UTILS}:
            return self._call(conversations, [self._sized(part) for part in parts])
        return self._process_mixed(conversations, parts)

    def _process_mixed(self, conversations: Sequence[Conversation], parts: Sequence[ImagePart]) -> dict[str, Any]:
        # The processor resizes all images of a call or none. So its image processor is called for each image, and the
        # processor, for the prompt, with blank images of the sizes that result.
        pixels = self.processor.image_processor
        single = [
            pixels(self._sized(part), do_resize=False, return_tensors="pt")
            if self._resizer(part) == UTILS
            else pixels(part.image, return_tensors="pt")
            for part in parts
        ]
        grids = [each["image_grid_thw"][0].tolist() for each in single]
        side = pixels.patch_size
        inputs = self._call(conversations, [Image.new("RGB", (wide * side, high * side)) for _, high, wide in grids])
        return {**inputs, "pixel_values": torch.cat([each["pixel_values"] for each in single])}

    def _call(self, conversations: Sequence[Conversation], sized: Sequence[Image.Image]) -> dict[str, Any]:
        pad = {"padding": True, "padding_side": "left"} if len(conversations) > 1 else {}
        text = self.render(conversations)
        return dict(self.processor(text=text, images=list(sized), do_resize=False, return_tensors="pt", **pad))

    def _resizer(self, part: ImagePart) -> str:
        return UTILS if part.options else self.resize

    def _check_sides(self, part: ImagePart) -> None:
        pixels = self.processor.image_processor
        factor = pixels.patch_size * pixels.merge_size
        width, height = part.image.size
        if self._resizer(part) == PROCESSOR and not pixels.do_resize and (width % factor or height % factor):
            raise ImageError(
                f"The image processor does not resize (do_resize is False), and the sides of a {width} x {height} "
                f"image are not multiples of {factor}: resize it, or set resized_width and resized_height in its part."
            )

    def _sized(self, part: ImagePart) -> Image.Image:
        from qwen_vl_utils import process_vision_info

        pixels = self.processor.image_processor
        limits = {"min_pixels": pixels.size["shortest_edge"], "max_pixels": pixels.size["longest_edge"]}
        message = {"role": "user", "content": [{"type": "image", "image": part.image, **limits, **part.options}]}
        try:
            images, _ = process_vision_info([message], image_patch_size=pixels.patch_size)
        except (ValueError, AssertionError) as error:
            raise ImageError(
                f"qwen-vl-utils cannot resize a {part.image.width} x {part.image.height} image: {error}"
            ) from error
        return images[0]
