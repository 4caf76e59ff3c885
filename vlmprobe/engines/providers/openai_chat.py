"""OpenAI's chat protocol, as far as the engines that implement it agree."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from vlmprobe.engines.serving import Client, Decoding, Node
from vlmprobe.engines.serving.http.reply import real
from vlmprobe.engines.serving.image_encoding import data_url
from vlmprobe.errors import EngineResponseError
from vlmprobe.inputs.messages import Conversation, ImagePart, TextPart

__all__ = [
    "PATH",
    "Said",
    "body",
    "content_part",
    "finish_reason",
    "listed",
    "messages",
    "only_choice",
    "pieces",
    "text_of",
]

PATH = "/v1/chat/completions"
FINISHED = {"eos": "stop", "stop_sequence": "stop", "max_tokens": "length"}  # other names of the two


@dataclass(frozen=True, slots=True)
class Said:
    """One entry of ``logprobs.content``: a token, its value, and its alternatives in the order received."""

    token: str
    value: float
    top: tuple[tuple[str, float], ...]


async def messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The conversation in OpenAI's format; each image once, as its original file or lossless."""
    return [
        {
            "role": message.role,
            "content": [await content_part(part) for part in message.parts] or None,
            **_further(message.further),
        }
        for message in conversation.messages
    ]


def _further(further: Mapping[str, Any]) -> dict[str, Any]:
    """What a message holds beside its content. The protocol has arguments of calls as JSON texts."""
    told = dict(further)
    if "tool_calls" in told:
        told["tool_calls"] = [_call(each) for each in told["tool_calls"]]
    if "reasoning_content" in told:
        told["reasoning"] = told["reasoning_content"]  # its name in later versions
    return told


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str):
        return dict(call)
    arguments = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


async def content_part(part: TextPart | ImagePart) -> dict[str, Any]:
    """A part of a message."""
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    return {"type": "image_url", "image_url": {"url": await data_url(part)}}


async def body(
    model: str, conversation: Conversation, decoding: Decoding, *, seed: int | None, top: int
) -> dict[str, Any]:
    """A request with log-probabilities, in the fields that every engine knows.

    Args:
        model: its name on the server.
        conversation: the prompt.
        decoding: how the answer is drawn.
        seed: of the draw.
        top: how many alternatives to request.
    """
    request: dict[str, Any] = {
        "model": model,
        "messages": await messages(conversation),
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature if decoding.do_sample else 0.0,
        "top_p": decoding.top_p if decoding.do_sample else 1.0,
        "logprobs": True,
        "top_logprobs": top,
        "stream": False,
    }
    if seed is not None:
        request["seed"] = seed
    if decoding.stop_strings:
        request["stop"] = list(decoding.stop_strings)
    if conversation.format.tools:
        request["tools"] = list(conversation.format.tools)
    return request


async def pieces(
    client: Client, request: dict[str, Any], title: str, *, tokens: int, top: int | None
) -> AsyncGenerator[tuple[Node, Node, list[Said]], None]:
    """Every chunk of a streamed answer: the event, its choice, and the tokens that came with it.

    Args:
        client: of the server.
        request: as for the whole answer.
        title: of the engine.
        tokens, top: of :func:`listed`.
    """
    count = 0
    async with aclosing(client.events(PATH, request | {"stream": True})) as events:
        async for event in events:
            reply = Node(event, title)
            if not reply["choices"].items(most=1):
                continue  # usage statistics, which some servers send at the end
            choice = only_choice(reply)
            said = []
            if choice.get("logprobs") is not None or text_of(choice):
                said = listed(choice, tokens=tokens - count, top=top)
            count += len(said)
            yield reply, choice, said


def only_choice(reply: Node) -> Node:
    """The one choice of a reply."""
    choices = reply["choices"]
    if len(choices.items(most=1)) != 1:
        raise EngineResponseError(f"{choices.where} has {len(choices.items())} entries where one was requested.")
    choice = choices[0]
    message = choice.get("delta") or choice.get("message")
    calls = message.get("tool_calls") if message is not None else None
    if calls is not None and calls.value:
        raise EngineResponseError(
            f"{calls.where}: the answer is a call of a tool, which this route sends without log-probabilities: ask "
            "without tools=, or open the checkpoint with vlmprobe.load."
        )
    return choice


def text_of(choice: Node) -> str:
    """The text of an answer, or of a chunk of one; empty if there is none."""
    message = choice.get("delta") or choice["message"]
    message.mapping()
    content = message.get("content")
    return content.string() if content is not None else ""


def finish_reason(choice: Node) -> str:
    """``"stop"`` or ``"length"``, or the engine's own value for anything else; empty for a chunk before the last."""
    found = choice.get("finish_reason")
    word = found.string() if found is not None else "" if choice.get("delta") else "stop"
    return FINISHED.get(word, word)


def listed(choice: Node, *, tokens: int, top: int | None) -> list[Said]:
    """The entries of ``choices[0].logprobs.content``.

    Args:
        choice: of the reply.
        tokens: the maximum number of tokens.
        top: the maximum number of alternatives of each; None for any number.
    """
    logprobs = choice.get("logprobs")
    content = None if logprobs is None else logprobs.get("content")
    if content is None:
        raise EngineResponseError(
            f"{choice.where} has no logprobs.content: this server or model sends no log-probabilities."
        )
    entries = content.items()
    if len(entries) > tokens:
        raise EngineResponseError(
            f"{content.where} has {len(entries):,} tokens where at most {tokens:,} were requested."
        )
    return [_said(entry, f"{content.where}[{place}]", top) for place, entry in enumerate(entries)]


def _said(entry: Any, where: str, top: int | None) -> Said:
    token, value = _pair(entry, where)
    others = entry.get("top_logprobs") or []
    if not isinstance(others, list) or (top is not None and len(others) > top):
        raise EngineResponseError(f"{where} has more alternatives than the {top} that were requested.")
    return Said(token, value, tuple([_pair(each, where) for each in others]))


def _pair(entry: Any, where: str) -> tuple[str, float]:
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
        raise EngineResponseError(f"{where} is not a token with its log-probability.")
    token, held = entry["token"], entry.get("bytes")
    if not token and isinstance(held, list) and all(isinstance(each, int) and 0 <= each < 256 for each in held):
        token = bytes(held).decode("utf-8", "replace")  # some servers cut a token to its whole characters
    return token, real(entry.get("logprob"), where)
