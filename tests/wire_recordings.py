"""Recordings of real servers: every request that a probe made and what was answered, for :class:`WireServer` to replay.

A recording is JSON lines of ``{"method", "path", "request", "status", "response"}`` after a first line that says what
was recorded. Pictures are left out of the requests. A request that was not recorded gets HTTP 418, so a test fails
where a probe asks anything else than what the real server was asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wire_server import Reply, Request, json_reply

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
        asked = bare(request.json)
        for each in exchanges:
            if (each["method"], each["path"], each["request"]) == (request.method, request.path, asked):
                return json_reply(each["response"], each["status"])
        return json_reply({"error": {"message": f"not recorded: {json.dumps(asked)[:2000]}"}}, 418)

    return {each["path"]: reply for each in exchanges}
