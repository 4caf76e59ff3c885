"""Notices images that a server sizes otherwise than the model's processor: its prompt is then longer or shorter."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

from vlmprobe.engines.serving.answer import Answer
from vlmprobe.engines.serving.tokens import Tokens
from vlmprobe.errors import VlmprobeError, VlmprobeWarning
from vlmprobe.inputs.messages import Conversation

__all__ = ["PromptLengths"]

MOST = 4096  # sizes of images that are remembered
Sizes = tuple[tuple[int, int], ...]


class PromptLengths:
    """Compares how many positions a server counts with those that the processor makes, once for each image size."""

    def __init__(self, title: str, tokens: Tokens) -> None:
        self._title = title
        self._tokens = tokens
        self._added: dict[Sizes, int] = {}  # positions that the server has more than the processor

    async def told(self, conversation: Conversation, answer: Answer) -> dict[str, Any]:
        """What ``meta`` records; empty if the prompts are as long, or that is not known. Warns once of a size."""
        adapter, counted = self._tokens.adapter, answer.usage.prompt
        if adapter is None or counted is None or not conversation.images or answer.prompt_ids is not None:
            return {}
        sizes = tuple(image.size for image in conversation.images)
        added = self._added.get(sizes)
        if added is None:
            try:
                # In a thread, since the processor processes the images.
                encoding = await asyncio.to_thread(adapter.encode, [conversation])
            except (VlmprobeError, ValueError):
                return {}
            added = counted - len(encoding.prompts[0].ids)
            if len(self._added) < MOST:
                self._added[sizes] = added
            if added:
                shown = ", ".join(f"{width} x {height}" for width, height in sizes[:4])
                warnings.warn(
                    f"{self._title} counts {counted} positions of a prompt with images of {shown} pixels, and "
                    f"processor= makes {counted - added}: it sizes the images otherwise, and its numbers are not those "
                    "of the model with its own processor.",
                    VlmprobeWarning,
                    stacklevel=2,
                )
        return {"prompt_positions": {"server": counted, "processor": counted - added}} if added else {}
