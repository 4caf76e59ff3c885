"""The images of conversations, small, for display beside what was computed of them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from vlmprobe.inputs.images import THUMBNAIL, thumbnail
from vlmprobe.inputs.messages import Conversation

__all__ = ["thumbnails"]


def thumbnails(conversations: Sequence[Conversation]) -> list[tuple[Image, ...]]:
    """The images of each conversation; equal images are one object, so that many results about one hold it once."""
    made: dict[str, Image] = {}
    for part in (part for each in conversations for part in each.image_parts):
        if part.digest not in made:
            made[part.digest] = thumbnail(part.image, THUMBNAIL)
    return [tuple(made[part.digest] for part in each.image_parts) for each in conversations]
