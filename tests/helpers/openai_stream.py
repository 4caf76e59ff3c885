"""A server of OpenAI's plain chat protocol, and what it streams."""

from __future__ import annotations

from wire_server import Reply, WireServer

WORDS = ["Ein", " rotes", " Haus", "。"]
MODELS = {"/v1/models": {"data": [{"id": "m"}]}}


def entry(word: str, value: float = -0.5) -> dict:
    others = [{"token": word, "logprob": value}, {"token": "?", "logprob": value - 1}]
    return {"token": word, "logprob": value, "top_logprobs": others}


def events(words: list[str] = WORDS, reason: str | None = "stop") -> list[dict]:
    found = [
        {"choices": [{"delta": {"content": word}, "logprobs": {"content": [entry(word)]}, "finish_reason": None}]}
        for word in words
    ]
    first = {"choices": [{"delta": {"role": "assistant", "content": ""}, "logprobs": None}]}
    last = {"choices": [{"delta": {}, "finish_reason": reason}]}
    return [first, *found, last, {"choices": [], "usage": {"completion_tokens": 4}}]


def answer(words: list[str] = WORDS) -> dict:
    content = [entry(word) for word in words]
    choice = {"message": {"content": "".join(words)}, "finish_reason": "stop", "logprobs": {"content": content}}
    return {"choices": [choice]}


def plain(reply: Reply | list) -> WireServer:
    """A server of the plain protocol, whose streams are ``reply``."""
    served = iter(reply if isinstance(reply, list) else [])

    def chat(request):
        if not request.json["stream"]:
            return answer()
        return next(served) if isinstance(reply, list) else reply

    return WireServer({**MODELS, "/v1/chat/completions": chat})
