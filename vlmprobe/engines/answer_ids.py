"""Converts a given answer (text, result or ids) to token ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.engines.base import Engine, TokenisesAnswers, require
from vlmprobe.engines.recorded_prompt import require_answer_to
from vlmprobe.errors import MessageError
from vlmprobe.results.result import Result, Scores

if TYPE_CHECKING:
    from vlmprobe.inputs.messages import Conversation

__all__ = ["answer_ids", "require_no_options"]

NO_ANSWER = "An answer is a text, a result, or a list of token ids"
RESULT_REMEDY = "pass the question and images that it answers, or answer=result.output.ids to take only its tokens"


def answer_ids(engine: Engine, conversation: Conversation, answer: Any) -> list[int]:
    """Token ids of an answer.

    Args:
        engine: whose tokenizer encodes a text.
        conversation: the prompt.
        answer: a text, which is tokenised together with the prompt; a result of the same prompt and images; or token
            ids, taken as they are.

    Raises:
        MessageError: for a result of another prompt or of other images, a text that merges with the prompt, no tokens,
            or anything else.
    """
    if isinstance(answer, Result):
        require_answer_to(engine, conversation, answer, RESULT_REMEDY)
        if answer.output.ids is None:
            raise MessageError("The result has no token ids, which its engine does not give: pass answer=result.text.")
        ids = answer.output.ids.tolist()
    elif isinstance(answer, str):
        ids = require(engine, TokenisesAnswers).answer_ids(conversation, answer)
    elif isinstance(answer, Scores):
        raise MessageError("Scores are of several answers: pass one of them, such as scores.best.")
    elif isinstance(answer, Iterable):
        ids = list(answer)
    else:
        raise MessageError(f"{NO_ANSWER}, not {answer!r}.")
    for each in ids:
        if isinstance(each, bool) or not isinstance(each, (int, np.integer)) or each < 0:
            raise MessageError(f"{NO_ANSWER}, not {each!r}.")
    if not ids:
        raise MessageError("The answer has no tokens.")
    return [int(each) for each in ids]


def require_no_options(generation: Mapping[str, Any], why: str) -> None:
    """Reject generation options where nothing is generated."""
    if generation:
        raise MessageError(f"{why}, so {', '.join(sorted(generation))} would do nothing: leave it out.")
