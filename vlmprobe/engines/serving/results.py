"""Builds a ``Result`` or ``Scores`` from what an engine returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmprobe.engines.base import Options
from vlmprobe.engines.serving.answer import Abilities, Answer, Scored
from vlmprobe.engines.serving.answer_tables import answer_table, prompt_table
from vlmprobe.engines.serving.completeness import compared
from vlmprobe.engines.serving.generation_options import Decoding
from vlmprobe.engines.serving.tokens import Tokens
from vlmprobe.engines.serving.value_kind import Meaning
from vlmprobe.errors import CapabilityError, VlmprobeError
from vlmprobe.inputs.images import THUMBNAIL, thumbnail
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.table import TokenTable

__all__ = ["result_of", "scores_of"]


def result_of(
    answer: Answer,
    conversation: Conversation,
    decoding: Decoding,
    options: Options,
    *,
    title: str,
    abilities: Abilities,
    meaning: Meaning,
    tokens: Tokens,
    meta: Mapping[str, Any],
) -> Result:
    """The result of one answer; what it lacks is recorded in ``meta["absent"]``.

    Args:
        answer: of the engine.
        conversation, decoding, options: of the request.
        title, abilities, meaning, tokens: of the engine.
        meta: further entries.

    Raises:
        EngineResponseError: for impossible numbers or ids.
        CapabilityError: if the prompt side was requested explicitly and is not available.
    """
    tokens.require_ids((*(answer.prompt or ()), *answer.output), title)
    meaning = answer.meaning or meaning
    of_answer = meaning if options.constraint is None else meaning.constrained(abilities.constrained)
    kind = of_answer.of(decoding.processing)
    absent = {"prompt": abilities.no_prompt} if abilities.no_prompt and options.prompt else {}
    if options.constraint is not None and kind == "constrained":
        absent["logprobs"] = f"{title} sends numbers under the {options.constraint.name}: they are in scores"
    before: TokenTable | None = None
    ids = answer.prompt_ids
    if answer.prompt is not None and ids is not None and options.prompt:
        try:
            spans = answer.spans if answer.spans is not None else tokens.spans(ids, conversation, title)
        except CapabilityError as error:
            if "prompt" in options.demanded:
                raise
            absent["prompt"] = str(error)
        else:
            before = prompt_table(answer.prompt, spans, options.alternatives, meaning, tokens.detokenizer, title)
    found = compared(answer, decoding.stop_strings, tokens.detokenizer)
    output = answer_table(
        found.rows,
        -1 if ids is None else len(ids) + len(found.reasoning),
        options.alternatives,
        of_answer,
        decoding.processing,
        tokens.detokenizer,
        title,
        text=answer.text,
        context=[row.id for row in found.reasoning if row.id is not None],
        lost=found.lost,
    )
    absent |= found.absent
    meta = {**meta, **answer.meta}
    absent |= meta.pop("absent", {})
    if answer.reasoning or found.reasoning:
        meta["server_reasoning"] = {
            "text": answer.reasoning,
            "tokens": len(found.reasoning),
            "logprobs": [row.value for row in found.reasoning],
        }
    known = tokens.detokenizer is not None and output.ids is not None
    read = tokens.detokenizer.join(output.ids.tolist(), output.tokens) if known and tokens.detokenizer else None
    text = answer.text if answer.text is not None else read or ""
    if read is not None and read != text:
        meta["text_of_ids"] = read
    told = {
        "value_kind": kind,
        "generation_config": decoding.told(),
        **options.told,
        "finish_reason": answer.finish_reason,
        **({"absent": absent} if absent else {}),
        **_resized(tokens, conversation),
    }
    return Result(text, before, output, ids, {**told, **meta}, _shown(conversation))


def scores_of(
    scored: Sequence[Scored],
    conversation: Conversation,
    candidates: Sequence[str],
    options: Options,
    *,
    title: str,
    meaning: Meaning,
    tokens: Tokens,
    meta: Mapping[str, Any],
) -> Scores:
    """The scores of candidates, which were not sampled."""
    tokens.require_ids((row for each in scored for row in each.rows), title)
    tables = [
        answer_table(
            each.rows,
            each.start,
            options.alternatives,
            meaning,
            "none",
            tokens.detokenizer,
            f"{title}, candidate {place}",
            context=each.context,
        )
        for place, each in enumerate(scored)
    ]
    told = {"value_kind": meaning.of("none"), **meta}
    return Scores(list(candidates), tables, [each.boundary for each in scored], told, _shown(conversation))


def _resized(tokens: Tokens, conversation: Conversation) -> dict[str, Any]:
    """How large the images become, and how boxes are written, as far as the client's processor says it."""
    if tokens.adapter is None or not conversation.images:
        return {}
    try:
        found = tokens.adapter.facts(conversation)
    except (ValueError, VlmprobeError):  # an image that this processor refuses and the server's did not
        return {}
    return {name: found[name] for name in ("resized_sizes", "box_format") if name in found}


def _shown(conversation: Conversation) -> tuple[Any, ...]:
    return tuple(thumbnail(image, THUMBNAIL) for image in conversation.images)
