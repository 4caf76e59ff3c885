"""``Session``: a probe that remembers the features of the pictures it met last. ``Probe.session`` makes one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from PIL.Image import Image

from vlmprobe.inputs.messages import IMAGE_KEYS, Conversation, Prompt
from vlmprobe.probe import Probe

__all__ = ["Session"]


@dataclass(frozen=True, repr=False)
class Session(Probe):
    """A :class:`~vlmprobe.Probe` whose questions are about ``pictures`` unless they bring pictures of their own."""

    pictures: tuple[Image, ...] = ()

    def forget(self) -> None:
        """Let go of all features; the session can go on."""
        memory = getattr(self.engine, "memory", None)
        if memory is not None:
            memory.clear()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.forget()

    def _conversation(self, question: Prompt, image: Any) -> Conversation:
        if image is None and self.pictures and not _shows(question):
            image = list(self.pictures)
        return super()._conversation(question, image)


def _shows(question: Any) -> bool:
    """Whether a prompt brings pictures of its own."""
    if isinstance(question, Conversation):
        return bool(question.images)
    if not isinstance(question, (list, tuple)):
        return False
    contents = [message.get("content") for message in question if isinstance(message, Mapping)]
    parts = [part for content in contents for part in (content if isinstance(content, (list, tuple)) else [content])]
    return any(
        isinstance(part, Mapping) and any(part.get(key) is not None for key in (*IMAGE_KEYS, "image_url"))
        for part in parts
    )
