"""Scores candidates of one token each on a vLLM server, by their log-probabilities at the first answer position.

vLLM returns those of up to 128 requested ids (``logprob_token_ids``), beside the token that it draws. A second request
returns the most likely tokens of the same position.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from vlmprobe.engines.base import Options
from vlmprobe.engines.providers import openai_chat
from vlmprobe.engines.providers.vllm.prompt import prompt_fields, token_of
from vlmprobe.engines.serving import Answer, Client, Decoding, Node, Row, Scored, Tokens
from vlmprobe.errors import EngineResponseError
from vlmprobe.inputs.messages import Conversation

__all__ = ["MOST", "chosen_rows"]

MOST = 128  # ids per request
FIRST = Decoding(max_new_tokens=1)
CONTEXT = 32  # ids before a candidate that affect how its text decodes


class Asks(Protocol):
    """What this module needs of the engine of a vLLM server."""

    client: Client
    model: str
    tokens: Tokens

    @property
    def title(self) -> str:
        """The engine's display name."""

    async def answer(self, conversation: Conversation, decoding: Decoding, options: Options) -> Answer:
        """Send the server one request."""


async def chosen_rows(
    engine: Asks, conversation: Conversation, ids: Sequence[int], tail: Sequence[int], options: Options
) -> list[Scored]:
    """The rows of candidates that are one token each, directly after the prompt.

    Args:
        engine: of the server.
        conversation: the prompt.
        ids: of the candidates.
        tail: the ids in which the prompt must end, so that the candidates are scored at the intended position.
        options: of the call.

    Raises:
        EngineResponseError: if the prompt ends differently, or an id is missing from the reply.
    """
    sent = await openai_chat.messages(conversation)
    fields = prompt_fields(conversation, engine.tokens)
    chunks = [list(ids[start : start + MOST]) for start in range(0, len(ids), MOST)]
    answer = await engine.answer(conversation, FIRST, replace(options, prompt=False))
    replies = await asyncio.gather(*(_named(engine, sent, fields, chunk) for chunk in chunks))
    prompt = answer.prompt_ids
    assert prompt is not None
    if conversation.images and engine.tokens.image_ids:
        engine.tokens.spans(prompt, conversation, engine.title)  # raises if the images are not in it
    if list(tail) != prompt[len(prompt) - len(tail) :].tolist():
        raise EngineResponseError(
            f"{engine.title}: the server's prompt ends differently from that of processor=: is it the served model's?"
        )
    top = answer.output[0].top
    values = {token: value for reply in replies for token, value in reply.items()}
    context = tuple(prompt[-CONTEXT:].tolist())
    return [Scored([Row(values[token], token, top=top)], len(prompt), None, context) for token in ids]


async def _named(engine: Asks, sent: list[dict[str, Any]], fields: dict[str, Any], ids: list[int]) -> dict[int, float]:
    request = {
        "model": engine.model,
        "messages": sent,
        "max_tokens": 1,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": True,
        "logprob_token_ids": ids,
        "return_tokens_as_token_ids": True,
        **fields,
    }
    reply = Node(await engine.client.post(openai_chat.PATH, request), engine.title)
    said = openai_chat.listed(openai_chat.only_choice(reply), tokens=1, top=len(ids) + 1)
    if not said:
        raise EngineResponseError(f"{reply.where} holds no token.")
    found = {token_of(token): value for token, value in ((said[0].token, said[0].value), *said[0].top)}
    if lost := [each for each in ids if each not in found]:
        raise EngineResponseError(f"{reply.where} does not hold the log-probabilities of the ids {lost[:8]}.")
    return {each: found[each] for each in ids}
