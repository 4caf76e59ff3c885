"""Rows of a vLLM reply: the tokens of the answer, and the positions of the prompt as the model saw it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np

from vlmprobe.adapter.thought_format import NOTATIONS
from vlmprobe.engines.constraint import Constraint, Kind
from vlmprobe.engines.providers import openai_chat
from vlmprobe.engines.serving import Alternative, Node, Row, Tokens
from vlmprobe.engines.serving.http.reply import real
from vlmprobe.engines.serving.value_kind import FLOOR
from vlmprobe.errors import CapabilityError, EngineResponseError, VlmprobeError
from vlmprobe.inputs.begun import NOTHING
from vlmprobe.inputs.chat_templates import raw_template
from vlmprobe.inputs.messages import Conversation, Message, TextPart

__all__ = [
    "CONSTRAINTS",
    "as_message",
    "prompt_fields",
    "structured_outputs",
    "token_of",
    "vllm_prompt",
    "vllm_row",
    "whole_row",
]

TOKEN_ID = "token_id:"
CONSTRAINTS: frozenset[Kind] = frozenset({"schema", "grammar"})


def prompt_fields(conversation: Conversation, tokens: Tokens) -> dict[str, Any]:
    """How vLLM shall write a conversation as a prompt.

    A template of the request's own needs a server with ``--trust-request-chat-template``. Tools are written, and a call
    of one comes back as text, with its log-probabilities, rather than as a call (``tool_choice``).

    Raises:
        CapabilityError: for a raw prompt with images where the client knows no processor.
    """
    format = conversation.format
    continues = conversation.continues
    fields: dict[str, Any] = {"add_generation_prompt": not continues, "continue_final_message": continues}
    if format.raw_prompt:
        adapter = tokens.need("A raw prompt with images") if conversation.images else None
        written = raw_template("") if adapter is None else adapter.raw_template(conversation)
        return {"add_generation_prompt": False, "continue_final_message": False, "chat_template": written}
    if format.chat_template is not None:
        fields["chat_template"] = format.chat_template
    if format.chat_template_kwargs:
        fields["chat_template_kwargs"] = dict(format.chat_template_kwargs)
    return fields | ({"tool_choice": "none", "tools": list(format.tools)} if format.tools else {})


def structured_outputs(constraint: Constraint) -> dict[str, Any]:
    """vLLM's own name of what an answer must obey, and its value."""
    return {"json" if constraint.kind == "schema" else "grammar": constraint.value}


def as_message(conversation: Conversation, tokens: Tokens) -> Conversation:
    """A conversation whose answer has begun as one that ends with the beginning of an ``assistant`` message.

    Raises:
        CapabilityError: if the chat template writes that message otherwise.
    """
    if not conversation.begun:
        return conversation
    adapter = tokens.need("An answer that has begun")
    due = adapter.render([conversation])[0]
    prompt = due.removesuffix(conversation.begun.text)
    # A template may write the mark that opens a thought into the prompt, and takes it from an assistant's message.
    leads = ["", *(prompt[prompt.rindex(opening.strip()) :] for opening, _ in NOTATIONS if opening.strip() in prompt)]
    for lead in leads:
        message = Message("assistant", (TextPart(lead + conversation.begun.text),))
        spoken = replace(conversation, messages=(*conversation.messages, message), begun=NOTHING)
        try:
            if adapter.render([spoken])[0] == due:
                return spoken
        except (VlmprobeError, ValueError):
            continue
    raise CapabilityError(
        "vLLM is sent what a model has thought as the beginning of its message, and the chat template would write that "
        "otherwise: open the checkpoint with vlmprobe.load."
    )


