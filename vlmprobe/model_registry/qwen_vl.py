"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images are resized by Qwen's own qwen-vl-utils."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmprobe.adapter import Adapter
from vlmprobe.errors import ImageError
from vlmprobe.inputs.messages import Conversation, ImagePart

__all__ = ["QwenVL"]


class QwenVL(Adapter):
    """An image part may set ``min_pixels``, ``max_pixels``, or ``resized_height`` and ``resized_width``.

    Otherwise the limits of the checkpoint's own image processor apply.
    """

    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")

    @property
    def image_options(self) -> frozenset[str]:
        """The size options that qwen-vl-utils reads."""
        return frozenset({"min_pixels", "max_pixels", "resized_height", "resized_width"})

    def process(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """As the base class, with every image resized by qwen-vl-utils before the processor sees it."""
        images = [self._sized(part) for conversation in conversations for part in conversation.image_parts]
        pad = {"padding": True, "padding_side": "left"} if len(conversations) > 1 else {}
        # The sizes are those that the processor would choose itself, so it must not interpolate a second time.
        sized = {"images": images, "do_resize": False} if images else {}
        return dict(self.processor(text=self.render(conversations), return_tensors="pt", **sized, **pad))

    def _sized(self, part: ImagePart) -> Any:
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
