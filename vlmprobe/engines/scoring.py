"""Scoring candidates: the state that each candidate token is drawn from, then one pass of the head over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vlmprobe.adapter import Adapter, Continuation, EncodedPrompt, Encoding
from vlmprobe.capture import Head
from vlmprobe.detokenize import Detokenizer
from vlmprobe.engines import Options
from vlmprobe.engines.candidates import Path, SharedPrefix, why_not_shared
from vlmprobe.engines.decoding import generation_config
from vlmprobe.engines.run import Run, run, to_model
from vlmprobe.engines.tables import numpy_columns, require_finite, token_kinds, token_table
from vlmprobe.errors import MessageError
from vlmprobe.messages import Conversation
from vlmprobe.table import TokenTable

__all__ = ["score"]

Source = tuple[int, Path]  # how many prompt ids stand, and the candidate ids written after them
ONE_STEP = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1}


def score(
    adapter: Adapter,
    head: Head,
    detokenizer: Detokenizer,
    conversation: Conversation,
    candidates: Sequence[str],
    options: Options,
) -> tuple[list[TokenTable], list[str | None], str]:
    """Score candidates on one prefill of the prompt; where its cache cannot be continued, by a full forward each.

    Returns:
        A table for each candidate; what happened at its boundary, if anything; ``"shared"``, or why the prefill
        was not shared.
    """
    encoding = adapter.encode([conversation])
    prompt = encoding.prompts[0]
    continuations = [adapter.continuation(prompt, text) for text in candidates]
    for text, each in zip(candidates, continuations, strict=True):
        if not each.ids:
            raise MessageError(f"candidate {text!r} adds no token after this prompt, so there is nothing to score")
    whole = [each for each in continuations if each.shared == len(prompt.ids)]
    states, reason = _shared_states(adapter, encoding, whole) if whole else ({}, None)
    for each in continuations:
        if reason or each.shared < len(prompt.ids):
            states |= _forward_states(adapter, encoding, each)
    tables = _tables(head, detokenizer, prompt, continuations, states, options)
    return tables, [_boundary(detokenizer, prompt, each) for each in continuations], reason or "shared"


def _shared_states(
    adapter: Adapter, encoding: Encoding, candidates: Sequence[Continuation]
) -> tuple[dict[Source, Tensor], str | None]:
    """The state [H] from which each token of the candidates is drawn, from one prefill; or why that cannot be."""
    inputs = to_model(adapter.model, encoding.inputs)
    ran, states = _prefill(adapter, inputs)
    if reason := why_not_shared(adapter, ran.cache):
        return {}, reason
    prefix = SharedPrefix(adapter, inputs, ran.cache, states[-1])
    found = prefix.states([each.ids[:-1] for each in candidates])
    return {(candidates[0].shared, path): state for path, state in found.items()}, None


def _forward_states(adapter: Adapter, encoding: Encoding, candidate: Continuation) -> dict[Source, Tensor]:
    """The same for one candidate, from a forward of prompt and candidate."""
    drop = len(encoding.prompts[0].ids) - candidate.shared
    inputs = adapter.extend(encoding.inputs, torch.tensor([candidate.ids]), drop)
    _, states = _prefill(adapter, to_model(adapter.model, inputs))
    rows = states[candidate.shared - 1 :]
    return {(candidate.shared, candidate.ids[:place]): rows[place] for place in range(len(candidate.ids))}


def _prefill(adapter: Adapter, inputs: dict[str, object]) -> tuple[Run, Tensor]:
    """Run a single prompt as generate does, and its states [S, H]."""
    ran = run(adapter, inputs, generation_config(adapter.model.generation_config, ONE_STEP), Options(alternatives=1))
    assert ran.prefill is not None  # asked for by Options.prompt
    return ran, ran.prefill[0]


def _tables(
    head: Head,
    detokenizer: Detokenizer,
    prompt: EncodedPrompt,
    candidates: Sequence[Continuation],
    states: dict[Source, Tensor],
    options: Options,
) -> list[TokenTable]:
    wanted = [
        ((each.shared, each.ids[:place]), each.ids[place]) for each in candidates for place in range(len(each.ids))
    ]
    row_of = {source: row for row, source in enumerate(dict.fromkeys(source for source, _ in wanted))}
    of = torch.tensor([row_of[source] for source, _ in wanted])
    order = torch.argsort(of, stable=True)
    hidden = torch.stack([states[source] for source in row_of])
    chunks: list[Tensor] | None = [] if "logits" in options.keep else None
    ids = torch.tensor([token for _, token in wanted])
    stats = head.stats(hidden, ids[order], options.alternatives, of=of[order], keep=chunks)
    numbers = {name: values[torch.argsort(order).numpy()] for name, values in numpy_columns(stats).items()}
    names = [
        f"token {place} of candidate {each}" for each, ids in enumerate(candidates) for place in range(len(ids.ids))
    ]
    require_finite(numbers["logsumexp"], names)
    rows = {
        "logits": torch.cat(chunks).numpy() if chunks else None,
        "hidden": hidden.float().cpu().numpy() if "hidden" in options.keep else None,
    }
    tables, start = [], 0
    for each in candidates:
        cut = slice(start, start + len(each.ids))
        start = cut.stop
        made = np.array(each.ids, dtype=np.int64)
        tables.append(
            token_table(
                detokenizer,
                made,
                each.shared + np.arange(len(made)),
                token_kinds(made, detokenizer.special),
                {name: values[cut] for name, values in numbers.items()},
                alternatives=options.alternatives,
                context=prompt.ids[: each.shared].tolist(),
                rows={name: None if kept is None else kept[of[cut].numpy()] for name, kept in rows.items()},
            )
        )
    return tables


def _boundary(detokenizer: Detokenizer, prompt: EncodedPrompt, candidate: Continuation) -> str | None:
    merged = len(prompt.ids) - candidate.shared
    if not merged:
        return None
    lost = detokenizer.decode(prompt.ids[candidate.shared :].tolist())
    return (
        f"the last {merged} prompt token(s) {lost!r} merge with the candidate: scored from position {candidate.shared}"
    )
