"""Beginnings of prompts that run once: found in memory, or prefilled where that saves something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from vlmprobe.adapter import Adapter, Encoding
from vlmprobe.adapter.encoding import is_along
from vlmprobe.adapter.rope import may_continue
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.feature_cache import same
from vlmprobe.engines.local.generation_config import prefill_config
from vlmprobe.engines.local.model_state import sees_prompts, to_model
from vlmprobe.engines.local.prefix_memory import PrefixMemory
from vlmprobe.engines.local.run_generate import Run, run
from vlmprobe.engines.local.shared_prefix import SharedPrefix, recurs, why_not_shared

__all__ = ["beginning_of", "beginnings_of", "may_share", "prefill"]

SAVED = 16  # positions that must be saved for a beginning to be prefilled apart
# Whose prompts run whole: linear attention over many positions, one by one, rounds otherwise than all at once.
RECURRENT: WeakSet[Adapter] = WeakSet()


def may_share(adapter: Adapter) -> bool:
    """Whether nothing is known for which its prompts must run whole: linear attention, or a hook that sees a prompt."""
    return adapter not in RECURRENT and not sees_prompts(adapter)


def beginning_of(
    adapter: Adapter,
    encodings: Sequence[Encoding],
    most: int,
    ends: int,
    images: Any,
    memory: PrefixMemory | None,
) -> tuple[int, SharedPrefix] | None:
    """The longest beginning that prompts about the same images have in common, prefilled, and its length.

    None where nothing would be saved by it, or where the rest of a prompt is not text that continues it, or where a
    hook would see a prompt in parts. The caller holds the model's lock.

    Args:
        adapter: of the model.
        encodings: of each prompt alone.
        most: how long the beginning may be [positions].
        ends: how far what comes after it reaches.
        images: equal for equal images.
        memory: of beginnings in earlier calls.
    """
    prompts = [each.prompts[0] for each in encodings]
    first = prompts[0].ids.tolist()
    most = min(most, _in_common([each.ids for each in prompts]))
    after_images = max((span.stop for each in prompts for span in each.spans), default=1)
    if most < after_images or not may_share(adapter):
        return None
    aside = _aside(encodings[0].inputs)
    known, prefix = (memory.find(images, aside, first[:most]) if memory else None) or (0, None)
    if prefix and not (may_continue(adapter, known, ends) and _begins(encodings[0].inputs, prefix, known)):
        known, prefix = 0, None
    length = known
    if (len(prompts) - 1) * (most - known) >= SAVED:
        length = most
    elif memory and memory.keeps:
        # What an earlier prompt has in common; of a first one up to the token that closes the images, if there is one.
        earlier = min(most, memory.in_common(images, first))
        closed = min(most, after_images + 1) if images else 0
        length = max(known, earlier if earlier - known >= SAVED else 0, closed)
    if memory:
        memory.note(images, first)
    inputs = _beginning(encodings[0].inputs, length)
    if not length or not may_continue(adapter, length, ends):
        return None
    if not all(_regrows(adapter, inputs, each) for each in encodings):
        return None
    if prefix is None:
        prefix = _prefilled(adapter, inputs)
        if prefix is None:
            return None
    else:
        prefix = prefix.after(first[known:length])
    if memory and memory.keeps and length > known:
        memory.put(images, aside, first[:length], prefix)
    return length, prefix


def beginnings_of(
    adapter: Adapter,
    groups: Sequence[Sequence[Encoding]],
    aside: Mapping[str, Any],
    most: int,
    ends: int,
    least: float = SAVED,
) -> tuple[int, SharedPrefix] | None:
    """Beginnings of one length of groups of prompts, each group about images of its own, prefilled in one batch.

    None where nothing would be saved by it, or where they have not one length. The caller holds the model's lock.

    Args:
        adapter: of the model.
        groups: encodings of each prompt alone, without what images are encoded from.
        aside: what the images of all groups are encoded from.
        most: how long a beginning may be [positions].
        ends: how far what comes after it reaches.
        least: how long it must be [positions].

    Returns:
        The length, and the beginnings, a row for each group.
    """
    if not adapter.capabilities.batching or not may_share(adapter):
        return None
    length = min(most, *(_in_common([each.prompts[0].ids for each in group]) for group in groups))
    after_images = max((span.stop for group in groups for each in group for span in each.prompts[0].spans), default=1)
    if length < max(after_images, least) or not may_continue(adapter, length, ends):
        return None
    begun = [_beginning(group[0].inputs, length) for group in groups]
    if not all(_regrows(adapter, begin, each) for begin, group in zip(begun, groups, strict=True) for each in group):
        return None
    names = [name for name in begun[0] if is_along(groups[0][0].inputs, name)]
    together = {name: torch.cat([each[name] for each in begun]) for name in names}
    prefix = _prefilled(adapter, {**together, **aside})
    return None if prefix is None else (length, prefix)


def _prefilled(adapter: Adapter, inputs: Mapping[str, Any]) -> SharedPrefix | None:
    """Beginnings of N prompts that have run; None where they cannot be continued by many tokens at once."""
    inputs = to_model(adapter.model, inputs)
    ran, states = prefill(adapter, inputs)
    if why_not_shared(adapter, ran.cache):
        return None
    if recurs(ran.cache):
        RECURRENT.add(adapter)
        return None
    return SharedPrefix(adapter, inputs, ran.cache, states)


def _in_common(ids: Sequence[np.ndarray]) -> int:
    """With how many ids all begin alike."""
    shortest = min(map(len, ids))
    differs = np.any(np.stack([each[:shortest] for each in ids]) != ids[0][:shortest], axis=0)
    return int(np.argmax(differs)) if differs.any() else shortest


def _beginning(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """The inputs of one prompt without what comes after its first ``length`` positions, all images in them."""
    return {name: value[:, :length] if is_along(inputs, name) else value for name, value in inputs.items()}


def _begins(inputs: Mapping[str, Any], prefix: SharedPrefix, length: int) -> bool:
    """Whether what runs along the sequence of a prompt (masks, types of tokens) begins like that of a prefix."""
    return all(
        name in prefix.inputs and same(prefix.inputs[name].to(value.device, value.dtype), value[:, :length])
        for name, value in inputs.items()
        if is_along(inputs, name)
    )


def _aside(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of one prompt that do not run along its sequence: pixels, and what else images are encoded with."""
    return {name: value for name, value in inputs.items() if not is_along(inputs, name)}


def _regrows(adapter: Adapter, inputs: Mapping[str, Any], encoding: Encoding) -> bool:
    """Whether the rest of a prompt after its beginning is to the model what text after a prompt is.

    It is not where a token is masked, or marked as another part of the sequence, nor where the images are encoded with
    the question.
    """
    length = inputs["input_ids"].shape[1]
    rest = torch.from_numpy(encoding.prompts[0].ids[None, length:])
    grown = adapter.extend(inputs, rest) if rest.shape[1] else inputs
    whole = encoding.inputs
    return same(_aside(inputs), _aside(whole)) and all(
        torch.equal(grown[name], value) for name, value in whole.items() if is_along(whole, name)
    )


def prefill(adapter: Adapter, inputs: dict[str, Any]) -> tuple[Run, Tensor]:
    """Run N prompts as generate does; the run and their states [N, S, H]."""
    ran = run(adapter, inputs, prefill_config(adapter.model.generation_config), Options(alternatives=1))
    assert ran.prefill is not None  # requested by Options.prompt
    return ran, ran.prefill
