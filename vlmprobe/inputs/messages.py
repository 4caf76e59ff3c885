"""Conversations of text and images: every accepted input becomes one frozen :class:`Conversation`.

Accepted are a plain string with ``image=``, the chat messages of transformers' templates
(``{"type": "image", "image" | "path" | "url" | "base64": ...}``, or a bare ``{"type": "image"}`` for each
image of ``image=``) and OpenAI's ``image_url`` parts. An ``assistant`` message may have ``tool_calls`` and
``reasoning_content``, and a ``tool`` message answers a call; the chat template must read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

from PIL.Image import Image

from vlmprobe.errors import ImageError, MessageError, near
from vlmprobe.inputs.ahead import load_now
from vlmprobe.inputs.begun import NOTHING, Begun
from vlmprobe.inputs.further_keys import FURTHER, further_keys
from vlmprobe.inputs.image_names import require_question
from vlmprobe.inputs.images import digest, is_encoded, is_file
from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT, PromptFormat

__all__ = ["IMAGE_KEYS", "Conversation", "ImagePart", "Message", "Prompt", "TextPart", "shows_images"]

Prompt: TypeAlias = "str | Sequence[Mapping[str, Any]]"

ROLES = ("system", "user", "assistant", "tool")
DETAILS = (None, "auto", "high")  # values of OpenAI's "detail" that leave the image as it is
IMAGE_KEYS = ("image", "path", "url", "base64")  # where an image part may hold its image, as in transformers


@dataclass(frozen=True)
class TextPart:
    """A piece of text in a message.

    Raises:
        MessageError: if the text contains a lone surrogate, which no tokenizer can encode.
    """

    text: str

    def __post_init__(self) -> None:
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise MessageError(
                f"The text contains a lone surrogate at {error.start} ({self.text[error.start]!r}): "
                "it was decoded with the wrong encoding; read its bytes as UTF-8."
            ) from error


@dataclass(frozen=True)
class ImagePart:
    """An image in a message, loaded, upright and RGB.

    ``options`` are the remaining keys of the part (``min_pixels``, ``max_pixels``, ``resized_height``, ...):
    adapters whose preprocessing supports them apply them, others raise.
    """

    image: Image
    options: Mapping[str, Any] = field(default_factory=dict)
    encoded: bytes | None = field(default=None, repr=False)  # the JPEG or PNG file that decodes to exactly these pixels

    @cached_property
    def digest(self) -> str:
        """That of the image, computed once: each call builds parts of its own, from the image as it is then."""
        return digest(self.image)


@dataclass(frozen=True)
class Message:
    """One turn: a role (``system``, ``user``, ``assistant`` or ``tool``) and its parts in order."""

    role: str
    parts: tuple[TextPart | ImagePart, ...]
    further: Mapping[str, Any] = field(default_factory=dict, hash=False)  # ``tool_calls``, ``reasoning_content``, ...

    @property
    def text(self) -> str:
        """The text parts joined without a separator; images are skipped."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True)
