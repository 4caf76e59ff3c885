"""What a result records of the conversation that it answers, and whether it answers a given one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.engines.base import Engine, GivesPromptIds, require
from vlmprobe.errors import MessageError
from vlmprobe.inputs.images import digest

if TYPE_CHECKING:
    from vlmprobe.inputs.messages import Conversation
    from vlmprobe.results.result import Result

__all__ = ["holds_images", "record", "require_answer_to"]


def record(conversation: Conversation) -> dict[str, Any]:
    """For ``meta``: the question, how it is written if not by default, and size and digest of each image if any.

    A result keeps images only as thumbnails; a digest tells two images of one size apart.
    """
    images = conversation.images
    written = {"question": conversation.question, **conversation.format.told}
    if not images:
        return written
    return {
        **written,
        "image_sizes": [list(image.size) for image in images],
        "image_digests": [part.digest for part in conversation.image_parts],
    }


def holds_images(result: Result) -> bool:
    """Whether a result holds its images as they were, not downscaled for display; also if it is about none."""
    return _sizes(result) == [image.size for image in result.images]


def require_answer_to(engine: Engine, conversation: Conversation, result: Result, remedy: str) -> None:
    """Reject a result of another conversation: other prompt ids, or images that differ in size or in any pixel.

    A result without digests (saved by a former version) is compared by the images that it holds as they were.

    Args:
        engine: that encodes the conversation.
        conversation: the one that the result should answer.
        result: of any engine.
        remedy: what to do instead, ending the message.

    Raises:
        MessageError: if the result answers another conversation, or does not say which.
        CapabilityError: for an engine that gives no prompt ids.
    """
    prompts = require(engine, GivesPromptIds)
    if result.input_ids is None:
        raise MessageError(f"The result has no prompt ids, which its engine does not give: {remedy}.")
    images, sizes = conversation.images, _sizes(result)
    if sizes != [image.size for image in images]:
        told = f"images of {sizes} pixels" if sizes else "no image"
        given = f"images of {[image.size for image in images]} pixels" if images else "no image"
        raise MessageError(f"The result is about {told}, and the question about {given}: {remedy}.")
    if not np.array_equal(prompts.prompt_ids(conversation), result.input_ids):
        raise MessageError(f"The result answers another question or other messages, their prompts differ: {remedy}.")
    known: list[str] | None = result.meta.get("image_digests")
    if known is None and holds_images(result):
        known = [digest(image) for image in result.images]
    if known is None:
        return
    for place, part in enumerate(conversation.image_parts):
        if known[place : place + 1] != [part.digest]:
            raise MessageError(f"The result is about other images, image {place} has other pixels: {remedy}.")


def _sizes(result: Result) -> list[tuple[int, ...]]:
    return [tuple(each) for each in result.meta.get("image_sizes") or [each.size for each in result.images]]
