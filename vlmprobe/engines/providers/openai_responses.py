"""OpenAI's Responses API: chosen and most likely tokens of the answer, as text; neither ids nor the prompt.

Written from its documentation and the types of OpenAI's Python client; never run against a real server. It is used
where the caller says ``engine="openai-responses"``: what a server says of itself does not tell it from the chat API.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlmprobe.engines.base import Options
from vlmprobe.engines.providers import openai_chat
from vlmprobe.engines.providers.openai import MOST, WOULD, OpenAI
from vlmprobe.engines.serving import BASIC, Abilities, Answer, Decoding, Facts, Meaning, Node, Server, Usage
from vlmprobe.engines.serving.base import ServedEngine
from vlmprobe.engines.serving.image_encoding import data_url
from vlmprobe.errors import EngineError, EngineResponseError
from vlmprobe.inputs.messages import Conversation, ImagePart, Message, TextPart

__all__ = ["OpenAIResponses"]

PATH = "/v1/responses"
LEAST = 16  # tokens, the smallest limit that OpenAI takes
FINISHED = {"completed": "stop", "max_output_tokens": "length"}
NO_SEED = "the Responses API takes none: sampled answers cannot be repeated"


class OpenAIResponses(ServedEngine):
    """The API as OpenAI documents it. Nothing is stored on the server (``store`` is false)."""

    title = "OpenAI Responses"
    generic = True
    abilities = Abilities(
        alternatives=MOST,
        no_alternatives="the API allows no more; vLLM with --max-logprobs does",
        no_prompt=f"the API has no prompt log-probabilities; {WOULD}",
        one_token=f"the API cannot score given text; {WOULD}",
        takes=BASIC,
        constraints=frozenset({"schema"}),
        constrained="unknown",
    )

    @classmethod
    async def recognise(cls, facts: Facts) -> Server | None:
        """Any server that lists models as OpenAI does; without ``engine=`` it is asked over the chat API."""
        return await OpenAI.recognise(facts)

    async def find_out(self) -> None:
        """Determine what the numbers mean; a value at the floor only means that the token is not listed."""
        if self.meaning is None:
            found = await self.probed_meaning()
            self.meaning = Meaning(found.kind, found.logits, clamped=False)

    async def find_out_constrained(self) -> None:
        """Determine what the numbers of an answer are that obeys a schema: the API does not say."""
        self.abilities = replace(self.abilities, constrained=await self.probed_constraint())

    async def answer(self, conversation: Conversation, decoding: Decoding, options: Options) -> Answer:
        """Send one request."""
        top, limit = min(options.alternatives, MOST), max(LEAST, decoding.max_new_tokens)
        request: dict[str, Any] = {
            "model": self.model,
            "input": [await _message(each) for each in conversation.messages],
            "max_output_tokens": limit,
            "temperature": decoding.temperature if decoding.do_sample else 0.0,
            "top_p": decoding.top_p if decoding.do_sample else 1.0,
            "include": ["message.output_text.logprobs"],
            "top_logprobs": top,
            "store": False,
            "stream": False,
        }
        if options.constraint is not None:
            form = {"type": "json_schema", "name": "answer", "strict": True, "schema": options.constraint.value}
            request["text"] = {"format": form}
        reply = Node(await self.client.post(PATH, request), self.title)
        reason = _finish_reason(reply)
        text, said = _said(reply, limit, top)
        cut = len(said) > decoding.max_new_tokens  # which is below LEAST
        usage = _usage(reply)
        if cut:
            kept = decoding.max_new_tokens
            further = len(said) - kept + (reason == "stop")  # an end that is counted and not sent
            counted = None if usage.completion is None else max(kept, usage.completion - usage.reasoning - further)
            usage, said, reason = Usage(usage.prompt, counted), said[:kept], "length"
        rows = openai_chat.rows_of(said, openai_chat.texts_decoder(), final=True)
        if cut:
            text = "".join(row.text or "" for row in rows)
        unseeded = options.seed is not None and decoding.do_sample
        return Answer(text, reason, rows, usage=usage, meta={"absent": {"seed": NO_SEED}} if unseeded else {})


async def _message(message: Message) -> dict[str, Any]:
    kind = "output_text" if message.role == "assistant" else "input_text"
    return {"role": message.role, "content": [await _part(part, kind) for part in message.parts]}


async def _part(part: TextPart | ImagePart, kind: str) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": kind, "text": part.text}
    return {"type": "input_image", "image_url": await data_url(part), "detail": "auto"}


def _finish_reason(reply: Node) -> str:
    status = reply["status"].string()
    if (error := reply.get("error")) is not None:
        raise EngineError(f"{error.where}: {str(error.value)[:300]}")
    if status == "incomplete":
        status = reply["incomplete_details"]["reason"].string()
    elif status != "completed":
        raise EngineResponseError(f"{reply['status'].where} is {status[:80]!r}, not that of an answer.")
    return FINISHED.get(status, status)


def _said(reply: Node, limit: int, top: int) -> tuple[str, list[openai_chat.Said]]:
    """The text of all messages of a reply, and its tokens."""
    text, found = "", False
    said: list[openai_chat.Said] = []
    for item in _each(reply["output"]):
        if item["type"].string() != "message":
            continue
        for part in _each(item["content"]):
            if (refusal := part.get("refusal")) is not None:
                raise EngineResponseError(f"{refusal.where}: the model refuses to answer: {refusal.string()[:300]!r}.")
            written, logprobs = part["text"].string(), part.get("logprobs")
            if logprobs is None or (written and not logprobs.items(most=limit)):
                raise EngineResponseError(
                    f"{part.where} has no logprobs: this server or model sends no log-probabilities."
                )
            said += openai_chat.entries_of(logprobs, tokens=limit - len(said), top=top)
            text, found = text + written, True
    if not found:
        raise EngineResponseError(
            f"{reply['output'].where} has no message with a text: a limit may have ended the answer before it."
        )
    return text, said


def _each(listed: Node) -> list[Node]:
    return [listed[place] for place in range(len(listed.items(most=1000)))]


def _usage(reply: Node) -> Usage:
    usage = reply.get("usage")
    if usage is None:
        return Usage()
    details = usage.get("output_tokens_details")
    reasoning = None if details is None else details.count("reasoning_tokens")
    return Usage(usage.count("input_tokens"), usage.count("output_tokens"), reasoning or 0)
