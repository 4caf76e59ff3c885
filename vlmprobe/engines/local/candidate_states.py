"""The states that candidates are read from, in as few runs of the model as give the numbers of each prompt alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vlmprobe.adapter import Adapter, Continuation, EncodedPrompt, Encoding
from vlmprobe.adapter.prompts import common_prefix
from vlmprobe.adapter.rope import may_continue
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.feature_cache import images_key, same
from vlmprobe.engines.local.generation_config import prefill_config
from vlmprobe.engines.local.model_state import alone, to_model
from vlmprobe.engines.local.pixel_memory import prepared_once
from vlmprobe.engines.local.prefix_memory import PrefixMemory
from vlmprobe.engines.local.run_generate import Run, run
from vlmprobe.engines.local.shared_prefix import Path, SharedPrefix, Stem, why_not_shared
from vlmprobe.errors import MessageError
from vlmprobe.inputs.messages import Conversation

__all__ = ["Asked", "states_of_candidates"]

# How many prompt ids are kept, the candidate ids after them, and the whole candidate if its length changes the states.
Source: TypeAlias = tuple[int, Path, Path]
Requested: TypeAlias = tuple[Conversation, Sequence[str]]
SAVED = 16  # positions that must be saved for a beginning to be prefilled apart


@dataclass(eq=False)
class Asked:
    """A conversation and its candidates as ids, and the states that they are read from."""

    conversation: Conversation
    encoding: Encoding  # of it alone, or of the batch that it is in
    place: int  # in the encoding
    candidates: list[Continuation]
    states: dict[Source, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    beyond: list[Continuation] = field(default_factory=list)  # those that end where RoPE has other factors

    @property
    def prompt(self) -> EncodedPrompt:
        """The prompt as ids."""
        return self.encoding.prompts[self.place]

    @property
    def least(self) -> int:
        """How many of its ids come before every candidate."""
        return min(each.shared for each in self.candidates)

    @property
    def sources(self) -> list[list[Source]]:
        """What each token of each candidate is drawn from."""
        return [
            [(each.shared, each.ids[:place], each.ids if each in self.beyond else ()) for place in range(len(each.ids))]
            for each in self.candidates
        ]

    @property
    def is_whole(self) -> bool:
        """Whether every candidate follows the whole prompt, and ends where RoPE has the same factors."""
        return not self.beyond and all(each.shared == len(self.prompt.ids) for each in self.candidates)

    @property
    def is_one_step(self) -> bool:
        """Whether every candidate is one token after the whole prompt, so that its last state tells all."""
        return self.is_whole and all(len(each.ids) == 1 for each in self.candidates)


def states_of_candidates(
    adapter: Adapter, requests: Sequence[Requested], memory: PrefixMemory | None = None
) -> list[Asked]:
    """Conversations that can share a batch and their candidates, with the states that these are read from.

    Conversations about the same images share the longest beginning that their prompts have in common: it is prefilled
    once, what differs runs in batches on its cache, and the candidates on what that leaves. ``memory`` keeps such
    beginnings for later calls. Where a cache cannot be continued, every candidate is scored by a forward of its own.
    """
    about: dict[Any, list[int]] = {}
    for place, (conversation, _) in enumerate(requests):
        about.setdefault(images_key(conversation), []).append(place)
    asked: dict[int, Asked] = {}
    single: list[int] = []
    for images, places in about.items():
        group = _alone(adapter, [requests[place] for place in places]) if len(places) > 1 or memory else []
        if group and _on_common_prefix(adapter, group, images, memory):
            asked |= zip(places, group, strict=True)
        else:
            single += places
    asked |= zip(single, _apart(adapter, [requests[place] for place in single]), strict=True)
    for place in (place for places in about.values() if len(places) > 1 for place in places):
        asked[place].meta.setdefault("prefix_in_common", 0)
    return [asked[place] for place in range(len(requests))]


def _asked(adapter: Adapter, requests: Sequence[Requested], encoding: Encoding) -> list[Asked]:
    """Requests whose prompts are those of the encoding."""
    return [
        Asked(conversation, encoding, place, _continuations(adapter, prompt, candidates))
        for place, ((conversation, candidates), prompt) in enumerate(zip(requests, encoding.prompts, strict=True))
    ]


def _continuations(adapter: Adapter, prompt: EncodedPrompt, candidates: Sequence[str]) -> list[Continuation]:
    found = [adapter.continuation(prompt, text) for text in candidates]
    for text, each in zip(candidates, found, strict=True):
        if not each.ids:
            raise MessageError(f"candidate {text!r} adds no token after this prompt, so there is nothing to score")
    return found


def _alone(adapter: Adapter, requests: Sequence[Requested]) -> list[Asked]:
    """Requests about the same images, each encoded alone; the pixels are prepared once."""
    with prepared_once(adapter):
        return [each for one in requests for each in _asked(adapter, [one], adapter.encode([one[0]]))]


# -- conversations about the same images ------------------------------------------------------------------


def _on_common_prefix(adapter: Adapter, group: Sequence[Asked], images: Any, memory: PrefixMemory | None) -> bool:
    """Fill in the states of conversations about the same images from one prefill, if their prompts begin alike."""
    first = group[0].prompt.ids.tolist()
    most = min(each.least for each in group)
    for each in group:
        most = min(most, common_prefix(first, each.prompt.ids.tolist()))
    after_images = max((span.stop for each in group for span in each.prompt.spans), default=1)
    if most < after_images:
        return False
    aside = _aside(group[0].encoding.inputs)
    found = memory.find(images, aside, first[:most]) if memory else None
    length = _worthwhile(group, images, memory, first, after_images, most, found)
    if not length:
        return False
    ends = [candidate.shared + len(candidate.ids) for each in group for candidate in each.candidates]
    inputs = _beginning(group[0].encoding.inputs, length)
    if not may_continue(adapter, length, max(ends)) or not all(_regrows(adapter, inputs, each) for each in group):
        return False
    with alone(adapter):
        if found is None:
            inputs = to_model(adapter.model, inputs)
            ran, states = _prefill(adapter, inputs)
            if why_not_shared(adapter, ran.cache):
                return False
            prefix = SharedPrefix(adapter, inputs, ran.cache, states[:, -1])
        else:
            prefix = found[1].after(first[found[0] : length])
        if memory and memory.keeps and length > (found[0] if found else 0):
            memory.put(images, aside, first[:length], prefix)
        _continue(prefix, length, group)
    for each in group:
        each.meta |= {"prefix": "shared", "prefix_in_common": length}
    return True


def _worthwhile(
    group: Sequence[Asked],
    images: Any,
    memory: PrefixMemory | None,
    ids: Sequence[int],
    after_images: int,
    most: int,
    found: tuple[int, SharedPrefix] | None,
) -> int:
    """The length of the beginning to prefill apart, at most ``most`` ids; 0 if nothing would be saved.

    It ends where the prompts of the group differ, or where that of an earlier call differs from them. Of a first
    prompt it ends with the images, which later ones are likely to share.
    """
    known = found[0] if found else 0
    length = known
    if len(group) > 1 and (len(group) - 1) * (most - known) >= SAVED:
        length = most
    elif memory and memory.lasts and memory.keeps:
        earlier = min(most, memory.in_common(images, ids))
        closed = min(most, after_images + 1)  # with the token that closes an image, where there is one
        length = max(known, earlier if earlier - known >= SAVED else 0, closed if images else 0)
    if memory and memory.lasts:
        memory.note(images, ids)
    return length


def _continue(prefix: SharedPrefix, begin: int, group: Sequence[Asked]) -> None:
    """Run what comes after the first ``begin`` ids of the prompts, and their candidates; row i of the prefix is i's.

    A prefix of one row is that of all.
    """
    stems = []
    for row, each in enumerate(group):
        branches = [
            (*each.prompt.ids[each.least : candidate.shared].tolist(), *candidate.ids[:-1])
            for candidate in each.candidates
        ]
        stems.append(Stem(row % len(prefix.last), tuple(each.prompt.ids[begin : each.least].tolist()), branches))
    for each, stem, found in zip(group, stems, prefix.states(stems), strict=True):
        for candidate, path in zip(each.candidates, stem.branches, strict=True):
            kept = candidate.shared - each.least
            for end in range(kept, len(path) + 1):
                each.states[candidate.shared, path[kept:end], ()] = found[path[:end]]


def _beginning(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The inputs of one prompt without what comes after its first ``length`` positions, all images in them."""
    shape = inputs["input_ids"].shape
    return {
        name: value[:, :length] if isinstance(value, Tensor) and value.shape[:2] == shape else value
        for name, value in inputs.items()
    }


