"""Batches conversations by length, longest first; halves the batch size on out-of-memory."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from vlmprobe.engines.base import Engine, MixesImages
from vlmprobe.errors import VlmprobeError
from vlmprobe.inputs.messages import Conversation

__all__ = ["WINDOW", "WINDOW_BYTES", "Batches", "picture_bytes"]

Run: TypeAlias = Callable[[Sequence[int]], Sequence[Any]]

WINDOW = 64  # requests read ahead and grouped with batch_size="auto"
WINDOW_BYTES = 256 * 2**20  # of decoded images in the window
PIXELS = 28 * 28  # of an image per position: exact for InternVL and Qwen-VL, close for most
POSITIONS = 4096  # about the maximum for one image
CHARACTERS = 4  # of text per position
SLACK = 64  # positions of padding that are tolerated in a batch


class Batches:
    """Runs conversations through an engine in batches of at most ``size``, which is halved on out-of-memory.

    An error takes the place of its result: when a batch fails, its conversations run one by one, so that each error
    is that of its own conversation.
    """

    def __init__(self, engine: Engine, size: int, keep_errors: bool = False, about_same: int = 1) -> None:
        self.size = size
        self.about_same = about_same  # times the size, of a grouped batch that is about the same images throughout
        self.keep_errors = keep_errors  # go on after an error; else only with what comes before it
        self.mixes_images = isinstance(engine, MixesImages) and engine.mixes_images

    def in_order(self, conversations: Sequence[Conversation], run: Run) -> Iterator[Any]:
        """Results of the conversations, run in the order given; ``run`` gives those of a batch, by their places."""
        order = range(len(conversations))
        for _, result in self._answered(conversations, order, run, together=self._takes_together, about_same=1):
            yield result

    def grouped(self, conversations: Sequence[Conversation], run: Run) -> Iterator[Any]:
        """The same results in the same order, each as soon as all before it are done; batches are of similar length."""
        done: dict[int, Any] = {}
        given = 0
        order = _order(conversations)
        for place, result in self._answered(
            conversations, order, run, together=self._alike, about_same=self.about_same
        ):
            done[place] = result
            while given in done:
                yield done.pop(given)
                given += 1

    def _answered(
        self,
        conversations: Sequence[Conversation],
        order: Sequence[int],
        run: Run,
        together: Callable[[Conversation, Conversation], bool],
        about_same: int,
    ) -> Iterator[tuple[int, Any]]:
        """Indices and results, in execution order."""
        left = list(order)
        about = [_images(each) for each in conversations]
        alone: set[int] = set()  # of a batch that failed
        while left:
            batch = left[:1]
            seen = {about[batch[0]]}
            for place in left[1 : self.size * about_same]:
                pair = conversations[batch[0]], conversations[place]
                if batch[0] in alone or place in alone or not together(*pair):
                    break
                if len(batch) >= self.size and seen != {about[place]}:
                    break
                batch.append(place)
                seen.add(about[place])
            try:
                results = run(batch)
            except Exception as error:  # noqa: BLE001 - of the model
                if len(batch) > 1:
                    if _out_of_memory(error):
                        self.size, about_same = min(self.size, len(batch) // 2), 1
                    else:  # one of them caused it
                        left[: len(batch)] = sorted(batch)
                        alone.update(batch)
                    _release()
                    continue
                results = [error]
            if isinstance(results[0], Exception):
                if self.keep_errors:
                    _forget_frames(results[0])
                else:  # what comes after it is not asked for
                    left = [batch[0], *(place for place in left if place < batch[0])]
                if _out_of_memory(results[0]):
                    _release()
            del left[: len(batch)]
            yield from zip(batch, results, strict=True)

    def _takes_together(self, first: Conversation, other: Conversation) -> bool:
        """Whether two conversations can share a batch: most processors need the same number of images in each."""
        written_alike = first.continues == other.continues and first.format == other.format
        return written_alike and (self.mixes_images or len(first.images) == len(other.images))

    def _alike(self, first: Conversation, other: Conversation) -> bool:
        """Whether they can share a batch and the shorter one is not mostly padding."""
        shorter, longer = sorted((_length(first), _length(other)))
        return self._takes_together(first, other) and (longer <= 2 * shorter or longer - shorter <= SLACK)


def picture_bytes(conversation: Conversation) -> int:
    """Bytes of a conversation's decoded images."""
    return sum(3 * image.width * image.height for image in conversation.images)


def _order(conversations: Sequence[Conversation]) -> list[int]:
    """Indices, longest first; conversations with the same images are adjacent, so that these are encoded once."""
    lengths = [_length(each) for each in conversations]
    about = [_images(each) for each in conversations]
    longest: dict[tuple[str, ...], int] = {}
    for place, key in enumerate(about):
        if key:
            longest[key] = max(longest.get(key, 0), lengths[place])

    def rank(place: int) -> tuple[int, tuple[str, ...], int, int]:
        key = about[place]
        return -(longest[key] if key else lengths[place]), key, -lengths[place], place

    return sorted(range(len(conversations)), key=rank)


def _images(conversation: Conversation) -> tuple[str, ...]:
    """What its images are, by content."""
    return tuple(part.digest for part in conversation.image_parts)


def _length(conversation: Conversation) -> int:
    """Approximate number of positions of a conversation; it only affects batching."""
    seen = sum(min(POSITIONS, image.width * image.height // PIXELS) for image in conversation.images)
    return seen + sum(len(message.text) for message in conversation.messages) // CHARACTERS


def _out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory: torch's own, or a plain one from its CPU or older allocators."""
    said = str(error).lower()
    told = any(part in said for part in ("out of memory", "not enough memory", "can't allocate memory"))
    kinds = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return kinds or (isinstance(error, RuntimeError) and not isinstance(error, VlmprobeError) and told)


def _forget_frames(error: BaseException) -> None:
    """Clear the local variables of the frames that an error came through, which hold tensors of the model."""
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def _release() -> None:
    """Return unused memory to the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.accelerator.is_available():
        torch.accelerator.empty_cache()
