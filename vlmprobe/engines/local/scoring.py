"""Scores candidates: the state that each candidate token is drawn from, then one pass of the head over all states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmprobe.adapter import Adapter, Continuation, EncodedPrompt, Encoding
from vlmprobe.adapter.prompts import common_prefix
from vlmprobe.adapter.rope import may_continue
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.capture import Head, Kept
from vlmprobe.engines.local.context_length import warn_if_beyond
from vlmprobe.engines.local.feature_cache import images_key
from vlmprobe.engines.local.generation_config import prefill_config
from vlmprobe.engines.local.model_state import alone, to_model
from vlmprobe.engines.local.prefix_memory import PrefixMemory
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


@dataclass(eq=False)
class _Asked:
    """A conversation and its candidates as ids, and the states that they are read from."""

    place: int  # among those asked together
    conversation: Conversation
    prompt: EncodedPrompt
    candidates: list[Continuation]
    states: dict[Source, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    beyond: list[Continuation] = field(default_factory=list)  # those that end where RoPE has other factors

    @property
    def sources(self) -> list[list[Source]]:
        """What each token of each candidate is drawn from."""
        return [
            [(each.shared, each.ids[:place], each.ids if each in self.beyond else ()) for place in range(len(each.ids))]
            for each in self.candidates
        ]

    @property
    def is_one_step(self) -> bool:
        """Whether every candidate is one token after the whole prompt, so that its last state tells all."""
        return all(len(each.ids) == 1 and each.shared == len(self.prompt.ids) for each in self.candidates)


def score(
    adapter: Adapter,
    head: Head,
    detokenizer: Detokenizer,
    requests: Sequence[tuple[Conversation, Sequence[str]]],
    options: Options,
    memory: PrefixMemory | None = None,
) -> list[tuple[list[TokenTable], list[str | None], dict[str, Any]]]:
    """Score the candidates of conversations that can share a batch, each prompt prefilled once.

    Conversations about the same images share the longest beginning that their prompts have in common: it is prefilled
    once, and what differs runs in batches on its cache. ``memory`` keeps such beginnings for later calls. Where a cache
    cannot be continued, every candidate is scored by a forward of its own.

    Returns:
        For each conversation a table for each candidate; what happened at its boundary, if anything; for ``meta``:
        under ``prefix`` ``"shared"`` or why the prefill was not shared, under ``prefix_in_common`` how many of its ids
        were prefilled together with other conversations or in an earlier call, and the file of full rows where there is
        one.
    """
    encoding = adapter.encode([conversation for conversation, _ in requests])
    warn_if_beyond(adapter.model.config, encoding.prompts)
    asked = [
        _Asked(place, conversation, prompt, _continuations(adapter, prompt, candidates))
        for place, ((conversation, candidates), prompt) in enumerate(zip(requests, encoding.prompts, strict=True))
    ]
    _read_states(adapter, encoding, asked, memory)
    counts = [{str(place): len(each.ids) for place, each in enumerate(one.candidates)} for one in asked]
    found = []
    with row_files(options.store, counts) as files:
        for each, file in zip_longest(asked, files):
            tables = _tables(head, detokenizer, each, options, file)
            told = {**each.meta, **({"logits_file": str(file.path)} if file else {})}
            found.append((tables, [_boundary(detokenizer, each.prompt, one) for one in each.candidates], told))
    return found


def _continuations(adapter: Adapter, prompt: EncodedPrompt, candidates: Sequence[str]) -> list[Continuation]:
    found = [adapter.continuation(prompt, text) for text in candidates]
    for text, each in zip(candidates, found, strict=True):
        if not each.ids:
            raise MessageError(f"candidate {text!r} adds no token after this prompt, so there is nothing to score")
    return found


def _read_states(adapter: Adapter, encoding: Encoding, asked: Sequence[_Asked], memory: PrefixMemory | None) -> None:
    """Fill in the states of all candidates, in as few runs as give the numbers of each conversation alone."""
    about: dict[Any, list[_Asked]] = {}
    for each in asked:
        about.setdefault(images_key(each.conversation), []).append(each)
    single: list[_Asked] = []
    for images, group in about.items():
        if not _on_common_prefix(adapter, encoding, group, images, memory):
            single += group
    if len(single) == len(asked) > 1 and all(each.is_one_step for each in asked):
        states = _prefill(adapter, to_model(adapter.model, encoding.inputs))[1][:, -1]
        for each in asked:
            each.states[len(each.prompt.ids), (), ()] = states[each.place]
            each.meta["prefix"] = "shared"
        return
    for each in single:
        _on_own_prefix(adapter, each, encoding if len(asked) == 1 else adapter.encode([each.conversation]))


def _on_common_prefix(
    adapter: Adapter, encoding: Encoding, group: Sequence[_Asked], images: Any, memory: PrefixMemory | None
) -> bool:
    """Fill in the states of conversations about the same images from one prefill, if their prompts begin alike."""
    ids = group[0].prompt.ids.tolist()
    most = min(candidate.shared for each in group for candidate in each.candidates)
    for each in group:
        most = min(most, common_prefix(ids, each.prompt.ids.tolist()))
    found = memory.find(images, ids[:most]) if memory is not None else None
    keeps = memory is not None and memory.lasts and memory.keeps and bool(images)
    after_images = max((span.stop for each in group for span in each.prompt.spans), default=1)
    if most < after_images or (found is None and len(group) == 1 and not keeps):
        return False
    # A beginning that is kept for later questions ends with the images.
    length = found[0] if found else after_images if keeps else most
    inputs = found[1].inputs if found else _beginning(adapter.encode([group[0].conversation]).inputs, length)
    ends = [candidate.shared + len(candidate.ids) for each in group for candidate in each.candidates]
    if not may_continue(adapter, length, max(ends)):
        return False
    if not all(_regrows(adapter, inputs, encoding, each, length) for each in group):
        return False
    with alone(adapter):
        if found is None:
            inputs = to_model(adapter.model, inputs)
            ran, states = _prefill(adapter, inputs)
            if why_not_shared(adapter, ran.cache):
                return False
            found = length, SharedPrefix(adapter, inputs, ran.cache, states[0, -1])
            if keeps and memory is not None:
                memory.put(images, ids[:length], found[1])
        _continue(found[1], length, group)
    for each in group:
        each.meta |= {"prefix": "shared", "prefix_in_common": length}
    return True


def _on_own_prefix(adapter: Adapter, asked: _Asked, encoding: Encoding) -> None:
    """Fill in the states of one conversation from a prefill of its prompt, and where it must be from full forwards."""
    whole = len(asked.prompt.ids)
    inputs = to_model(adapter.model, encoding.inputs)
    beyond = asked.beyond = [
        each for each in asked.candidates if not may_continue(adapter, each.shared, each.shared + len(each.ids))
    ]
    kept = [each for each in asked.candidates if each.shared == whole and each not in beyond]
    reason = None
    with alone(adapter):
        if kept:
            ran, states = _prefill(adapter, inputs)
            reason = why_not_shared(adapter, ran.cache)
            if not reason:
                prefix = SharedPrefix(adapter, inputs, ran.cache, states[0, -1])
                _continue(prefix, whole, [replace(asked, candidates=kept)])
    for each in asked.candidates:
        if reason or each not in kept:
            asked.states |= _forward_states(adapter, encoding, each, each.ids if each in beyond else ())
    asked.meta["prefix"] = reason or _not_continued(adapter, len(beyond)) or "shared"


def _not_continued(adapter: Adapter, count: int) -> str:
    """What ``meta`` says of candidates that end where RoPE has other factors than in the prompt; empty without any."""
    if not count:
        return ""
    limit = adapter.capabilities.prefix_limit
    return f"shared, but for {count} that end beyond {limit:,} positions, where RoPE factors change: a forward for each"


def _continue(prefix: SharedPrefix, begin: int, group: Sequence[_Asked]) -> None:
    """Run what comes after the first ``begin`` ids of the prompts, and their candidates, on one prefix."""
    paths = [
        (each, candidate, (*each.prompt.ids[begin : candidate.shared].tolist(), *candidate.ids[:-1]))
        for each in group
        for candidate in each.candidates
    ]
    found = prefix.states([path for _, _, path in paths])
    for each, candidate, path in paths:
        kept = candidate.shared - begin
        for end in range(kept, len(path) + 1):
            each.states[candidate.shared, path[kept:end], ()] = found[path[:end]]


def _beginning(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The inputs of one prompt without what comes after its first ``length`` positions, all images in them."""
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :length] if isinstance(value, Tensor) and value.shape[:2] == shape else value
        for name, value in inputs.items()
    }


