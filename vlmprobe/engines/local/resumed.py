"""Generates from the cache of a prompt's beginning, where the model's own ``generate`` goes on from one rightly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import pad
from transformers import GenerationConfig

from vlmprobe.adapter import Adapter, Encoding
from vlmprobe.adapter.encoding import is_along
from vlmprobe.adapter.prompts import common_prefix
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.beginnings import beginning_of, beginnings_of, may_share
from vlmprobe.engines.local.feature_cache import images_key
from vlmprobe.engines.local.further_questions import derives, encode_each, encode_groups
from vlmprobe.engines.local.generation_config import prefill_config
from vlmprobe.engines.local.left_padded import close
from vlmprobe.engines.local.model_state import alone, to_model
from vlmprobe.engines.local.pixel_memory import prepared_once
from vlmprobe.engines.local.prefix_memory import PrefixMemory
from vlmprobe.engines.local.run_generate import Run, run
from vlmprobe.engines.local.shared_prefix import SharedPrefix, Stem
from vlmprobe.inputs.messages import Conversation

__all__ = ["Together", "all_but_last", "all_but_last_of", "encode_together"]

SHARE = 0.5  # of the longest prompt that must be saved: what is left runs beside the beginnings, and caches are copied
TRIED = 3  # tokens
PLAIN = ("greedy_search", "sample")
# Whether generate goes on from the caches of a batch, by adapter, where that was tried: with images and without, and of
# each with prompts of different lengths and of one.
RESUMES: WeakKeyDictionary[Adapter, dict[bool, dict[bool, bool]]] = WeakKeyDictionary()


def all_but_last(
    adapter: Adapter, encoding: Encoding, config: GenerationConfig, options: Options, images: Any, memory: PrefixMemory
) -> tuple[int, SharedPrefix] | None:
    """A prompt without its last token, run on a beginning from memory, and the length of that; None to run it whole.

    Models differ in how ``generate`` goes on from a cache: which inputs it wants again, how it counts positions. So the
    first time, with images and without, the state at the last position must be what the cache itself leads to; where
    it is not, or fails, no beginning is used. The caller holds the model's lock.
    """
    ids = encoding.prompts[0].ids.tolist()
    shown = bool(images)
    if memory.resumes.get(shown) is False or not _is_plain(config, options) or len(ids) < 2:
        return None
    with alone(adapter):  # a prompt that then runs whole finds no state of its beginning on the model
        found = beginning_of(adapter, [encoding], len(ids) - 1, len(ids), images, memory)
        if found is None:
            return None
        length, prefix = found
        begun = prefix.after(ids[length:-1])
        if shown not in memory.resumes:
            memory.resumes[shown] = _resumes(adapter, encoding.inputs, begun)
    return (length, begun) if memory.resumes[shown] else None


@dataclass(frozen=True)
class Together:
    """Prompts of a batch that are about few images, encoded, and which of them are about the same ones."""

    encoding: Encoding  # of the batch, left-padded; with the inputs of images once for each group
    groups: list[list[Encoding]]
    rows: list[int]  # [N], the group of each prompt
    aside: dict[str, Any]  # what the images of the groups are encoded from


def encode_together(
    adapter: Adapter, conversations: Sequence[Conversation], config: GenerationConfig, options: Options
) -> Together | None:
    """A batch of prompts of which at least half are about images of others in it; None if it should run whole."""
    about: dict[Any, list[int]] = {}
    for place, each in enumerate(conversations):
        about.setdefault(images_key(each), []).append(place)
    shown = any(about)
    sizes = {tuple(image.size for image in conversations[places[0]].images) for places in about.values()}
    if 2 * len(about) > len(conversations) or len(sizes) > 1 or not (shown or _much_in_common(conversations)):
        return None
    if not (_is_plain(config, options) and may_share(adapter) and derives(adapter)):
        return None
    if not all(RESUMES.get(adapter, {}).get(shown, {}).values()):
        return None
    grouped = [[conversations[place] for place in places] for places in about.values()]
    if len(grouped) > 1:
        found = encode_groups(adapter, grouped)
        if found is None:
            return None
        aside, groups = found
    else:
        with prepared_once(adapter):
            groups = [encode_each(adapter, grouped[0])]
        first = groups[0][0].inputs
        aside = {name: value for name, value in first.items() if not is_along(first, name)}
    places = [place for several in about.values() for place in several]
    encodings = [each for group in groups for each in group]
    rows = [row for row, group in enumerate(groups) for _ in group]
    order = sorted(range(len(places)), key=lambda at: places[at])
    inputs = _left_padded(adapter, [encodings[at] for at in order])
    if inputs is None:
        return None
    prompts = tuple(encodings[at].prompts[0] for at in order)
    return Together(Encoding({**inputs, **aside}, prompts), groups, [rows[at] for at in order], aside)


def _much_in_common(conversations: Sequence[Conversation]) -> bool:
    """Whether conversations begin with the same text, in a large part of the longest."""
    texts = ["".join(message.text for message in each.messages) for each in conversations]
    return common_prefix(min(texts), max(texts)) >= SHARE * max(map(len, texts))


def all_but_last_of(
    adapter: Adapter, together: Together, conversations: Sequence[Conversation]
) -> tuple[int, SharedPrefix] | None:
    """The prompts without the last token of each, run on the beginnings that groups of them share; None to run whole.

    The first time, some tokens are generated both ways, for more than in :func:`all_but_last` differs between models:
    a cache may hold what is not moved to the end of a padded row. The caller holds the model's lock.
    """
    prompts = together.encoding.prompts
    most, ends = min(len(each.ids) for each in prompts) - 2, max(len(each.ids) for each in prompts)
    shown = bool(prompts[0].spans)
    padded = len({len(each.ids) for each in prompts}) > 1
    known = RESUMES.setdefault(adapter, {}).setdefault(shown, {})
    with alone(adapter):
        found = beginnings_of(adapter, together.groups, together.aside, most, ends, SHARE * ends)
        if found is None:
            return None
        length, prefix = found
        inputs = together.encoding.inputs
        without = {name: value[:, :-1] if is_along(inputs, name) else value for name, value in inputs.items()}
        runs = [(row, tuple(each.ids[length:-1].tolist())) for row, each in zip(together.rows, prompts, strict=True)]
        begun = prefix.after_each(runs, to_model(adapter.model, without))
        if padded not in known:
            known[padded] = begun is not None and _resumes_as_whole(
                adapter, inputs, begun, adapter.encode(conversations).inputs
            )
    return (length, begun) if begun is not None and known[padded] else None


def _left_padded(adapter: Adapter, encodings: Sequence[Encoding]) -> dict[str, Any] | None:
    """What runs along the sequence of prompts that were encoded alone, as one batch."""
    first = encodings[0].inputs
    names = [name for name in first if is_along(first, name)]
    if any(first[name].dim() != 2 for name in names):
        return None
    longest = max(len(each.prompts[0].ids) for each in encodings)
    fill = {"input_ids": adapter.tokenizer.pad_token_id or 0}
    return {
        name: torch.cat(
            [
                pad(each.inputs[name], (longest - each.inputs[name].shape[1], 0), value=fill.get(name, 0))
                for each in encodings
            ]
        )
        for name in names
    }


def _is_plain(config: GenerationConfig, options: Options) -> bool:
    """Whether nothing but the prompt, its cache and the tokens takes part in decoding."""
    return (
        config.get_generation_mode().value in PLAIN
        and not options.begin
        and not options.processors
        and config.cache_implementation is None
        and config.use_cache is not False
        and config.prefill_chunk_size is None
        and (config.num_return_sequences or 1) == 1
        and (config.guidance_scale or 1) == 1
    )


def _resumes(adapter: Adapter, inputs: Mapping[str, Any], begun: SharedPrefix) -> bool:
    """Whether ``generate`` goes on from the cache of a prompt as the cache itself does, for some tokens."""
    ran = _some_tokens(adapter, inputs, begun)
    if ran is None:
        return False
    last, *made = ran.sequences[0, inputs["input_ids"].shape[1] - 1 :].tolist()
    due = begun.states([Stem(0, (last,), [tuple(made[:-1])])])[0]
    return all(close(states[0], due[tuple(made[:step])]) for step, states in enumerate(ran.decoded))


def _resumes_as_whole(
    adapter: Adapter, inputs: Mapping[str, Any], begun: SharedPrefix, whole: Mapping[str, Any]
) -> bool:
    """Whether ``generate`` goes on from the caches of a batch as it does from the whole prompts."""
    ran = _some_tokens(adapter, inputs, begun)
    if ran is None:
        return False
    due = _some_tokens(adapter, whole)
    assert due is not None  # what fails is raised
    alike = torch.equal(ran.sequences[:, -TRIED:-1], due.sequences[:, -TRIED:-1])
    return alike and all(
        close(*pair) for step in zip(ran.decoded, due.decoded, strict=True) for pair in zip(*step, strict=True)
    )


def _some_tokens(adapter: Adapter, inputs: Mapping[str, Any], begun: SharedPrefix | None = None) -> Run | None:
    """A run of some tokens, with the states that they are drawn from; None if the model fails with the cache."""
    config = prefill_config(adapter.model.generation_config)
    config.max_new_tokens = config.min_new_tokens = TRIED
    options = Options(alternatives=1, keep=frozenset({"hidden"}))
    try:
        with alone(adapter):
            return run(adapter, to_model(adapter.model, inputs), config, options, begun=begun)
    except Exception:
        if begun is None:
            raise
        return None
