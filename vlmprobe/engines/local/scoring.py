"""Scores candidates: the state that each candidate token is drawn from, then one pass of the head over all states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vlmprobe.adapter import Adapter, Continuation, EncodedPrompt, Encoding
from vlmprobe.adapter.rope import may_continue
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.capture import Head, Kept
from vlmprobe.engines.local.context_length import warn_if_beyond
from vlmprobe.engines.local.generation_config import prefill_config
from vlmprobe.engines.local.model_state import alone, to_model
from vlmprobe.engines.local.row_stats import numpy_columns
from vlmprobe.engines.local.run_generate import Run, run
from vlmprobe.engines.local.shared_prefix import Path, SharedPrefix, why_not_shared
from vlmprobe.engines.token_tables import require_finite, token_kinds, token_table
from vlmprobe.errors import MessageError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.detokenize import Detokenizer
from vlmprobe.results.row_files import RowFile, Slots, row_files
from vlmprobe.results.table import TokenTable

__all__ = ["score"]

# How many prompt ids are kept, the candidate ids after them, and the whole candidate if its length changes the states.
Source = tuple[int, Path, Path]
CONTEXT = 16  # prompt tokens before a candidate that can affect how its text decodes


def score(
    adapter: Adapter,
    head: Head,
    detokenizer: Detokenizer,
    conversation: Conversation,
    candidates: Sequence[str],
    options: Options,
) -> tuple[list[TokenTable], list[str | None], dict[str, str]]:
    """Score candidates on one prefill of the prompt; where its cache cannot be continued, by a full forward each.

    Returns:
        A table for each candidate; what happened at its boundary, if anything; for ``meta``: under ``prefix``
        ``"shared"`` or why the prefill was not shared, and the file of full rows where there is one.
    """
    encoding = adapter.encode([conversation])
    warn_if_beyond(adapter.model.config, encoding.prompts)
    prompt = encoding.prompts[0]
    continuations = [adapter.continuation(prompt, text) for text in candidates]
    for text, each in zip(candidates, continuations, strict=True):
        if not each.ids:
            raise MessageError(f"candidate {text!r} adds no token after this prompt, so there is nothing to score")
    beyond = [each for each in continuations if not may_continue(adapter, each.shared, each.shared + len(each.ids))]
    whole = [each for each in continuations if each.shared == len(prompt.ids) and each not in beyond]
    states, reason = _shared_states(adapter, encoding, whole) if whole else ({}, None)
    for each in continuations:
        if reason or each not in whole:
            states |= _forward_states(adapter, encoding, each, each.ids if each in beyond else ())
    sources = [
        [(each.shared, each.ids[:place], each.ids if each in beyond else ()) for place in range(len(each.ids))]
        for each in continuations
    ]
    meta = {"prefix": reason or _not_continued(adapter, len(beyond)) or "shared"}
    counts = {str(place): len(each.ids) for place, each in enumerate(continuations)}
    with row_files(options.store, [counts]) as files:
        file = next(iter(files), None)
        tables = _tables(head, detokenizer, prompt, continuations, sources, states, options, file)
        meta |= {"logits_file": str(file.path)} if file else {}
    return tables, [_boundary(detokenizer, prompt, each) for each in continuations], meta


def _not_continued(adapter: Adapter, count: int) -> str:
    """What ``meta`` says of candidates that end where RoPE has other factors than in the prompt; empty without any."""
    if not count:
        return ""
    limit = adapter.capabilities.prefix_limit
    return f"shared, but for {count} that end beyond {limit:,} positions, where RoPE factors change: a forward for each"


def _shared_states(
    adapter: Adapter, encoding: Encoding, candidates: Sequence[Continuation]
) -> tuple[dict[Source, Tensor], str | None]:
    """The state [H] from which each token of the candidates is drawn, from one prefill; or why it cannot be shared."""
    inputs = to_model(adapter.model, encoding.inputs)
    ran, states = _prefill(adapter, inputs)
    if reason := why_not_shared(adapter, ran.cache):
        return {}, reason
    prefix = SharedPrefix(adapter, inputs, ran.cache, states[-1])
    found = prefix.states([each.ids[:-1] for each in candidates])
    return {(candidates[0].shared, path, ()): state for path, state in found.items()}, None


def _forward_states(adapter: Adapter, encoding: Encoding, candidate: Continuation, apart: Path) -> dict[Source, Tensor]:
    """The same for one candidate, from a forward of prompt and candidate."""
    drop = len(encoding.prompts[0].ids) - candidate.shared
    inputs = adapter.extend(encoding.inputs, torch.tensor([candidate.ids]), drop)
    with alone(adapter):  # no candidate starts from what the model kept of another
        _, states = _prefill(adapter, to_model(adapter.model, inputs))
    rows = states[candidate.shared - 1 :]
    return {(candidate.shared, candidate.ids[:place], apart): rows[place] for place in range(len(candidate.ids))}


def _prefill(adapter: Adapter, inputs: dict[str, object]) -> tuple[Run, Tensor]:
    """Run a single prompt as generate does; the run and its states [S, H]."""
    ran = run(adapter, inputs, prefill_config(adapter.model.generation_config), Options(alternatives=1))
    assert ran.prefill is not None  # requested by Options.prompt
    return ran, ran.prefill[0]


def _tables(
    head: Head,
    detokenizer: Detokenizer,
    prompt: EncodedPrompt,
    candidates: Sequence[Continuation],
    sources: Sequence[Sequence[Source]],
    states: dict[Source, Tensor],
    options: Options,
    file: RowFile | None,
) -> list[TokenTable]:
    wanted = [
        pair
        for each, drawn_from in zip(candidates, sources, strict=True)
        for pair in zip(drawn_from, each.ids, strict=True)
    ]
    row_of = {source: row for row, source in enumerate(dict.fromkeys(source for source, _ in wanted))}
    of = torch.tensor([row_of[source] for source, _ in wanted])
    cells = [(str(each), place) for each, ids in enumerate(candidates) for place in range(len(ids.ids))]
    order = torch.argsort(of, stable=True)
    hidden = torch.stack([states[source] for source in row_of])
    held: list[Tensor] = []
    places: list[list[tuple[str, int]]] = [[] for _ in row_of]
    for cell, row in zip(cells, of.tolist(), strict=True):
        places[row].append(cell)
    chunks: Kept | None = (Slots(file, places) if file else held) if "logits" in options.keep else None
    ids = torch.tensor([token for _, token in wanted])
    stats = head.stats(hidden, ids[order], options.alternatives, of=of[order], keep=chunks)
    numbers = {name: values[torch.argsort(order).numpy()] for name, values in numpy_columns(stats).items()}
    require_finite(numbers["logsumexp"], [f"token {place} of candidate {each}" for each, place in cells])
    rows = {
        "logits": torch.cat(held).numpy() if held else None,
        "hidden": hidden.float().cpu().numpy() if "hidden" in options.keep else None,
    }
    mapped = file.close() if file else {}
    tables, start = [], 0
    for number, each in enumerate(candidates):
        cut = slice(start, start + len(each.ids))
        start = cut.stop
        made = np.array(each.ids, dtype=np.int64)
        table = token_table(
            detokenizer,
            made,
            each.shared + np.arange(len(made)),
            token_kinds(made, detokenizer.special),
            {name: values[cut] for name, values in numbers.items()},
            alternatives=options.alternatives,
            context=prompt.ids[max(0, each.shared - CONTEXT) : each.shared].tolist(),
            rows={name: None if kept is None else kept[of[cut].numpy()] for name, kept in rows.items()},
        )
        tables.append(replace(table, logits=mapped[str(number)]) if file else table)
    return tables


def _boundary(detokenizer: Detokenizer, prompt: EncodedPrompt, candidate: Continuation) -> str | None:
    merged = len(prompt.ids) - candidate.shared
    if not merged:
        return None
    lost = detokenizer.decode(prompt.ids[candidate.shared :].tolist())
    return (
        f"the last {merged} prompt token(s) {lost!r} merge with the candidate: scored from position {candidate.shared}"
    )
