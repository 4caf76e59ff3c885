"""The prompt as text, for engines that take one and put the pictures in themselves."""

from __future__ import annotations

import asyncio
import re

from vlmprobe.adapter import Adapter, EncodedPrompt
from vlmprobe.errors import CapabilityError, MessageError
from vlmprobe.inputs.messages import Conversation

__all__ = ["TAG", "begun_by_server", "encoded_prompt", "written_prompt"]

# InternVL's processors write the context token, once or for every position; engines want one tag for each picture.
INTERNVL = re.compile(r"(?:<img>)?(?:<IMG_CONTEXT>)+(?:</img>)?")
TAG = "<image>"


async def encoded_prompt(adapter: Adapter, conversation: Conversation) -> EncodedPrompt:
    """The prompt in the model's own sequence, as the model's processor makes it here."""
    # In a thread, for the processor works on the pictures.
    encoding = await asyncio.to_thread(adapter.encode, [conversation])
    return encoding.prompts[0]


async def written_prompt(adapter: Adapter, conversation: Conversation, engine: str) -> tuple[str, bool]:
    """The chat template's text with one tag for each picture, and whether the tokenizer must not begin it.

    Raises:
        MessageError: where the text itself holds such a tag, which the engine would take for a picture.
        CapabilityError: where the template writes the pictures in a way that the engine does not know.
    """
    own = type(adapter).encode is not Adapter.encode
    text = (await encoded_prompt(adapter, conversation)).text if own else adapter.render([conversation])[0]
    tagged, found = INTERNVL.subn(TAG, text)
    pictures = len(conversation.images)
    question = conversation.question
    if pictures and any(tag in question for tag in (TAG, "<IMG_CONTEXT>", "<img></img>")):
        raise MessageError(f"The text holds an image tag, which {engine} would take for a picture: write it otherwise.")
    if found and found != pictures:
        raise CapabilityError(f"The template of {adapter.name} writes {found} image tags for {pictures} pictures.")
    begin = getattr(adapter.tokenizer, "bos_token", None)
    return tagged, bool(begin and tagged.startswith(begin))


def begun_by_server(adapter: Adapter, text: str) -> str:
    """A written prompt for an engine that always lets the tokenizer add what it begins a text with."""
    tokenizer = adapter.tokenizer
    begin = getattr(tokenizer, "bos_token", None)
    if not begin or not text.startswith(begin):
        return text
    adds = list(tokenizer("a")["input_ids"])[:1] == [tokenizer.convert_tokens_to_ids(begin)]
    return text.removeprefix(begin) if adds else text
