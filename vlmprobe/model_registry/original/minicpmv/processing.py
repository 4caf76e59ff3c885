"""Convert a conversation to the prompt of MiniCPM-V and MiniCPM-o, token ids and pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmprobe.errors import MessageError
from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.inputs.messages import Conversation, ImagePart, Message
from vlmprobe.model_registry.original.fused_inputs import ImageTiles
from vlmprobe.model_registry.original.minicpmv.releases import ImageRules, Release
from vlmprobe.model_registry.original.minicpmv.slicing import SlicePlan, plan_slices, slice_image
from vlmprobe.model_registry.original.tokenizer import token_id

__all__ = ["MiniCPMVProcessor", "Slices"]

IMAGE_TAG = "(<image>./</image>)"  # stands for an image while the chat template is rendered
ROLE_TAGS = {"user": "<用户>", "assistant": "<AI>"}  # 1.0 and 2.0, which have no template


@dataclass(frozen=True, kw_only=True)
class Slices(ImageTiles):
    """One image as the vision tower receives it: the overview, then the slices row by row."""

    plan: SlicePlan


class MiniCPMVProcessor:
    """Tokenizer and image rules of one checkpoint.

    Args:
        tokenizer: of the checkpoint.
        rules: its image rules.
        release: its release.
        thinking: 4.5 (V and o) only: thinking mode (the original's ``enable_thinking``).
    """

    def __init__(self, tokenizer: Any, rules: ImageRules, release: Release, *, thinking: bool = False) -> None:
        self.tokenizer = tokenizer
        self.rules = rules
        self.release = release
        self.thinking = thinking
        tags = {"image", release.slice_tag}
        self.starts = [token_id(tokenizer, f"<{tag}>") for tag in tags]
        self.stops = [token_id(tokenizer, f"</{tag}>") for tag in tags]

    # -- images --------------------------------------------------------------------------------------

    def cut(self, part: ImagePart) -> Slices:
        """Cut an image into slices and normalise them: strips [3, patch, patch * L], or before 2.5 images [3, h, w]."""
        rules = self.rules
        most = int(part.options.get("max_slice_nums", rules.max_slices))
        if most < 1:
            raise MessageError(f"max_slice_nums is {most}; it must be at least 1.")
        if self.release.square:
            plan = SlicePlan((rules.side, rules.side), None, None)
        else:
            plan = plan_slices(part.image.size, max_slices=most, resolution=rules.resolution, patch=rules.patch)
        pieces = [self._normalise(piece) for piece in slice_image(part.image, plan)]
        return Slices(
            pixels=[self._strip(piece) for piece in pieces] if self.release.strips else pieces,
            positions=[rules.queries] * len(pieces),
            sizes=[(-(-piece.shape[1] // rules.patch), -(-piece.shape[2] // rules.patch)) for piece in pieces],
            plan=plan,
        )

    def _normalise(self, image: Image.Image) -> torch.Tensor:
        scaled = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        mean, std = np.asarray([self.rules.mean, self.rules.std], dtype=np.float32)
        return torch.from_numpy(((scaled - mean) / std).transpose(2, 0, 1).copy())

    def _strip(self, piece: torch.Tensor) -> torch.Tensor:
        """Patches of [3, h, w] side by side: [3, patch, patch * L]."""
        patch = self.rules.patch
        tiles = piece.unfold(1, patch, patch).unfold(2, patch, patch)  # [3, rows, columns, patch, patch]
        return tiles.permute(0, 3, 1, 2, 4).flatten(2)

    # -- text ----------------------------------------------------------------------------------------

    def write(self, conversation: Conversation, images: Sequence[Slices]) -> str:
        """The prompt of a conversation, with a placeholder for each slice.

        Raises:
            MessageError: for a conversation that the original cannot express.
        """
        return self._render(conversation, [self._placeholder(image, place) for place, image in enumerate(images)])

    def _placeholder(self, image: Slices, place: int) -> str:
        """The tags of an image: the overview, then each row of slices on its own line."""
        holes = "<unk>" * self.rules.queries
        number = f"<image_id>{place}</image_id>" if self.rules.numbered else ""
        overview = f"{number}<image>{holes}</image>"
        if image.plan.grid is None:
            return overview
        columns, rows = image.plan.grid
        tag = self.release.slice_tag
        lines = "\n".join([f"<{tag}>{holes}</{tag}>" * columns] * rows)
        return overview + (f"<slice>{lines}</slice>" if tag == "image" else lines)

    def spans(self, ids: np.ndarray, images: Sequence[ImageTiles]) -> Iterator[ImageSpan]:
        """What stands between the tags that enclose images.

        Raises:
            MessageError: there are other tags than those of the images.
        """
        starts = np.flatnonzero(np.isin(ids, self.starts)) + 1
        stops = np.flatnonzero(np.isin(ids, self.stops))
        slices = [(image, tile) for image, cut in enumerate(images) for tile in range(len(cut.positions))]
        if len(starts) != len(slices) or len(stops) != len(slices) or np.any(stops - starts != self.rules.queries):
            raise MessageError(
                "The text contains tags that enclose images (<image>, <slice>), which this model would read as images. "
                "Remove them, and pass images as image parts."
            )
        for (image, tile), start, stop in zip(slices, starts.tolist(), stops.tolist(), strict=True):
            yield ImageSpan(image, tile, start, stop)

    def _render(self, conversation: Conversation, placeholders: Sequence[str]) -> str:
        messages = conversation.messages
        asked = [message for message in messages if message.role != "system"]
        if not asked or asked[0].role != "user":
            raise MessageError("MiniCPM-V needs a user message first (after a system message, if there is one).")
        if any(IMAGE_TAG in message.text for message in messages):
            raise MessageError(
                f"The text contains {IMAGE_TAG!r}, which stands for an image; pass images as image parts."
            )
        if not self.release.template:
            return self._render_plain(conversation, placeholders)
        chat = [{"role": message.role, "content": _joined(message)} for message in messages]
        # A partial answer to be continued is appended verbatim, whatever the template does with answers.
        begun = chat.pop()["content"] if conversation.continues else ""
        options: dict[str, Any] = {"enable_thinking": self.thinking} if self.release.thinks else {}
        if self.release.speaks:
            options["use_tts_template"] = False
        options |= conversation.format.chat_template_kwargs
        prompt = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True, **options)
        rendered = prompt + begun
        pieces = rendered.split(IMAGE_TAG)
        return pieces[0] + "".join(tag + piece for tag, piece in zip(placeholders, pieces[1:], strict=True))

    def _render_plain(self, conversation: Conversation, placeholders: Sequence[str]) -> str:
        text = ""
        for place, message in enumerate(conversation.messages):
            images = [at for at, part in enumerate(message.parts) if isinstance(part, ImagePart)]
            if images not in ([], [0]) or (images and place):
                raise MessageError(f"{self.release.title} takes its image as the first part of the first message.")
            content = message.text
            if images:
                content = f"{placeholders[0]}\n{content}"
            text += ROLE_TAGS[message.role] + content
        return text if conversation.continues else text + ROLE_TAGS["assistant"]


def _joined(message: Message) -> str:
    """The parts of a message, one per line, as the original ``chat()`` joins them."""
    return "\n".join(IMAGE_TAG if isinstance(part, ImagePart) else part.text for part in message.parts)
