"""Branch an answer: keep its tokens up to a position, put another token there, and continue generating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.engines.answer_ids import answer_ids
from vlmprobe.engines.base import Engine, GivesPromptIds, require
from vlmprobe.engines.recorded_prompt import holds_images, require_answer_to
from vlmprobe.errors import CapabilityError, MessageError, ResultError
from vlmprobe.inputs.messages import Conversation, Prompt
from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT, taken
from vlmprobe.results.result import Result

if TYPE_CHECKING:
    from vlmprobe.engines.base import Options
    from vlmprobe.probe.request import Converse

__all__ = ["begin_of", "branch", "conversation_of", "recorded_conversation"]

AGAIN = "pass the original question= and image="


def branch(
    engine: Engine,
    converse: Converse,
    result: Result,
    position: int,
    token: int | str | Sequence[int],
    question: Prompt | None,
    image: Any,
    options: Options,
) -> tuple[Result, Conversation]:
    """Generate again from a forced prefix. See :meth:`Probe.branch`.

    Images are encoded once; prompt and prefix are prefilled once.

    Returns:
        The new answer, and the conversation that it answers.
    """
    conversation = conversation_of(engine, converse, result, question, image)
    begin = begin_of(engine, result, position, token, conversation)
    options = replace(options, begin=tuple(begin))
    engine.check([conversation], options)
    branched = engine.generate([conversation], options)[0]
    if branched.output.ids is None or branched.output.ids[: len(begin)].tolist() != begin:
        raise CapabilityError(f"{type(engine).__name__} cannot begin an answer with given tokens.")
    told = {"branch": {"position": int(position), "tokens": branched.output.tokens[position : len(begin)]}}
    return replace(branched, meta={**branched.meta, **told}), conversation


def conversation_of(
    engine: Engine, converse: Converse, result: Result, question: Prompt | None, image: Any
) -> Conversation:
    """The conversation that a result answers: as given, or else read from the result.

    Raises:
        MessageError: if the result lacks part of it, or answers another one.
    """
    require(engine, GivesPromptIds)
    conversation = recorded_conversation(converse, result, question, image)
    require_answer_to(engine, conversation, result, f"{AGAIN}, with all messages")
    return conversation


def recorded_conversation(converse: Converse, result: Result, question: Prompt | None, image: Any) -> Conversation:
    """The same, without comparing its prompt with that of the result, which not every engine gives.

    Raises:
        MessageError: if the result lacks part of it.
    """
    if question is None and image is None and holds_images(result):
        image = list(result.images)  # those of the result, also if it has none and a session would add its own
    conversation = converse(result.meta.get("question", "") if question is None else question, image)
    written = AS_BY_DEFAULT.updated(taken(dict(result.meta)))  # as the result's prompt, whatever this probe's are
    conversation = Conversation.build(replace(conversation, format=written))
    if question is None and not holds_images(result) and not conversation.images:
        raise MessageError(f"The result holds its images only downscaled for display: {AGAIN}.")
    return conversation


def begin_of(
    engine: Engine, result: Result, position: int, token: int | str | Sequence[int], conversation: Conversation
) -> list[int]:
    """Token ids of the answer up to a position, followed by those of the substituted token.

    Raises:
        ResultError: for a position outside the answer.
        MessageError: for an unknown token, or text that cannot be tokenised there.
    """
    output = result.output
    whole = isinstance(position, (int, np.integer)) and not isinstance(position, bool)
    if not whole or not 0 <= position < len(output):
        raise ResultError(
            f"position must be an integer from 0 to {len(output) - 1}, a row of the answer, not {position!r}"
        )
    before = [int(each) for each in output.ids[:position]]
    if not isinstance(token, str):
        chosen = token if isinstance(token, (Sequence, np.ndarray)) else [token]
        return before + answer_ids(engine, conversation, chosen)
    choices = zip(output.top_ids[position], output.top_tokens[position], strict=True)
    listed = [int(each) for each, text in choices if text == token and each >= 0]
    if len(listed) == 1:
        return before + listed
    if listed:
        raise MessageError(f"Several tokens read {token!r} there: choose one by its id, {', '.join(map(str, listed))}.")
    text = "".join(output.tokens[:position]) + token
    if not token:
        raise MessageError("The token is an empty string, which no token decodes to.")
    ids = answer_ids(engine, conversation, text)
    if ids[:position] != before or len(ids) == position:
        raise MessageError(
            f"{token!r} is not among the likeliest tokens there, and the tokenizer merges it with the text before it: "
            "choose a token by its id."
        )
    return ids
