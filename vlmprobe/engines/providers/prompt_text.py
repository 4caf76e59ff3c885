"""Renders the prompt as text, for engines that take text and insert the images themselves."""

from __future__ import annotations

import asyncio
import re

from vlmprobe.adapter import Adapter, EncodedPrompt
from vlmprobe.errors import CapabilityError, MessageError
from vlmprobe.inputs.messages import Conversation

__all__ = ["TAG", "begun_by_server", "encoded_prompt", "written_prompt"]

# InternVL's processors write the context token, once or for every position; engines expect one tag per image.
INTERNVL = re.compile(r"(?:<img>)?(?:<IMG_CONTEXT>)+(?:</img>)?")
TAG = "<image>"


async def encoded_prompt(adapter: Adapter, conversation: Conversation) -> EncodedPrompt:
    """The prompt as the model receives it, encoded here by the model's processor."""
    # In a thread, since the processor also processes the images.
    encoding = await asyncio.to_thread(adapter.encode, [conversation])
    return encoding.prompts[0]


async def written_prompt(adapter: Adapter, conversation: Conversation, engine: str) -> tuple[str, bool]:
    """The rendered chat template with one tag per image, and whether it already starts with the BOS token.

    Raises:
        MessageError: if the text itself contains such a tag, which the engine would take for an image.
        CapabilityError: if the template writes the images in a way that the engine does not know.
    """
    own = type(adapter).encode is not Adapter.encode
    text = (await encoded_prompt(adapter, conversation)).text if own else adapter.render([conversation])[0]
    tagged, found = INTERNVL.subn(TAG, text)
    images = len(conversation.images)
    question = conversation.question
    if (
        images
        and not conversation.format.raw_prompt
        and any(tag in question for tag in (TAG, "<IMG_CONTEXT>", "<img></img>"))
    ):
        raise MessageError(f"The text holds an image tag, which {engine} would read as an image: write it differently.")
    if found and found != images:
        raise CapabilityError(f"The template of {adapter.name} writes {found} image tags for {images} images.")
    begin = getattr(adapter.tokenizer, "bos_token", None)
    return tagged, bool(begin and tagged.startswith(begin))


def begun_by_server(adapter: Adapter, text: str) -> str:
    """A rendered prompt without the BOS token, if the engine's tokenizer would add it again."""
    tokenizer = adapter.tokenizer
    begin = getattr(tokenizer, "bos_token", None)
    if not begin or not text.startswith(begin):
        return text
    adds = list(tokenizer("a")["input_ids"])[:1] == [tokenizer.convert_tokens_to_ids(begin)]
    return text.removeprefix(begin) if adds else text