def _regrows(adapter: Adapter, inputs: Mapping[str, Any], encoding: Encoding, asked: _Asked, length: int) -> bool:
    """Whether the rest of a prompt after its beginning is to the model what text after a prompt is.

    It is not where a token is masked, or marked as another part of the sequence.
    """
    size = len(asked.prompt.ids)
    rest = torch.from_numpy(asked.prompt.ids[None, length:])
    grown = adapter.extend(inputs, rest) if rest.shape[1] else inputs
    shape = encoding.inputs["input_ids"].shape
    for name, value in encoding.inputs.items():
        if isinstance(value, Tensor) and value.shape[:2] == shape:
            own = grown[name]
            if own.shape[1] != size or not torch.equal(own[0], value[asked.place, -size:]):
                return False
    return True


def _forward_states(adapter: Adapter, encoding: Encoding, candidate: Continuation, apart: Path) -> dict[Source, Tensor]:
    """The states of one candidate, from a forward of prompt and candidate."""
    drop = len(encoding.prompts[0].ids) - candidate.shared
    inputs = adapter.extend(encoding.inputs, torch.tensor([candidate.ids]), drop)
    with alone(adapter):  # no candidate starts from what the model kept of another
        states = _prefill(adapter, to_model(adapter.model, inputs))[1][0]
    rows = states[candidate.shared - 1 :]
    return {(candidate.shared, candidate.ids[:place], apart): rows[place] for place in range(len(candidate.ids))}


def _prefill(adapter: Adapter, inputs: dict[str, Any]) -> tuple[Run, Tensor]:
    """Run N prompts as generate does; the run and their states [N, S, H]."""
    ran = run(adapter, inputs, prefill_config(adapter.model.generation_config), Options(alternatives=1))
    assert ran.prefill is not None  # requested by Options.prompt
    return ran, ran.prefill


def _tables(
    head: Head,
    detokenizer: Detokenizer,
    asked: _Asked,
    options: Options,
    file: RowFile | None,
) -> list[TokenTable]:
    prompt, candidates, states = asked.prompt, asked.candidates, asked.states
    wanted = [
        pair
        for each, drawn_from in zip(candidates, asked.sources, strict=True)
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
