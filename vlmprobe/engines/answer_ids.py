"""Converts a given answer (text, result or ids) to token ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.engines.base import Engine, TokenisesAnswers, require
from vlmprobe.errors import MessageError
from vlmprobe.results.result import Result

if TYPE_CHECKING:
    from vlmprobe.inputs.messages import Conversation

__all__ = ["answer_ids", "require_no_options"]


def answer_ids(engine: Engine, conversation: Conversation, answer: Any) -> list[int]:
    """Token ids of an answer.

    Args:
        engine: whose tokenizer encodes a text.
        conversation: the prompt.
        answer: a text, which is tokenised together with the prompt; a result of the same question; or token ids.

    Raises:
        MessageError: for a result of another question, a text that merges with the prompt, or no tokens.
    """
    if isinstance(answer, Result):
        if answer.meta.get("question", conversation.question) != conversation.question:
            raise MessageError("The result answers another question: pass the question that it answers.")
        ids = answer.output.ids.tolist()
    elif isinstance(answer, str):
        ids = require(engine, TokenisesAnswers).answer_ids(conversation, answer)
    else:
        ids = list(answer)
    for each in ids:
        if isinstance(each, bool) or not isinstance(each, (int, np.integer)) or each < 0:
            raise MessageError(f"An answer is a text, a result, or a list of token ids, not {each!r}.")
    if not ids:
        raise MessageError("The answer has no tokens.")
    return [int(each) for each in ids]


def require_no_options(generation: Mapping[str, Any], why: str) -> None:
    """Reject generation options where nothing is generated."""
    if generation:
        raise MessageError(f"{why}, so {', '.join(sorted(generation))} would do nothing: leave it out.")
