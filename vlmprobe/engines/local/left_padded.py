"""Whether the cache of a left-padded batch can be continued by several candidates of each prompt.

A model's own ``generate`` continues one by a single token. Models differ in how they count positions there, and in what
they mask; so the first time, the states of a continuation must be those on the cache of the prompt alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from weakref import WeakKeyDictionary

import torch

from vlmprobe.adapter import Adapter, EncodedPrompt, Encoding
from vlmprobe.engines.local.beginnings import prefill
from vlmprobe.engines.local.model_state import alone, to_model
from vlmprobe.engines.local.shared_prefix import SharedPrefix, Stem

__all__ = ["close", "continues", "may_continue_padded"]

CLOSE = 1e-3  # of states to the greatest of them, in float32
COARSE = 5e-2  # in half precision
STEPS = 3  # tokens of the continuation that is tried
_CONTINUES: WeakKeyDictionary[Adapter, dict[bool, bool]] = WeakKeyDictionary()  # with images, and without


def may_continue_padded(adapter: Adapter, prompts: Iterable[EncodedPrompt]) -> bool:
    """Whether it has not been found out yet that it cannot be, for prompts with images or without as these."""
    known = _CONTINUES.get(adapter, {})
    return all(known.get(bool(each.spans), True) for each in prompts)


def continues(
    adapter: Adapter, prefix: SharedPrefix, prompts: Sequence[EncodedPrompt], alone_of: Callable[[int], Encoding]
) -> bool:
    """Whether a padded prefix gives what each prompt alone does. The caller holds the model's lock.

    Args:
        adapter: of the model.
        prefix: of prompts of different lengths.
        prompts: these, a row for each.
        alone_of: encodes the prompt of a row alone.
    """
    known = _CONTINUES.setdefault(adapter, {})
    longest = max(len(each.ids) for each in prompts)
    padded = sorted((len(each.ids), row) for row, each in enumerate(prompts) if len(each.ids) < longest)
    for _, row in padded:
        shown = bool(prompts[row].spans)
        if shown not in known:
            # A recurrent state advances token by token.
            known[shown] = prefix.whole and _same(adapter, prefix, row, alone_of(row))
    return all(known[bool(prompts[row].spans)] for _, row in padded)


def _same(adapter: Adapter, prefix: SharedPrefix, row: int, encoding: Encoding) -> bool:
    path = tuple(encoding.prompts[0].ids[-STEPS:].tolist())
    try:
        mine = prefix.states([Stem(row, path[:-1], [path[-1:]])])[0]
    except Exception:  # noqa: BLE001 - of the model, given a mask or positions
        return False
    with alone(adapter):
        inputs = to_model(adapter.model, encoding.inputs)
        ran, states = prefill(adapter, inputs)
        due = SharedPrefix(adapter, inputs, ran.cache, states[:, -1:]).states([Stem(0, path[:-1], [path[-1:]])])[0]
    return all(close(mine[end], due[end]) for end in due)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two states are the same up to rounding."""
    due = other.float()
    apart = (one.float() - due).abs().max() / due.abs().max()
    return bool(apart <= (CLOSE if other.dtype in (torch.float32, torch.float64) else COARSE))
