"""What a message holds beside its content, for the chat template: calls of tools, their answers, and reasoning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vlmprobe.errors import MessageError

__all__ = ["FURTHER", "further_keys"]

FURTHER = {"assistant": ("tool_calls", "reasoning_content"), "tool": ("tool_call_id", "name")}  # by role
CALL = '{"type": "function", "function": {"name": ..., "arguments": {...}}}'


def further_keys(raw: Mapping[str, Any], role: str, where: str) -> dict[str, Any]:
    """Those of :data:`FURTHER` that a message has; one that is None or empty holds nothing.

    Args:
        raw: the message.
        role: of it.
        where: the message, for errors.

    Raises:
        MessageError: for a value that no chat template could read.
    """
    found = {key: raw[key] for key in FURTHER.get(role, ()) if raw.get(key) not in (None, "", [], {})}
    for key, value in found.items():
        if key == "tool_calls":
            if not isinstance(value, (list, tuple)) or not all(isinstance(each, Mapping) for each in value):
                raise MessageError(f"{where} has tool_calls that are not a list of mappings such as {CALL}.")
        elif not isinstance(value, str):
            raise MessageError(f"{where} has {type(value).__name__} under {key!r}: give a string.")
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:  # no JSON, or a lone surrogate
            raise MessageError(f"{where} has {key} that cannot be written: {error}.") from error
    return found
