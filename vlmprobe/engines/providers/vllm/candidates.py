"""Scores candidates on a vLLM server, each directly after the prompt.

With a processor, candidates of one token are requested by id, and with ``--enable-scale-out`` longer ones are sent as
ids, tokenised as for a local model. Otherwise the candidate is the start of the assistant's message: the server
tokenises prompt and candidate together, and the ids that it returns show where its prompt alone ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from vlmprobe.adapter import Continuation, EncodedPrompt
from vlmprobe.engines.base import Options
from vlmprobe.engines.providers import openai_chat
from vlmprobe.engines.providers.vllm.first_tokens import Asks, chosen_rows
from vlmprobe.engines.providers.vllm.prompt import prompt_fields, vllm_prompt
from vlmprobe.engines.serving import Node, Row, Scored
from vlmprobe.engines.serving.image_encoding import data_url
from vlmprobe.engines.token_tables import boundary
from vlmprobe.errors import AdapterError, CapabilityError, EngineError, EngineResponseError
from vlmprobe.inputs.image_spans import ImageSpan, placeholder_runs
from vlmprobe.inputs.messages import Conversation

__all__ = ["AsksVLLM", "score_candidates", "takes_ids"]

TOKENS_IN = "/inference/v1/generate"
BY_CHOICE, BY_IDS, BY_TEXT = "chosen ids", "ids", "continue_final_message"  # how candidates were scored
CONTEXT = 32  # ids before a candidate that affect how its text decodes
START = "start the server with --enable-scale-out, and pass processor= to vlmprobe.connect"


class AsksVLLM(Asks, Protocol):
    """What this module needs of the engine of a vLLM server."""

    tokens_in: bool | None  # whether the server accepts ids in place of text; None until tried

    def asked(self, options: Options) -> tuple[int, bool]:
        """How many alternatives to request, and whether the whole vocabulary."""


async def score_candidates(
    engine: AsksVLLM, conversation: Conversation, candidates: Sequence[str], options: Options
) -> tuple[list[Scored], dict[str, Any]]:
    """The rows of each candidate, in order, and how they were obtained."""
    if engine.tokens.adapter is None:
        return await _by_text(engine, conversation, candidates, options), {"candidates": BY_TEXT}
    prompt, written = _written(engine, conversation, candidates)
    whole = "logits" in options.keep
    single = [len(each.ids) == 1 and each.shared == len(prompt.ids) and not whole for each in written]
    alone = [place for place, one in enumerate(single) if one]
    others = [place for place, one in enumerate(single) if not one]
    found: dict[int, Scored] = {}
    ways = []
    if alone:
        tail = prompt.ids[prompt.spans[-1].stop if prompt.spans else 0 :].tolist()
        ids = [written[place].ids[0] for place in alone]
        found |= zip(alone, await chosen_rows(engine, conversation, ids, tail, options), strict=True)
        ways.append(BY_CHOICE)
    if others and await takes_ids(engine):
        rest = [written[place] for place in others]
        found |= zip(others, await _by_ids(engine, conversation, prompt, rest, options), strict=True)
        ways.append(BY_IDS)
    elif others:
        texts = [candidates[place] for place in others]
        found |= zip(others, await _by_text(engine, conversation, texts, options), strict=True)
        ways.append(BY_TEXT)
    return [found[place] for place in range(len(candidates))], {"candidates": " and ".join(ways)}


def _written(
    engine: AsksVLLM, conversation: Conversation, candidates: Sequence[str]
) -> tuple[EncodedPrompt, list[Continuation]]:
    """The prompt as the template renders it, one placeholder per image, and how the candidates continue it."""
    adapter = engine.tokens.need("Scoring by ids")
    text = adapter.render([conversation])[0]
    ids = np.array(adapter.tokenize(text), dtype=np.int64)
    runs = placeholder_runs(ids, engine.tokens.image_ids)
    prompt = EncodedPrompt(ids, tuple(ImageSpan(0, tile, *run) for tile, run in enumerate(runs)), text)
    try:
        return prompt, [adapter.continuation(prompt, candidate) for candidate in candidates]
    except AdapterError as error:
        raise CapabilityError(f"vLLM cannot score this candidate: {error}") from error


async def takes_ids(engine: AsksVLLM) -> bool:
    """Whether the server accepts ids in place of text."""
    if engine.tokens_in is None:
        request = {"token_ids": [1, 1], "sampling_params": {"max_tokens": 1, "temperature": 0.0}, "model": engine.model}
        try:
            await engine.client.post(TOKENS_IN, request)
        except EngineError as error:
            if error.status is None:
                raise
            engine.tokens_in = False
        else:
            engine.tokens_in = True
    return engine.tokens_in


async def _by_ids(
    engine: AsksVLLM,
    conversation: Conversation,
    prompt: EncodedPrompt,
    written: Sequence[Continuation],
    options: Options,
) -> list[Scored]:
    ids = prompt.ids
    images = [{"type": "image_url", "url": await data_url(part)} for part in conversation.image_parts]
    wanted, top = _width(engine, options)

    async def one(shared: int, added: tuple[int, ...]) -> Scored:
        request: dict[str, Any] = {
            "model": engine.model,
            "token_ids": [*ids[:shared].tolist(), *added],
            "sampling_params": {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": wanted},
            "return_token_ids": True,
        }
        if images:
            request["content_parts"] = images
        reply = Node(await engine.client.post(TOKENS_IN, request), engine.title)
        whole = reply["prompt_token_ids"].ids()
        start = len(whole) - len(added)
        if start < 1 or tuple(whole[start:].tolist()) != added:
            raise EngineResponseError(f"{engine.title}: prompt_token_ids does not end in the candidate's ids.")
        if images:
            engine.tokens.spans(whole, conversation, engine.title)  # raises if the images are not in it
        rows = vllm_prompt(reply, whole, engine.tokens.image_ids, top, texts=False)[start:]
        merged = len(ids) - shared
        detokenizer = engine.tokens.detokenizer
        lost = detokenizer.decode(ids[shared:].tolist()) if detokenizer is not None else ""
        return Scored(
            rows, start, boundary(merged, lost, start), tuple(whole[max(0, start - CONTEXT) : start].tolist())
        )

    return list(await asyncio.gather(*(one(each.shared, each.ids) for each in written)))


async def _by_text(
    engine: AsksVLLM, conversation: Conversation, candidates: Sequence[str], options: Options
) -> list[Scored]:
    texts = engine.tokens.detokenizer is None
    wanted, top = _width(engine, options)
    sent = await openai_chat.messages(conversation)
    fields = prompt_fields(conversation, engine.tokens)
    plain = await _ids_and_rows(engine, sent, fields, None, texts)
    alone = plain[0]
    if conversation.images and engine.tokens.image_ids:
        engine.tokens.spans(alone, conversation, engine.title)

    begun = fields | {"add_generation_prompt": False, "continue_final_message": True}

    async def one(candidate: str) -> Scored:
        before, last = (sent[:-1], sent[-1]) if conversation.continues else (sent, {})
        written = [*before, _assistant(last, candidate)]
        whole, rows = await _ids_and_rows(engine, written, begun, (wanted, top), texts)
        shared = next(
            (k for k, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole))
        )
        added = rows[shared:]
        lost = alone[shared:]
        _same_text(engine, candidate, lost.tolist(), whole[shared:].tolist(), added)
        detokenizer = engine.tokens.detokenizer
        shown = "" if detokenizer is None else detokenizer.decode(lost.tolist())
        context = tuple(whole[max(0, shared - CONTEXT) : shared].tolist())
        return Scored(added, shared, boundary(len(lost), shown, shared), context)

    return list(await asyncio.gather(*map(one, candidates)))


async def _ids_and_rows(
    engine: AsksVLLM,
    sent: list[dict[str, Any]],
    fields: dict[str, Any],
    width: tuple[int, int | None] | None,
    texts: bool,
) -> tuple[np.ndarray, list[Row]]:
    request: dict[str, Any] = {
        "model": engine.model,
        "messages": sent,
        "max_tokens": 1,
        "temperature": 0.0,
        "return_token_ids": True,
        **fields,
    }
    if width is not None:
        request["prompt_logprobs"] = width[0]
    reply = Node(await engine.client.post(openai_chat.PATH, request), engine.title)
    ids = reply["prompt_token_ids"].ids()
    return ids, [] if width is None else vllm_prompt(reply, ids, engine.tokens.image_ids, width[1], texts=texts)


def _width(engine: AsksVLLM, options: Options) -> tuple[int, int | None]:
    """How many alternatives to request at each position of a prompt, and how many to expect; None for all."""
    top, whole = engine.asked(options)
    return (-1, None) if whole else (min(options.alternatives, top), top)


def _assistant(begun: dict[str, Any], candidate: str) -> dict[str, Any]:
    """The assistant's message with a candidate at its end; ``begun`` is what it holds already."""
    said = "".join(part["text"] for part in begun.get("content", ()) if part["type"] == "text")
    return {**begun, "role": "assistant", "content": said + candidate}


def _same_text(engine: AsksVLLM, candidate: str, lost: list[int], ids: list[int], rows: Sequence[Row]) -> None:
    """Raise if the text after the prompt is not the candidate: some templates trim or rewrite an answer."""
    detokenizer = engine.tokens.detokenizer
    if detokenizer is not None:
        due, found = detokenizer.decode(lost) + candidate, detokenizer.decode(ids)
        same = found in (due, due.lstrip(" ")) and bool(ids)
    else:
        found = "".join(row.text or "" for row in rows)
        same = bool(rows) and (
            "\N{REPLACEMENT CHARACTER}" in found or found.lstrip(" ").endswith(candidate.lstrip(" "))
        )
    if not same:
        raise CapabilityError(
            f"vLLM's chat template renders the candidate {candidate!r} as {found!r} after the prompt, so it cannot be "
            f"scored as it stands: {START}."
        )