def _aside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of one prompt that do not run along its sequence: pixels, and what else images are encoded with."""
    shape = inputs["input_ids"].shape
    return {name: value for name, value in inputs.items() if not isinstance(value, Tensor) or value.shape[:2] != shape}


def _regrows(adapter: Adapter, inputs: Mapping[str, Any], asked: Asked) -> bool:
    """Whether the rest of a prompt after its beginning is to the model what text after a prompt is.

    It is not where a token is masked, or marked as another part of the sequence, nor where the images are encoded with
    the question.
    """
    length = inputs["input_ids"].shape[1]
    rest = torch.from_numpy(asked.prompt.ids[None, length:])
    grown = adapter.extend(inputs, rest) if rest.shape[1] else inputs
    whole = asked.encoding.inputs
    shape = whole["input_ids"].shape
    return same(_aside(inputs), _aside(whole)) and all(
        torch.equal(grown[name], value)
        for name, value in whole.items()
        if isinstance(value, Tensor) and value.shape[:2] == shape
    )


# -- conversations that share nothing ---------------------------------------------------------------------


def _apart(adapter: Adapter, requests: Sequence[Requested]) -> list[Asked]:
    """Requests that share no beginning: their prompts run in batches where each gives the numbers of it alone."""
    if not requests:
        return []
    together = _asked(adapter, requests, adapter.encode([conversation for conversation, _ in requests]))
    for each in together:
        each.beyond = [
            one for one in each.candidates if not may_continue(adapter, one.shared, one.shared + len(one.ids))
        ]
    if len(together) == 1 or all(each.is_one_step for each in together):
        _on_own_prefixes(adapter, together)
        return together
    # A cache is continued where no row is padded.
    lengths: dict[int, list[int]] = {}
    for place, each in enumerate(together):
        lengths.setdefault(len(each.prompt.ids) if each.is_whole else -1 - place, []).append(place)
    if len(lengths) == 1 and len(together[0].prompt.ids) in lengths:
        _on_own_prefixes(adapter, together)
        return together
    for places in lengths.values():
        encoding = adapter.encode([requests[place][0] for place in places])
        alike = [replace(together[place], encoding=encoding, place=row) for row, place in enumerate(places)]
        _on_own_prefixes(adapter, alike)
        for place, each in zip(places, alike, strict=True):
            together[place] = each
    return together


def _on_own_prefixes(adapter: Adapter, asked: Sequence[Asked]) -> None:
    """Fill in the states of conversations that are one batch, from a prefill of their prompts.

    Several of them are of one length, unless their last states tell all. What cannot continue a prefill is read from
    forwards of its own.
    """
    reason = None
    kept = [each for each in asked if any(_continues(each, one) for one in each.candidates)]
    if kept:
        with alone(adapter):
            inputs = to_model(adapter.model, asked[0].encoding.inputs)
            ran, states = _prefill(adapter, inputs)
            last = states[:, -1]
            if all(each.is_one_step for each in asked):
                for each, state in zip(asked, last, strict=True):
                    each.states[len(each.prompt.ids), (), ()] = state
            elif not (reason := why_not_shared(adapter, ran.cache)):
                prefix = SharedPrefix(adapter, inputs, ran.cache, last)
                whole = len(asked[0].prompt.ids)
                _continue(
                    prefix,
                    whole,
                    [replace(each, candidates=[c for c in each.candidates if _continues(each, c)]) for each in asked],
                )
    for each in asked:
        rest = [one for one in each.candidates if reason or not _continues(each, one)]
        encoding = each.encoding if len(asked) == 1 or not rest else adapter.encode([each.conversation])
        for one in rest:
            each.states |= _forward_states(adapter, encoding, one, one.ids if one in each.beyond else ())
        each.meta["prefix"] = reason or _not_continued(adapter, len(each.beyond)) or "shared"


def _continues(asked: Asked, candidate: Continuation) -> bool:
    """Whether a candidate can be read from the prefill of its whole prompt."""
    return candidate.shared == len(asked.prompt.ids) and candidate not in asked.beyond


def _not_continued(adapter: Adapter, count: int) -> str:
    """What ``meta`` says of candidates that end where RoPE has other factors than in the prompt; empty without any."""
    if not count:
        return ""
    limit = adapter.capabilities.prefix_limit
    return f"shared, but for {count} that end beyond {limit:,} positions, where RoPE factors change: a forward for each"


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
