"""Recordings of real servers: every request that a probe made and what was answered, for :class:`WireServer` to replay.

A recording is JSON lines of ``{"method", "path", "request", "status", "response"}`` after a first line that says what
was recorded; a stream has ``"events"`` in place of the response. Pictures are left out of the requests. A request that
was not recorded gets HTTP 418, so a test fails where a probe asks anything else than what the real server was asked. A
stream of vLLM is made from the whole answer that was recorded, in the form of vLLM 0.32
(``chat_completion_stream_generator``); ``engines/providers/vllm_real`` reads those of a real one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wire_server import Reply, Request, event_stream, json_reply

PICTURE = re.compile(r"data:image/(\w+);base64,[A-Za-z0-9+/=]+")


def bare(request: Any) -> Any:
    """A request without the bytes of its pictures."""
    return json.loads(PICTURE.sub(r"data:image/\1", json.dumps(request)))


def read(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What was recorded, and the exchanges."""
    head, *lines = file.read_text(encoding="utf-8").splitlines()
    return json.loads(head), [json.loads(line) for line in lines]


def routes(file: Path) -> dict[str, Callable[[Request], Reply]]:
    """Routes that replay a recording."""
    _, exchanges = read(file)

    def reply(request: Request) -> Reply:
        asked = whole = bare(request.json)
        if asked and asked.get("stream"):
            whole = {key: value for key, value in asked.items() if key != "stream_options"} | {"stream": False}
        for each in exchanges:
            due = each["method"], each["path"], each["request"]
            if due == (request.method, request.path, asked):
                return (
                    event_stream(each["events"]) if "events" in each else json_reply(each["response"], each["status"])
                )
            if due == (request.method, request.path, whole):
                return event_stream(streamed(each["response"]))
        return json_reply({"error": {"message": f"not recorded: {json.dumps(asked)[:2000]}"}}, 418)

    return {each["path"]: reply for each in exchanges}


def streamed(reply: dict[str, Any]) -> list[dict[str, Any]]:
    """The events in which vLLM streams a whole answer: first the prompt's ids, then each token, the text in one go."""
    choice = reply["choices"][0]
    entries, ids = choice["logprobs"]["content"], choice["token_ids"]
    first = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    events: list[dict[str, Any]] = [{"choices": [first], "prompt_token_ids": reply["prompt_token_ids"]}]
    for place, (entry, token) in enumerate(zip(entries, ids, strict=True)):
        last = place == len(ids) - 1
        delta = {"content": choice["message"]["content"] if last else ""}
        told = {"index": 0, "delta": delta, "logprobs": {"content": [entry]}, "token_ids": [token]}
        events.append({"choices": [{**told, "finish_reason": choice["finish_reason"] if last else None}]})
    return [*events, {"choices": [], "usage": reply["usage"]}]
