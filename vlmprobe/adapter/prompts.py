"""How an adapter writes a conversation: by the chat template of its processor, by another one, or as a raw prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from vlmprobe.errors import CapabilityError, CheckpointError, MessageError, VlmprobeError
from vlmprobe.inputs.chat_templates import raw_template, rendering, require_read, template_for, templates_of
from vlmprobe.inputs.messages import Conversation, ImagePart, Message, TextPart
from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT

__all__ = ["Prompts", "common_prefix"]

BLANK = ImagePart(Image.new("RGB", (64, 64)))
LISTED = re.compile(r"""[{ ,]['"]type['"]: ?['"]text['"]""")  # a part, written as Python or JSON writes it

REMEDY = (
    "pass chat_template= (the text of one, or a file) or raw_prompt=True; on the command line --chat-template FILE or "
    "--raw-prompt"
)


class Prompts:
    """The half of :class:`~vlmprobe.adapter.Adapter` that turns conversations into texts and processor outputs."""

    model: Any
    processor: Any
    processor_options: Mapping[str, Any]
    if TYPE_CHECKING:  # of the other half

        @property
        def tokenizer(self) -> Any:
            """As in :class:`~vlmprobe.adapter.Adapter`."""

        @property
        def image_ids(self) -> frozenset[int]:
            """As in :class:`~vlmprobe.adapter.Adapter`."""

    def render(self, conversations: Sequence[Conversation]) -> list[str]:
        """Each conversation rendered by the chat template, up to where the model continues: with what it has begun.

        Raises:
            CapabilityError: if the template raises an error; it is quoted.
        """
        options = self._template(conversations)
        written = self._all_written(self._chats(conversations, options), options)
        return [text + each.begun.text for text, each in zip(written, conversations, strict=True)]

    def process(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """Everything that the processor returns for the conversations, left-padded if there are several."""
        pad = {"padding": True, "padding_side": "left"} if len(conversations) > 1 else {}
        options = self._template(conversations)
        return dict(
            self.processor.apply_chat_template(
                self._chats(conversations, options),
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={**self.processor_options, **pad},
                **options,
            )
        )

    @property
    def pixel_step(self) -> tuple[Any, str] | None:
        """An object, and the name of what it calls to turn images, and nothing else, into arrays of pixels.

        The outcome is used again for other prompts about the same images. None if there is no such callable.
        """
        name = "image_processor"
        return (self.processor, name) if callable(getattr(self.processor, name, None)) else None

    def resized_sizes(self, conversation: Conversation) -> list[tuple[int, int]] | None:
        """Width and height in pixels of each image as the model receives it; None where that is not one size each.

        Families whose answers count in these pixels say it; it is recorded in ``meta``.
        """
        return None

    def check_format(self, conversation: Conversation) -> None:
        """Reject what a conversation gives its prompt and the prompt would not hold; runs no model.

        Raises:
            CapabilityError: it names what the chat template does not read.
        """
        if conversation.format == AS_BY_DEFAULT and conversation.is_plain:
            return
        template = self._template([conversation])["chat_template"]
        require_read(template, conversation, lambda each: self.render([each])[0])

    @property
    def image_text(self) -> str:
        """What stands for an image in a raw prompt: as the chat template writes it, else the processor's token."""
        if templates_of(self.processor, self.tokenizer):
            asked = [Conversation((Message("user", (*parts, TextPart("?"))),)) for parts in ((BLANK,), ())]
            try:
                with_image, without = (Prompts.render(self, [each])[0] for each in asked)
            except VlmprobeError:  # a template that wants more than a question
                pass
            else:
                start = common_prefix(with_image, without)
                stop = len(with_image) - common_prefix(with_image[start:][::-1], without[start:][::-1])
                if found := with_image[start:stop].strip():
                    return found
        known = [getattr(self.processor, name, None) for name in ("image_token", "boi_token")]
        marks = [each for each in dict.fromkeys(known) if isinstance(each, str) and each]
        return next((each for each in marks if len(marks) == 1 or self._stands_for_image(each)), "")

    def _stands_for_image(self, mark: str) -> bool:
        """Whether the processor puts an image where a text has this: some read the token that begins one."""
        chat = Conversation((Message("user", (BLANK,)),)).to_chat()
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        try:
            ids = self.processor.apply_chat_template(
                [chat], chat_template=raw_template(mark), processor_kwargs=dict(self.processor_options), **options
            )["input_ids"]
        except (ValueError, TypeError, LookupError, AttributeError):  # of the processor, which counts images
            return False
        return not self.image_ids.isdisjoint(ids[0].tolist())

    def writes_images(self, conversation: Conversation) -> bool:
        """Whether the text of a raw prompt itself holds the placeholders of its images.

        Raises:
            MessageError: if it holds another number of them.
        """
        text, images = conversation.messages[0].text, len(conversation.images)
        if not images:
            return False
        mark = self.image_text
        if not any(each in text for each in (*self.placeholders(), mark) if each):
            return False
        if mark and mark in text and text.count(mark) != images:
            raise MessageError(
                f"The raw prompt has {mark} {text.count(mark)} times, and {images} images: write it once for each "
                "image, or leave it out to have it put where the images are."
            )
        return True

    def raw_template(self, conversation: Conversation) -> str:
        """The template of a raw prompt, which writes its text as it is.

        Raises:
            CapabilityError: if it is not known how an image is written.
        """
        if not conversation.images or self.writes_images(conversation):
            return raw_template("")
        if not (mark := self.image_text):
            raise CapabilityError(
                f"The placeholder of an image in a prompt of {self.model.config.model_type} is not known: write it "
                "into the raw prompt where the image is."
            )
        return raw_template(mark)

    def placeholders(self) -> tuple[str, ...]:
        """How the image placeholders are written in a text."""
        names = [*self.tokenizer.convert_ids_to_tokens(sorted(self.image_ids))]
        names.append(getattr(self.processor, "image_token", None))
        return tuple(dict.fromkeys(each for each in names if isinstance(each, str) and each))

    def _template(self, conversations: Sequence[Conversation]) -> dict[str, Any]:
        """The template of conversations that are written alike, and its arguments."""
        first = conversations[0]
        format = first.format
        if format.raw_prompt:
            return {
                "chat_template": self.raw_template(first),
                "add_generation_prompt": False,
                "continue_final_message": False,
            }
        template = template_for(templates_of(self.processor, self.tokenizer), first)
        if template is None:
            raise CheckpointError(
                f"{self.model.config.name_or_path or 'the checkpoint'} has no chat template, as base models have none: "
                f"{REMEDY}."
            )
        return {
            "chat_template": template,
            "add_generation_prompt": not first.continues,
            "continue_final_message": first.continues,
            **({"tools": list(format.tools)} if format.tools else {}),
            **format.chat_template_kwargs,
        }

    def _chats(self, conversations: Sequence[Conversation], options: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
        return [_readable(each.to_chat(), lambda chat: self._written(chat, options)) for each in conversations]

    def _written(self, chat: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
        return self._all_written([chat], options)[0]

    def _all_written(self, chats: list[list[dict[str, Any]]], options: Mapping[str, Any]) -> list[str]:
        with rendering(self.model.config.model_type):
            return [str(each) for each in self.processor.apply_chat_template(chats, tokenize=False, **options)]


def _readable(chat: list[dict[str, Any]], write: Callable[[list[dict[str, Any]]], str]) -> list[dict[str, Any]]:
    """The chat, with a tool's answer as a string where the template writes a list of parts as a list.

    Templates of models that read images loop over the parts of a user's message, few over those of a tool's.
    """
    if not any(message["role"] == "tool" for message in chat):
        return chat
    try:
        if not LISTED.search(write(chat)):
            return chat
    except VlmprobeError:  # a list where it wants a string
        pass
    return [
        {**message, "content": "".join(part.get("text", "") for part in message["content"])}
        if message["role"] == "tool" and all(part["type"] == "text" for part in message["content"])
        else message
        for message in chat
    ]


def common_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the longest common prefix."""
    if type(one) is not type(other):  # slices of which would never be equal
        one, other = list(one), list(other)
    length, beyond = 0, min(len(one), len(other)) + 1
    while beyond - length > 1:  # slices are compared, since a loop over the characters of a prompt takes longer
        middle = (length + beyond) // 2
        if one[length:middle] == other[length:middle]:
            length = middle
        else:
            beyond = middle
    return length
