"""Conversations in another order than the caller's, and caches continued where RoPE changes: C20 to C23."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np

from broken_adapters.case import Rewriting, broken
from vlmprobe.engines.local import LocalEngine
from vlmprobe.inputs.messages import Conversation, ImagePart, Message
from vlmprobe.model_registry.internvl import InternVL
from vlmprobe.model_registry.native import Native

SWITCH = 256  # positions: more than any prompt of the other checks has


def _sorted(message: Message) -> Message:
    return Message(message.role, tuple(sorted(message.parts, key=lambda part: not isinstance(part, ImagePart))))


# C20


@broken("C20")
class ImagesMovedToTheFront(InternVL):
    def encode(self, conversations):
        return super().encode([Conversation(tuple(map(_sorted, each.messages))) for each in conversations])


@broken("C20")
class RowsBeforeTheImageOfAnotherPrompt(Rewriting):
    """The rows before an image are right only where they are those of a template."""

    def rewrite(self, result, options):
        if result.prompt is None or result.prompt.logits is None or "image" not in result.prompt.kinds:
            return result
        before = result.prompt.kinds.index("image")
        if "picture" not in "".join(result.prompt.tokens[:before]):
            return result
        logits = np.array(result.prompt.logits)
        logits[1:before] += 0.5
        return replace(result, prompt=replace(result.prompt, logits=logits))


# C21


@broken("C21")
class SystemMessageDropped(InternVL):
    def encode(self, conversations):
        return super().encode(
            [Conversation(tuple(each for each in one.messages if each.role != "system")) for one in conversations]
        )


# C22


@broken("C22")
class ImagesMovedToTheLastTurn(InternVL):
    def encode(self, conversations):
        return super().encode([self._moved(each) for each in conversations])

    def _moved(self, conversation):
        if len(conversation.messages) < 3:
            return conversation
        *earlier, last = conversation.messages
        bare = [Message(each.role, tuple(p for p in each.parts if not isinstance(p, ImagePart))) for each in earlier]
        images = tuple(part for each in earlier for part in each.parts if isinstance(part, ImagePart))
        return Conversation((*bare, Message(last.role, (*images, *last.parts))))


@broken("C22", "llava")
class ImagesOfTheTurnsExchanged(Native):
    def process(self, conversations):
        inputs = super().process(conversations)
        if len(conversations[0].messages) > 2:
            inputs["pixel_values"] = inputs["pixel_values"].flip(0)
        return inputs


# C23


def dynamic(model):
    """RoPE frequencies of a LLaVA that change with the length of a sequence beyond the switch."""
    text = model.config.text_config
    text.rope_parameters = {**text.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
    text.max_position_embeddings = SWITCH
    decoder = model.model.language_model
    decoder.rotary_emb = type(decoder.rotary_emb)(text)


@broken("C23", "llava")
class SwitchInTheWrongPlace(Native):
    def __init__(self, model, processor):
        dynamic(model)
        super().__init__(model, processor)
        self.capabilities = replace(self.capabilities, prefix_limit=SWITCH + 60)


@broken("C23", "llava")
class CacheContinuedAcrossTheSwitch(LocalEngine):
    def __init__(self, adapter):
        dynamic(adapter.model)
        adapter.capabilities = replace(adapter.capabilities, prefix_limit=SWITCH)
        super().__init__(adapter)

    def score(self, conversation, candidates, options):
        unaware = copy.copy(self.adapter)
        unaware.capabilities = replace(unaware.capabilities, prefix_limit=None)
        return LocalEngine(unaware).score(conversation, candidates, options)
