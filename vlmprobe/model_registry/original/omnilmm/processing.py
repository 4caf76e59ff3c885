"""Convert a conversation to OmniLMM's prompt, token ids and pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmprobe.errors import MessageError
from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.inputs.messages import Conversation, ImagePart, Message
from vlmprobe.model_registry.original.fused_inputs import ImageTiles

__all__ = ["IMAGE_TOKENS", "OmniLMMProcessor"]

IMAGE_TAG = "<image>"  # in a text, where the image goes
IMAGE_TOKENS = ("<im_start>", "<im_patch>", "<im_end>")
SYSTEM = (
    "You are an artificial intelligence assistant, which gives helpful, detailed, and polite answers "
    "to the human's questions."
)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class OmniLMMProcessor:
    """Tokenizer and image rules of a checkpoint.

    Args:
        tokenizer: of the checkpoint, with the image tokens.
        image_size: side of the square that every image is resized to; its aspect ratio is not kept.
        queries: number of placeholders of an image.
    """

    def __init__(self, tokenizer: Any, *, image_size: int, queries: int) -> None:
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.queries = queries
        self.start, self.patch, self.stop = tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS))

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Normalised pixels [3, image_size, image_size] float32."""
        resized = image.convert("RGB").resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
        scaled = np.asarray(resized, dtype=np.float32) / 255
        mean, std = np.asarray([CLIP_MEAN, CLIP_STD], dtype=np.float32)
        return torch.from_numpy(((scaled - mean) / std).transpose(2, 0, 1).copy())

    def tiles(self, image: Image.Image) -> ImageTiles:
        """An image with its positions in the prompt."""
        return ImageTiles(pixels=self.pixels(image)[None], positions=[self.queries])

    def write(self, conversation: Conversation) -> str:
        """The prompt of a conversation.

        Raises:
            MessageError: for a conversation that the original cannot express.
        """
        chat = self._chat(conversation)
        begun = chat.pop()["content"] if conversation.continues else ""  # an answer to be continued
        system = {"role": "system", "content": SYSTEM}
        return self.tokenizer.apply_chat_template([system, *chat], tokenize=False, add_generation_prompt=True) + begun

    def _chat(self, conversation: Conversation) -> list[dict[str, str]]:
        chat = []
        for place, message in enumerate(conversation.messages):
            due = ("user", "assistant")[place % 2]
            if message.role != due:
                raise MessageError(f"Message {place} has role {message.role!r}; OmniLMM's roles alternate: {due!r}.")
            if place and any(isinstance(part, ImagePart) for part in message.parts):
                raise MessageError("OmniLMM takes its image in the first message.")
            chat.append({"role": message.role, "content": self._content(message)})
        return chat

    def _content(self, message: Message) -> str:
        if not any(isinstance(part, ImagePart) for part in message.parts):
            return message.text
        start, patch, stop = IMAGE_TOKENS
        tokens = start + patch * self.queries + stop
        marks = message.text.count(IMAGE_TAG)
        if marks > 1:
            raise MessageError(f"The text contains {IMAGE_TAG!r} {marks} times and there is one image: keep one.")
        if marks:
            return message.text.replace(IMAGE_TAG, tokens)
        if isinstance(message.parts[0], ImagePart):
            return f"{tokens}\n{message.text}"
        return "".join(tokens if isinstance(part, ImagePart) else part.text for part in message.parts)

    def spans(self, ids: np.ndarray, has_image: bool) -> tuple[ImageSpan, ...]:
        """What stands between the tags that enclose an image.

        Raises:
            MessageError: there are other tags than those of the image.
        """
        holes = np.flatnonzero(ids == self.patch)
        starts, stops = np.flatnonzero(ids == self.start), np.flatnonzero(ids == self.stop)
        spans = tuple(ImageSpan(0, 0, int(start) + 1, int(start) + 1 + self.queries) for start in starts)
        due = np.concatenate([np.arange(span.start, span.stop) for span in spans] or [holes[:0]])
        if len(spans) != has_image or not np.array_equal(holes, due) or [span.stop for span in spans] != stops.tolist():
            raise MessageError(
                f"The text contains {', '.join(IMAGE_TOKENS)}, which enclose an image for this model. Remove them, and "
                "pass the image as an image part."
            )
        return spans