class Conversation:
    """Messages in order, and how they are written as a prompt.

    If the last role is ``assistant``, the model continues that message, unless ``format`` says otherwise.
    """

    messages: tuple[Message, ...]
    format: PromptFormat = AS_BY_DEFAULT
    begun: Begun = NOTHING  # what the answer begins with, after the prompt

    @classmethod
    def build(
        cls, prompt: Prompt | Conversation, image: Any = None, format: PromptFormat | None = None
    ) -> Conversation:
        """Build a conversation from a prompt and its images.

        Args:
            prompt: a question, or chat messages (see the module docstring), or a conversation.
            image: one image, or a list, tuple or iterator of images. If the messages have bare
                ``{"type": "image"}`` parts, the images fill those in order, one each; otherwise they go to the
                start of the last user message. Each is a path, an ``http(s)`` or ``data:`` URL, an open file,
                bytes, ``{"bytes": ..., "path": ...}``, a PIL image or an array.
            format: how it is written; that of ``prompt`` if it is a conversation, or as by default, if None.

        Raises:
            MessageError: for a wrong role, part or type, a key that would be dropped, an empty conversation, nothing
                to answer, or messages that ``format`` does not fit.
            ImageError: for an image that cannot be read; the message says which one.
        """
        if not isinstance(prompt, Conversation):
            require_question(prompt, image)
        images = _image_list(image)
        if isinstance(prompt, Conversation):
            # Parts of its own: an image may have been edited since its digest was taken.
            messages = [replace(each, parts=tuple(map(replace, each.parts))) for each in prompt.messages]
            format = prompt.format if format is None else format
        elif isinstance(prompt, str):
            if not prompt.strip():
                raise MessageError("The prompt is empty: pass a question, such as 'Describe the picture.'")
            messages = [Message("user", (TextPart(prompt),))]
        elif isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)):
            slots = _slots(prompt)
            if len(slots) not in (0, len(images)):
                raise MessageError(
                    f"{'; '.join(slots)}: no image in {len(slots)} image parts, and image= gives {len(images)}. Give "
                    f"one for each in image=, or put each into its part under one of {', '.join(IMAGE_KEYS)}."
                )
            rest = iter(images)
            messages = [_message(each, place, rest) for place, each in enumerate(prompt)]
            images = list(rest)
        else:
            raise MessageError(
                f"A question is a string or a list of chat messages, not {type(prompt).__name__}. {_instead(prompt)}"
            )
        if not messages:
            raise MessageError("The conversation has no message: add one with role 'user'.")
        for place, message in enumerate(messages[1:], 1):
            if message.role == "system":
                raise MessageError(f"Message {place} has role 'system': a system message can only come first.")
        if messages[-1].role == "system":
            raise MessageError("The conversation ends with a system message: add a user message to answer.")
        if images:
            messages = _put_before_text(messages, images)
        begun = prompt.begun if isinstance(prompt, Conversation) else NOTHING
        made = cls(tuple(messages), format or AS_BY_DEFAULT, begun)
        _require_answerable(made)
        return made

    @property
    def images(self) -> tuple[Image, ...]:
        """All images, in the order in which the model sees them."""
        return tuple(part.image for part in self.image_parts)

    @property
    def image_parts(self) -> tuple[ImagePart, ...]:
        """Every image part, in order."""
        return tuple(part for message in self.messages for part in message.parts if isinstance(part, ImagePart))

    @property
    def question(self) -> str:
        """The text of the last user message, for display."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def continues(self) -> bool:
        """Whether the model continues the last (assistant) message rather than starting a new one."""
        return self.messages[-1].role == "assistant" and self.format.continue_final_message is not False

    @property
    def is_plain(self) -> bool:
        """Whether its messages hold nothing but contents of system, user and assistant."""
        return not any(message.further or message.role == "tool" for message in self.messages)

    def to_chat(self) -> list[dict[str, Any]]:
        """The conversation in the format of transformers' chat templates, images under the key ``image``."""
        return [
            {
                "role": message.role,
                "content": [
                    {"type": "text", "text": part.text}
                    if isinstance(part, TextPart)
                    else {"type": "image", "image": part.image, **part.options}
                    for part in message.parts
                ],
                **message.further,
            }
            for message in self.messages
        ]


def _require_answerable(conversation: Conversation) -> None:
    """Reject a conversation that leaves nothing to answer, or that its format does not fit.

    Raises:
        MessageError: it says what to change.
    """
    messages, format = conversation.messages, conversation.format
    last = messages[-1]
    if format.raw_prompt and [message.role for message in messages] != ["user"]:
        raise MessageError(
            "A raw prompt is one text (one user message): write all turns into it, as the model reads them."
        )
    if format.continue_final_message and last.role != "assistant":
        raise MessageError(
            f"continue_final_message=True needs an 'assistant' message at the end, not one of {last.role!r}."
        )
    if last.further.get("tool_calls") and conversation.continues:
        raise MessageError(
            "The conversation ends with tool_calls, after which no text can be continued: add the answer of the tool "
            "(role 'tool'), or pass continue_final_message=False."
        )
    empty = not last.text.strip() and not any(isinstance(part, ImagePart) for part in last.parts)
    if empty and not last.further.get("tool_calls"):
        remedy = "leave it out" if last.role == "assistant" else "add a question to it"
        raise MessageError(f"The last message (role {last.role!r}) is empty: {remedy}.")


