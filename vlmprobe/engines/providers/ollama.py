"""Ollama's own chat route: chosen and most likely tokens of the answer, as text.

Written from its source as of August 2026 (fb307609) and not run. It drops the ids and true bytes that llama.cpp gives
it, so a token that is part of a character arrives as a replacement character.
"""

from __future__ import annotations

from typing import Any

from vlmprobe.engines.base import Options
from vlmprobe.engines.serving import BASIC, Abilities, Alternative, Answer, Decoding, Facts, Node, Row, Server, Usage
from vlmprobe.engines.serving.base import ServedEngine
from vlmprobe.engines.serving.http.reply import real
from vlmprobe.engines.serving.image_encoding import base64_of
from vlmprobe.engines.serving.value_kind import FLOOR
from vlmprobe.errors import EngineResponseError
from vlmprobe.inputs.messages import Conversation, ImagePart, Message, TextPart

__all__ = ["Ollama"]

MOST = 20  # alternatives; more is refused
IMITATORS = ("llamacpp", "sglang", "vllm", "lmdeploy")
WOULD = "llama.cpp's own server gives ids and more alternatives, vLLM prompts and candidates too"


class Ollama(ServedEngine):
    """An Ollama server, from version 0.12.11 on, the first with log-probabilities."""

    title = "Ollama"
    abilities = Abilities(
        alternatives=MOST,
        no_alternatives=WOULD,
        no_prompt=f"it has no log-probabilities of prompts; {WOULD}",
        one_token=f"it cannot score given text; {WOULD}",
        takes=BASIC | {"top_k", "min_p", "repetition_penalty", "stop_strings"},
    )

    @classmethod
    async def recognise(cls, facts: Facts) -> Server | None:
        """A server that lists its models at ``/api/tags``, and is not one of those that imitate Ollama."""
        if any(each.get("owned_by") in IMITATORS for each in await facts.models()):
            return None
        tags = await facts.get("/api/tags")
        listed = tags.get("models") if isinstance(tags, dict) else None
        if not isinstance(listed, list):
            return None
        told = await facts.get("/api/version")
        version = told.get("version") if isinstance(told, dict) else None
        if not isinstance(version, str):
            return None
        names = [each["name"] for each in listed if isinstance(each, dict) and isinstance(each.get("name"), str)]
        return Server(version=version, models=tuple(names))

    async def answer(self, conversation: Conversation, decoding: Decoding, options: Options) -> Answer:
        """Send one request."""
        top = min(options.alternatives, MOST)
        request = {
            "model": self.model,
            "messages": [await _message(each) for each in conversation.messages],
            "stream": False,
            "think": False,
            "truncate": False,  # a prompt that is too long is an error rather than truncated
            "shift": False,
            "logprobs": True,
            "top_logprobs": top,
            "options": _options(decoding, options.seed),
        }
        reply = Node(await self.client.post("/api/chat", request), self.title)
        found = reply.get("logprobs")
        if found is None:
            raise EngineResponseError(
                f"{reply.where} has no logprobs: Ollama sends them from version 0.12.11 on, and only for models that "
                "run on this server."
            )
        rows = [
            _row(entry, top, f"{found.where}[{place}]")
            for place, entry in enumerate(found.items(most=decoding.max_new_tokens))
        ]
        reason = reply.get("done_reason")
        text = reply["message"].get("content")
        return Answer(
            "" if text is None else text.string(),
            "length" if reason and reason.value == "length" else "stop",
            rows,
            usage=Usage(reply.count("prompt_eval_count"), reply.count("eval_count")),
        )


def _options(decoding: Decoding, seed: int | None) -> dict[str, Any]:
    sampled = decoding.do_sample
    found: dict[str, Any] = {
        "num_predict": decoding.max_new_tokens,
        "temperature": decoding.temperature if sampled else 0.0,
        "top_p": decoding.top_p if sampled else 1.0,
        "top_k": decoding.top_k if sampled else 0,
        "min_p": decoding.min_p if sampled else 0.0,
        "repeat_penalty": decoding.repetition_penalty,
        # As in transformers, the penalty counts the whole prompt and answer; the default is the last 64 tokens.
        **({"repeat_last_n": -1} if decoding.repetition_penalty != 1 else {}),
    }
    if decoding.stop_strings:
        found["stop"] = list(decoding.stop_strings)
    if seed is not None:
        found["seed"] = seed
    return found


async def _message(message: Message) -> dict[str, Any]:
    """Ollama puts the images of a message before its text, in their order."""
    images = [each for each in message.parts if isinstance(each, ImagePart)]
    told: dict[str, Any] = {
        "role": message.role,
        "content": "".join(each.text for each in message.parts if isinstance(each, TextPart)),
    }
    if images:
        told["images"] = [await base64_of(each) for each in images]
    return told


def _row(entry: Any, top: int, where: str) -> Row:
    value, text = _pair(entry, where)
    others = entry.get("top_logprobs") or []
    if not isinstance(others, list) or len(others) > top:
        raise EngineResponseError(f"{where} has more alternatives than the {top} that were requested.")
    pairs = sorted((_pair(each, where) for each in others), reverse=True)
    return Row(value, text=text, top=tuple(Alternative(number, text=each) for number, each in pairs if number > FLOOR))


def _pair(entry: Any, where: str) -> tuple[float, str]:
    if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
        raise EngineResponseError(f"{where} is not a token with its log-probability.")
    return real(entry.get("logprob"), where), entry["token"]
