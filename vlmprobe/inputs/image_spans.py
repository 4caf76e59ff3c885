"""Positions of images in a token sequence: runs of placeholders, divided among the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmprobe.errors import CapabilityError, MessageError
from vlmprobe.inputs.messages import Conversation, TextPart

__all__ = ["ImageSpan", "divide_runs", "placeholder_runs", "require_images", "require_no_placeholder"]


@dataclass(frozen=True)
class ImageSpan:
    """A contiguous run of positions that one image, or one tile of it, occupies in the model's sequence."""

    image: int  # which image of the conversation, from 0
    tile: int  # which run of that image, from 0, in sequence order
    start: int  # first position
    stop: int  # one past the last position


def placeholder_runs(ids: np.ndarray, placeholders: frozenset[int]) -> list[tuple[int, int]]:
    """Contiguous runs (start, stop) of placeholder ids, in order."""
    held = np.zeros(len(ids) + 2, dtype=bool)  # with the positions before and after, which are none
    for each in placeholders:  # few: NumPy's isin costs more than the comparisons
        held[1:-1] |= ids == each
    edges = np.flatnonzero(held[1:] != held[:-1]).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def divide_runs(runs: Sequence[tuple[int, int]], sizes: Sequence[int]) -> tuple[ImageSpan, ...]:
    """Runs as image spans, where image i takes the next ``sizes[i]`` positions; a run may be split between images."""
    spans: list[ImageSpan] = []
    image, tile, left = 0, 0, sizes[0] if sizes else 0
    for start, stop in runs:
        while start < stop:
            if left == 0:
                image, tile, left = image + 1, 0, sizes[image + 1]
            taken = min(left, stop - start)
            spans.append(ImageSpan(image, tile, start, start + taken))
            start, tile, left = start + taken, tile + 1, left - taken
    return tuple(spans)


def require_no_placeholder(conversation: Conversation, written: Sequence[str]) -> None:
    """Reject a text that contains an image placeholder: tokenizers read it as an image, which is not there.

    Args:
        conversation: of texts and images.
        written: how the model's placeholders are written.

    Raises:
        MessageError: it names the message and the placeholder.
    """
    for place, message in enumerate(conversation.messages):
        texts = [part.text for part in message.parts if isinstance(part, TextPart)]
        if found := next((each for each in written if any(each in text for text in texts)), None):
            raise MessageError(
                f"Message {place}: the text contains {found}, an image placeholder of this model, and would be read as "
                f"an image. Leave it out (image= and image parts place their images themselves), or write it "
                f"differently, such as {' '.join((found[:1], found[1:]))!r}."
            )


def require_images(runs: Sequence[tuple[int, int]], conversation: Conversation, written: Sequence[str]) -> None:
    """Reject placeholders, as :func:`placeholder_runs` finds them, in the prompt of a conversation without an image.

    Raises:
        CapabilityError: it names the placeholders.
    """
    if runs and not conversation.images:
        raise CapabilityError(
            "The prompt has image positions, and the conversation has no image: its text, or the chat template, "
            f"writes an image placeholder ({', '.join(written)}). Pass an image, or reword the text."
        )
