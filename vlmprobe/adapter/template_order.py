"""What a chat template makes of the order of a message's parts, and of a system message: found by rendering."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

from vlmprobe.errors import VlmprobeError
from vlmprobe.inputs.chat_templates import templates_of
from vlmprobe.inputs.messages import Conversation, ImagePart, Message, TextPart
from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT, PromptFormat

__all__ = ["drops_system", "moves_images", "text_before_image"]

WORD = "Vlmprobe"  # which no template writes of itself
_MOVES: WeakKeyDictionary[Any, tuple[Any, bool]] = WeakKeyDictionary()  # by adapter, for the last templates and format


def text_before_image(conversation: Conversation) -> bool:
    """Whether a message has text before an image."""
    for message in conversation.messages:
        texts = [place for place, part in enumerate(message.parts) if isinstance(part, TextPart) and part.text.strip()]
        images = [place for place, part in enumerate(message.parts) if isinstance(part, ImagePart)]
        if texts and images and texts[0] < images[-1]:
            return True
    return False


def moves_images(adapter: Any, format: PromptFormat = AS_BY_DEFAULT) -> bool:
    """Whether the chat template, of the checkpoint or of a format, writes an image and a text alike in either order."""
    written_by = templates_of(adapter.processor, adapter.tokenizer), format
    if adapter in _MOVES and _MOVES[adapter][0] == written_by:
        return _MOVES[adapter][1]
    parts = (TextPart(WORD), ImagePart(Image.new("RGB", (8, 8))))
    one, other = (_rendered(adapter, format, Message("user", each)) for each in (parts, parts[::-1]))
    _MOVES[adapter] = written_by, one is not None and one == other
    return _MOVES[adapter][1]


def drops_system(adapter: Any, format: PromptFormat = AS_BY_DEFAULT) -> bool:
    """Whether the chat template, the checkpoint's or a format's, leaves a system message out.

    One that raises an error says so itself.
    """
    messages = (Message("system", (TextPart(WORD),)), Message("user", (TextPart("Hello"),)))
    text = _rendered(adapter, format, *messages)
    return text is not None and WORD not in text


def _rendered(adapter: Any, format: PromptFormat, *messages: Message) -> str | None:
    """A conversation as the chat template renders it; None without a template, and if it raises an error."""
    if format.raw_prompt or not hasattr(adapter.processor, "apply_chat_template"):
        return None
    if format.chat_template is None and not templates_of(adapter.processor, adapter.tokenizer):
        return None
    try:
        return adapter.render([Conversation(messages, replace(format, tools=()))])[0]
    except VlmprobeError:
        return None
