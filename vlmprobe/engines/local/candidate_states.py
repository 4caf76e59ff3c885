"""The states that candidates are read from, in as few runs of the model as give the numbers of each prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vlmprobe.adapter import Adapter, Continuation, EncodedPrompt, Encoding
from vlmprobe.adapter.rope import may_continue
from vlmprobe.engines.local.beginnings import beginning_of, beginnings_of, prefill
from vlmprobe.engines.local.feature_cache import images_key
from vlmprobe.engines.local.further_questions import encode_each, encode_groups
from vlmprobe.engines.local.left_padded import continues, may_continue_padded
from vlmprobe.engines.local.model_state import alone, sees_prompts, to_model
from vlmprobe.engines.local.pixel_memory import prepared_once
from vlmprobe.engines.local.prefix_memory import PrefixMemory
from vlmprobe.engines.local.run_generate import Run
from vlmprobe.engines.local.shared_prefix import Path, SharedPrefix, Stem, recurs, why_not_shared
from vlmprobe.errors import MessageError
from vlmprobe.inputs.messages import Conversation

__all__ = ["Asked", "states_after_answers", "states_of_candidates"]

# How many prompt ids are kept, the candidate ids after them, and the whole candidate if its length changes the states.
Source: TypeAlias = tuple[int, Path, Path]
WHOLE = 16  # prompts in a batch that run whole
Requested: TypeAlias = tuple[Conversation, Sequence[str]]


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

    @cached_property
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
    several = [places for places in about.values() if len(places) > 1]
    sizes: dict[Any, list[list[int]]] = {}  # images of other sizes take other numbers of positions
    for places in several if memory is None else ():
        sizes.setdefault(tuple(each.size for each in requests[places[0]][0].images), []).append(places)
    for groups in (each for each in sizes.values() if len(each) > 1):
        asked |= _on_common_prefixes(adapter, requests, groups) or {}
    for images, places in about.items():
        if places[0] in asked:
            continue
        group = _alone(adapter, [requests[place] for place in places]) if len(places) > 1 or memory else []
        if group and _on_common_prefix(adapter, group, images, memory):
            asked |= zip(places, group, strict=True)
        else:
            single += places
    for start in range(0, len(single), WHOLE):
        places = single[start : start + WHOLE]
        asked |= zip(places, _apart(adapter, [requests[place] for place in places]), strict=True)
    for place in (place for places in several for place in places):
        asked[place].meta.setdefault("prefix_in_common", 0)
    return [asked[place] for place in range(len(requests))]


def states_after_answers(
    adapter: Adapter, requests: Sequence[Requested], places: Sequence[int], encoding: Encoding, ran: Run
) -> list[Asked] | None:
    """Conversations that have been answered, with the states of their candidates on the caches of their prompts.

    Called right after the run. None where these cannot be cut back to the prompt and continued.

    Args:
        adapter: of the model.
        requests: the batch.
        places: which of them have candidates.
        encoding: of the batch.
        ran: how it was answered, without beams.
    """
    asked = [
        Asked(conversation, encoding, place, _continuations(adapter, encoding.prompts[place], candidates))
        for place, (conversation, candidates) in ((place, requests[place]) for place in places)
    ]
    for each in asked:
        each.beyond = [
            one for one in each.candidates if not may_continue(adapter, one.shared, one.shared + len(one.ids))
        ]
    if len(ran.last) != len(encoding.prompts) or not all(each.is_whole for each in asked):
        return None
    if all(each.is_one_step for each in asked):
        for each in asked:
            each.states[len(each.prompt.ids), (), ()] = ran.last[each.place]
            each.meta["prefix"] = "shared"
        return asked
    if why_not_shared(adapter, ran.cache) or recurs(ran.cache) or sees_prompts(adapter):
        return None
    inputs = to_model(adapter.model, encoding.inputs)
    prefix = SharedPrefix(adapter, inputs, ran.cache, ran.last[:, None])
    if not prefix.cut_back(ran.length, ran.sequences.shape[1] - 1):
        return None
    conversations = [conversation for conversation, _ in requests]
    if prefix.padded and not _continues_as_alone(adapter, prefix, encoding.prompts, conversations):
        return None
    _continue(prefix, [len(each.prompt.ids) for each in asked], [each.place for each in asked], asked)
    for each in asked:
        each.meta["prefix"] = "shared"
    return asked


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
        encodings = encode_each(adapter, [conversation for conversation, _ in requests])
    return [
        each for one, encoding in zip(requests, encodings, strict=True) for each in _asked(adapter, [one], encoding)
    ]


# -- conversations about the same images ------------------------------------------------------------------


def _on_common_prefix(adapter: Adapter, group: Sequence[Asked], images: Any, memory: PrefixMemory | None) -> bool:
    """Fill in the states of conversations about the same images from one prefill, if their prompts begin alike."""
    most = min(each.least for each in group)
    ends = max(candidate.shared + len(candidate.ids) for each in group for candidate in each.candidates)
    with alone(adapter):
        found = beginning_of(adapter, [each.encoding for each in group], most, ends, images, memory)
        if found is None:
            return False
        length, prefix = found
        _continue(prefix, [length] * len(group), [0] * len(group), group)
    for each in group:
        each.meta |= {"prefix": "shared", "prefix_in_common": length}
    return True


def _on_common_prefixes(
    adapter: Adapter, requests: Sequence[Requested], groups: Sequence[Sequence[int]]
) -> dict[int, Asked] | None:
    """Groups of conversations, each about images of its own, whose beginnings run in one batch: each by its place."""
    encoded = encode_groups(adapter, [[requests[place][0] for place in group] for group in groups])
    if encoded is None:
        return None
    aside, encodings = encoded
    asked = {
        place: each
        for places, group in zip(groups, encodings, strict=True)
        for place, encoding in zip(places, group, strict=True)
        for each in _asked(adapter, [requests[place]], encoding)
    }
    flat = list(asked.values())
    most = min(each.least for each in flat)
    ends = max(candidate.shared + len(candidate.ids) for each in flat for candidate in each.candidates)
    with alone(adapter):
        found = beginnings_of(adapter, encodings, aside, most, ends)
        if found is None:
            return None
        length, prefix = found
        _continue(prefix, [length] * len(flat), [row for row, group in enumerate(groups) for _ in group], flat)
    for each in flat:
        each.meta |= {"prefix": "shared", "prefix_in_common": length}
    return asked


def _continue(prefix: SharedPrefix, begins: Sequence[int], rows: Sequence[int], group: Sequence[Asked]) -> None:
    """Run what comes after the first ids of the prompts, and their candidates.

    Args:
        prefix: of beginnings of the prompts.
        begins: how many ids of each prompt it holds.
        rows: which of its rows each prompt begins with.
        group: the prompts, whose states are filled in.
    """
    stems = []
    for begin, row, each in zip(begins, rows, group, strict=True):
        branches = [
            (*each.prompt.ids[each.least : candidate.shared].tolist(), *candidate.ids[:-1])
            for candidate in each.candidates
        ]
        stems.append(Stem(row, tuple(each.prompt.ids[begin : each.least].tolist()), branches))
    for each, stem, found in zip(group, stems, prefix.states(stems), strict=True):
        for candidate, path in zip(each.candidates, stem.branches, strict=True):
            kept = candidate.shared - each.least
            for end in range(kept, len(path) + 1):
                each.states[candidate.shared, path[kept:end], ()] = found[path[:end]]


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
    lengths: dict[int, list[int]] = {}
    for place, each in enumerate(together):
        lengths.setdefault(len(each.prompt.ids) if each.is_whole else -1 - place, []).append(place)
    padded = len(lengths) > 1
    whole = all(each.is_whole for each in together)
    may = not padded or (whole and may_continue_padded(adapter, [each.prompt for each in together]))
    if (len(together) == 1 or may) and _on_own_prefixes(adapter, together):
        return together
    for places in lengths.values():
        encoding = adapter.encode([requests[place][0] for place in places])
        alike = [replace(together[place], encoding=encoding, place=row) for row, place in enumerate(places)]
        _on_own_prefixes(adapter, alike)
        for place, each in zip(places, alike, strict=True):
            together[place] = each
    return together


def _on_own_prefixes(adapter: Adapter, asked: Sequence[Asked]) -> bool:
    """Fill in the states of conversations that are one batch, from a prefill of their prompts.

    What cannot continue a prefill is read from forwards of its own.

    Returns:
        False if they are of different lengths, and the cache of such a batch cannot be continued.
    """
    reason = None
    kept = [each for each in asked if any(_continues(each, one) for one in each.candidates)]
    if kept:
        with alone(adapter):
            inputs = to_model(adapter.model, asked[0].encoding.inputs)
            ran, states = prefill(adapter, inputs)
            last = states[:, -1]
            if all(each.is_one_step for each in asked):
                for each, state in zip(asked, last, strict=True):
                    each.states[len(each.prompt.ids), (), ()] = state
            elif not (reason := why_not_shared(adapter, ran.cache)):
                prefix = SharedPrefix(adapter, inputs, ran.cache, states[:, -1:])
                each_alone = [each.prompt for each in asked], [each.conversation for each in asked]
                if prefix.padded and not _continues_as_alone(adapter, prefix, *each_alone):
                    return False
                begun = [
                    replace(each, candidates=[c for c in each.candidates if _continues(each, c)]) for each in asked
                ]
                _continue(prefix, [len(each.prompt.ids) for each in asked], range(len(asked)), begun)
    for each in asked:
        rest = [one for one in each.candidates if reason or not _continues(each, one)]
        encoding = each.encoding if len(asked) == 1 or not rest else adapter.encode([each.conversation])
        for one in rest:
            each.states |= _forward_states(adapter, encoding, one, one.ids if one in each.beyond else ())
        each.meta["prefix"] = reason or _not_continued(adapter, len(each.beyond)) or "shared"
    return True


def _continues_as_alone(
    adapter: Adapter, prefix: SharedPrefix, prompts: Sequence[EncodedPrompt], conversations: Sequence[Conversation]
) -> bool:
    """Whether the cache of these prompts, a left-padded batch, gives what that of each alone does."""
    return continues(adapter, prefix, prompts, lambda row: adapter.encode([conversations[row]]))


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
        states = prefill(adapter, to_model(adapter.model, inputs))[1][0]
    rows = states[candidate.shared - 1 :]
    return {(candidate.shared, candidate.ids[:place], apart): rows[place] for place in range(len(candidate.ids))}
