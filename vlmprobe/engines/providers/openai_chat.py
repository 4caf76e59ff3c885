"""OpenAI's chat protocol, as far as the engines that implement it agree."""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from vlmprobe.engines.constraint import Constraint
from vlmprobe.engines.serving import Alternative, Answer, Client, Decoding, Node, Row, Usage
from vlmprobe.engines.serving.completeness import lost_row
from vlmprobe.engines.serving.http.reply import real
from vlmprobe.engines.serving.image_encoding import data_url
from vlmprobe.engines.serving.value_kind import FLOOR
from vlmprobe.errors import EngineResponseError
from vlmprobe.inputs.messages import Conversation, ImagePart, TextPart

__all__ = [
    "PATH",
    "Said",
    "answer_of",
    "begun_before",
    "body",
    "content_part",
    "entries_of",
    "finish_reason",
    "listed",
    "messages",
    "only_choice",
    "pieces",
    "reasoning_of",
    "response_format",
    "rows_of",
    "text_of",
    "texts_decoder",
    "usage_of",
]

PATH = "/v1/chat/completions"
FINISHED = {"eos": "stop", "stop_sequence": "stop", "max_tokens": "length"}  # other names of the two


@dataclass(frozen=True, slots=True)
class Said:
    """One entry of ``logprobs.content``: a token, its value, and its alternatives in the order received."""

    token: str
    value: float
    top: tuple[tuple[str, float], ...]
    raw: bytes | None = None  # of the token, if the server sends them
    top_raw: tuple[bytes | None, ...] = ()


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


def response_format(constraint: Constraint | None) -> dict[str, Any]:
    """The field that makes an answer obey a schema, in OpenAI's strict mode; none without a constraint."""
    if constraint is None:
        return {}
    schema = {"name": "answer", "strict": True, "schema": constraint.value}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


async def pieces(
    client: Client, request: dict[str, Any], title: str, *, tokens: int, top: int | None
) -> AsyncGenerator[tuple[Node, Node | None, list[Said]], None]:
    """Every chunk of a streamed answer: the event, its choice, and the tokens that came with it.

    The last one may have no choice, and tell how many tokens there were (:func:`usage_of`).

    Args:
        client: of the server.
        request: as for the whole answer.
        title: of the engine.
        tokens, top: of :func:`listed`.
    """
    count = 0
    asked = request | {"stream": True, "stream_options": {"include_usage": True}}
    async with aclosing(client.events(PATH, asked)) as events:
        async for event in events:
            reply = Node(event, title)
            if not reply["choices"].items(most=1):
                if reply.get("usage"):
                    yield reply, None, []
                continue
            choice = only_choice(reply)
            said = []
            if choice.get("logprobs") is not None or text_of(choice) or reasoning_of(choice):
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


def reasoning_of(choice: Node) -> str:
    """The text that a server sends apart from the answer as its reasoning; empty if there is none."""
    message = choice.get("delta") or choice["message"]
    found = message.get("reasoning_content") or message.get("reasoning")
    return found.string() if found is not None else ""


def answer_of(reply: Node, choice: Node, rows: list[Row], **more: Any) -> Answer:
    """The answer of a reply with these rows; ``more`` are further fields of it, those of a prompt."""
    return Answer(
        text_of(choice), finish_reason(choice), rows, usage=usage_of(reply), reasoning=reasoning_of(choice), **more
    )


def usage_of(reply: Node) -> Usage:
    """How many tokens the server counted, as far as it says."""
    usage = reply.get("usage")
    if usage is None:
        return Usage()
    details = usage.get("completion_tokens_details")
    reasoning = usage.count("reasoning_tokens") or (0 if details is None else details.count("reasoning_tokens"))
    return Usage(usage.count("prompt_tokens"), usage.count("completion_tokens"), reasoning or 0)


def texts_decoder() -> codecs.IncrementalDecoder:
    """Decodes the bytes of one token after the other: a character that spans tokens is in the one that completes it.

    Invalid UTF-8 shows as replacement characters, in the token after which that is certain.
    """
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def rows_of(said: Iterable[Said], decoder: codecs.IncrementalDecoder, *, final: bool) -> list[Row]:
    """The rows of tokens, and one without numbers before each that completes a character which others began.

    Args:
        said: the tokens.
        decoder: of the answer's bytes.
        final: whether the answer ends with them.
    """
    rows: list[Row] = []
    for each in said:
        pairs = zip(each.top, each.top_raw or [None] * len(each.top), strict=True)
        top = [Alternative(value, text=token, raw=raw) for (token, value), raw in pairs if value > FLOOR]
        top.sort(key=lambda one: -one.value)
        if each.raw is not None and begun_before(each.raw, each.value, top):
            rows.append(lost_row())
        text = decoder.decode(each.raw) if each.raw else each.token
        rows.append(Row(each.value, text=text, top=tuple(top)))
    if final and rows and (left := decoder.decode(b"", final=True)):
        rows[-1] = replace(rows[-1], text=f"{rows[-1].text}{left}")
    return rows


def begun_before(raw: bytes, value: float | None, top: Iterable[Alternative]) -> bool:
    """Whether a token's bytes are more than its own: llama.cpp has no row for one that ends inside a character."""
    own = next((each.raw for each in top if each.value == value and each.raw is not None), None)
    return own is not None and len(own) < len(raw) and raw.endswith(own)


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
    return entries_of(content, tokens=tokens, top=top)


def entries_of(content: Node, *, tokens: int, top: int | None) -> list[Said]:
    """The entries of a list of tokens; ``tokens`` and ``top`` as for :func:`listed`."""
    entries = content.items()
    if len(entries) > tokens:
        raise EngineResponseError(
            f"{content.where} has {len(entries):,} tokens where at most {tokens:,} were requested."
        )
    return [_said(entry, f"{content.where}[{place}]", top) for place, entry in enumerate(entries)]


def _said(entry: Any, where: str, top: int | None) -> Said:
    token, value, raw = _token(entry, where)
    others = entry.get("top_logprobs") or []
    if not isinstance(others, list) or (top is not None and len(others) > top):
        raise EngineResponseError(f"{where} has more alternatives than the {top} that were requested.")
    told = [_token(each, where) for each in others]
    return Said(token, value, tuple([each[:2] for each in told]), raw, tuple([each[2] for each in told]))


def _token(entry: Any, where: str) -> tuple[str, float, bytes | None]:
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
        raise EngineResponseError(f"{where} is not a token with its log-probability.")
    token, held, raw = entry["token"], entry.get("bytes"), None
    if isinstance(held, list) and all(type(each) is int and 0 <= each < 256 for each in held):
        raw = bytes(held)
        token = token or raw.decode("utf-8", "replace")  # some servers cut a token to its whole characters
    return token, real(entry.get("logprob"), where), raw