def vllm_prompt(reply: Node, ids: np.ndarray, image_ids: Collection[int], top: int | None, *, texts: bool) -> list[Row]:
    """Rows of a prompt of ids [S].

    Args:
        reply: with ``prompt_logprobs``.
        ids: int64 [S], image placeholders included.
        image_ids: ids of placeholders, whose numbers are meaningless and not read.
        top: how many alternatives were requested; None for the whole vocabulary.
        texts: whether to take the text of tokens from the reply.
    """
    found = reply["prompt_logprobs"]
    entries = found.items()
    if len(entries) != len(ids):
        raise EngineResponseError(f"{found.where} has {len(entries)} rows for a prompt of {len(ids)} ids.")
    rows = []
    for place, (each, entry) in enumerate(zip(ids.tolist(), entries, strict=True)):
        where = f"{found.where}[{place}]"
        if entry is None or each in image_ids:
            if entry is None and place:
                raise EngineResponseError(f"{where} is null; only the first position of a prompt has no number.")
            text = _text(entry, str(each)) if texts and isinstance(entry, dict) else None
            rows.append(Row(id=each, text=text))
            continue
        rows.append(_row(entry, each, top, where, texts))
    return rows


def token_of(text: str) -> int | None:
    """The id of a token that vLLM writes with ``return_tokens_as_token_ids``; None if it wrote the text."""
    digits = text[len(TOKEN_ID) :] if text.startswith(TOKEN_ID) else ""
    return int(digits) if digits.isdecimal() and len(digits) <= 10 and digits.isascii() else None


def whole_row(values: Mapping[int | None, float], where: str) -> np.ndarray:
    """float32 [V] from values by id, which must cover the whole vocabulary."""
    ids = [each for each in values if each is not None]
    if not ids or sorted(ids) != list(range(len(values))):
        raise EngineResponseError(f"{where}: a row does not cover the whole vocabulary as requested.")
    row = np.empty(len(values), np.float32)
    row[ids] = [values[each] for each in ids]
    return row


def vllm_row(said: openai_chat.Said, token: int | None, *, whole: bool) -> Row:
    """A generated token with its alternatives, or with the row of the whole vocabulary."""
    if whole:
        return Row(said.value, token, full=whole_row({token_of(text): value for text, value in said.top}, "vLLM"))
    top = sorted([each for each in said.top[1:] if each[1] > FLOOR], key=itemgetter(1), reverse=True)
    worded = token_of(said.token) is None
    listed = [Alternative(value, token_of(text), text if worded else None) for text, value in top]
    rank = None
    # The drawn token comes first whatever its rank, so if it is below all others its rank is not known. If all others
    # were filtered out, it is the only one.
    if said.value > FLOOR and len(said.top) > 1 and (not top or said.value >= top[-1][1]):
        rank = sum([value > said.value for _, value in top])
        listed.insert(rank, Alternative(said.value, token, said.token if worded else None))
    return Row(said.value, token, said.token if worded else None, rank, tuple(listed))


def _row(entry: Any, each: int, top: int | None, where: str, texts: bool) -> Row:
    if not isinstance(entry, dict) or (top is not None and len(entry) > top + 1):
        raise EngineResponseError(f"{where} is not an object of at most {top} alternatives and the prompt's own token.")
    own = entry.get(str(each))
    if not isinstance(own, dict):
        raise EngineResponseError(f"{where} does not hold the prompt's own token {each}.")
    value, rank = real(own.get("logprob"), where), _rank(own)
    if top is None:
        return Row(value, each, full=whole_row({int(key): _value(told, where) for key, told in entry.items()}, where))
    listed = []
    for key, told in entry.items():
        number = _value(told, where)
        if not key.isdecimal() or len(key) > 10:
            raise EngineResponseError(f"{where} holds {key[:20]!r}, which is not a token id.")
        place = told.get("rank")
        if number > FLOOR and (type(place) is not int or place <= top):
            listed.append((number, Alternative(number, int(key), _text(entry, key) if texts else None)))
    listed.sort(key=lambda pair: -pair[0])
    return Row(value, each, _text(entry, str(each)) if texts else None, rank, tuple(one for _, one in listed))


def _value(told: Any, where: str) -> float:
    if not isinstance(told, dict):
        raise EngineResponseError(f"{where} holds an entry that is not an object.")
    return real(told.get("logprob"), where)


def _rank(told: dict[str, Any]) -> int | None:
    """The rank among all tokens, from 0; vLLM counts from 1."""
    rank = told.get("rank")
    return rank - 1 if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1 else None


def _text(entry: dict[str, Any], key: str) -> str | None:
    told = entry.get(key)
    text = told.get("decoded_token") if isinstance(told, dict) else None
    return text if isinstance(text, str) else None