def _instead(question: Any) -> str:
    """How to ask what was given in place of a question."""
    if isinstance(question, Mapping) and "role" in question:
        return "Put the message into a list."
    if isinstance(question, Mapping) and {"question", "prompt"} & set(question):
        return "Unpack a row, generate(**row), if it has only question and image; generate_many([row]) takes any."
    if hasattr(question, "question"):
        return "Pass its question and its image, or generate_many([request])."
    return 'Example: [{"role": "user", "content": [{"type": "text", "text": "..."}]}]'


def _image_list(image: Any) -> list[ImagePart]:
    if image is None:
        return []
    if isinstance(image, (Set, Mapping)) and not is_encoded(image):
        raise MessageError(f"image= is a {type(image).__name__}: pass one image, or a list, which has an order.")
    if not isinstance(image, (list, tuple, Iterator)) or is_file(image):  # an open file iterates over its lines
        return [_loaded(image, "image=")]
    several = list(image)
    if not several and isinstance(image, Iterator):
        raise MessageError("image= is an exhausted iterator: pass a list, which can be read again.")
    return [_loaded(each, f"image=, number {place} of {len(several)}") for place, each in enumerate(several, 1)]


def _loaded(source: Any, where: str, options: Mapping[str, Any] | None = None) -> ImagePart:
    try:
        image, encoded = load_now(source)
        return ImagePart(image, options or {}, encoded)
    except ImageError as error:
        raise type(error)(f"{where}: {error}") from error


def _slots(messages: Sequence[Any]) -> list[str]:
    """The image parts to be filled from ``image=``, by message and part."""
    found = []
    for place, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        parts = content if isinstance(content, (list, tuple)) else [content]
        for index, part in enumerate(parts):
            if isinstance(part, Mapping) and part.get("type") == "image" and not _keys_held(part):
                found.append(f"Message {place}, part {index}")
    return found


def _keys_held(part: Mapping[str, Any]) -> list[str]:
    return [key for key in IMAGE_KEYS if part.get(key) is not None]


def _put_before_text(messages: list[Message], images: list[ImagePart]) -> list[Message]:
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].role == "user":
            asked = messages[place]
            return [*messages[:place], Message("user", (*images, *asked.parts)), *messages[place + 1 :]]
    raise MessageError("image= needs a user message to go into; the conversation has none.")


def _message(raw: Any, place: int, images: Iterator[ImagePart]) -> Message:
    where = f"Message {place}"
    if isinstance(raw, str):
        raise MessageError(
            f"{where} is a string, not a mapping with 'role' and 'content': pass one question as a plain string, "
            "several to generate_many, and a question with its image as a tuple, (question, image)."
        )
    if not isinstance(raw, Mapping):
        raise MessageError(f"{where} is {type(raw).__name__}, not a mapping with 'role' and 'content'.")
    calls = raw.get("role") == "assistant" and bool(raw.get("tool_calls"))
    for key in ("role", "content"):
        if key not in raw and not (calls and key == "content"):
            raise MessageError(f"{where} has no {key!r}, only {', '.join(map(repr, raw)) or 'nothing'}: add it.")
    role, content = raw["role"], raw.get("content")
    if role not in ROLES:
        raise MessageError(f"{where} has role {role!r}; roles are {', '.join(ROLES)}.{near(str(role), ROLES)}")
    if role == "tool" and place == 0:
        raise MessageError(
            "Message 0 has role 'tool': the answer of a tool comes after the 'assistant' message that called it."
        )
    _require_known(raw, ("role", "content", *FURTHER.get(role, ())), where)
    further = further_keys(raw, role, where)
    if isinstance(content, str):
        return Message(role, (TextPart(content),) if content or not calls else (), further)
    if content is None and calls:  # as OpenAI's client writes it
        return Message(role, (), further)
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, (list, tuple)):
        raise MessageError(f"{where} has content of type {type(content).__name__}; use a string or a list of parts.")
    parts = tuple(_part(each, f"{where}, part {index}", images) for index, each in enumerate(content))
    if not parts and not calls:
        raise MessageError(f"{where} has an empty content list: add a text or an image part.")
    return Message(role, parts, further)


def _part(raw: Any, where: str, images: Iterator[ImagePart]) -> TextPart | ImagePart:
    if isinstance(raw, str):
        return TextPart(raw)
    if not isinstance(raw, Mapping):
        raise MessageError(
            f"{where} is {type(raw).__name__}, not a mapping with a 'type': an image goes into "
            '{"type": "image", "image": ...}.'
        )
    kind = raw.get("type")
    if kind == "text":
        text = raw.get("text")
        if not isinstance(text, str):
            raise MessageError(f"{where} has type 'text' and no string under 'text'.")
        _require_known(raw, ("type", "text"), where)
        return TextPart(text)
    if kind == "image":
        return _image_part(raw, where, images)
    if kind == "image_url":
        link = raw.get("image_url")
        url = link.get("url") if isinstance(link, Mapping) else link
        if not isinstance(url, str) and not is_file(url):
            raise MessageError(f"{where} has type 'image_url' and no string under 'image_url' or its 'url'.")
        _require_known(raw, ("type", "image_url"), where)
        if isinstance(link, Mapping):
            _require_known(link, ("url", "detail"), f"{where}, image_url")
            if link.get("detail") not in DETAILS:
                raise MessageError(
                    f"{where} has detail {link['detail']!r}: images keep their size; make the image smaller yourself, "
                    "or leave 'detail' out."
                )
        return _loaded(url, where)
    if kind in ("video", "audio", "video_url", "input_audio"):
        raise MessageError(f"{where} is {kind}: vlmprobe reads text and images; pass frames as images.")
    known = ("text", "image", "image_url")
    if "type" not in raw:
        raise MessageError(f"{where} has no 'type': add one of {', '.join(known)}.")
    raise MessageError(f"{where} has type {kind!r}; types are {', '.join(known)}.{near(str(kind), known)}")


def _require_known(raw: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Reject keys that would be dropped; a key that is None or empty (``"tool_calls": []`` in replies) holds nothing.

    Raises:
        MessageError: it names the keys.
    """
    unknown = [key for key, value in raw.items() if key not in known and value not in (None, "", [], {})]
    if unknown:
        raise MessageError(
            f"{where} has {', '.join(map(repr, unknown))}, and only {' and '.join(map(repr, known))} are read: leave "
            "it out, or write it into the text."
        )


def _image_part(raw: Mapping[str, Any], where: str, images: Iterator[ImagePart]) -> ImagePart:
    known = (*IMAGE_KEYS, "type")
    options = {key: value for key, value in raw.items() if key not in known and value is not None}
    held = _keys_held(raw)
    if not held:
        return replace(next(images), options=options)
    if len(held) > 1:
        raise MessageError(f"{where} has type 'image' and several of {', '.join(held)}: give exactly one.")
    source = raw[held[0]]
    if held[0] == "base64":
        if isinstance(source, (bytes, bytearray)):
            source = source.decode("latin-1")  # invalid base64 is reported when it is decoded
        if not isinstance(source, str):
            raise MessageError(f"{where} has {type(source).__name__} under 'base64': put other images under 'image'.")
        if not source.startswith("data:"):
            source = f"data:image/*;base64,{source}"
    return _loaded(source, where, options)


def shows_images(question: Any) -> bool:
    """Whether a prompt itself contains images."""
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
