"""Many continuations on one prefill: which token sequences must run, and their states from the prefix's cache.

A continuation of n tokens needs n rows: the last row of the prefix, then those after its first 1 .. n-1 tokens. The
first comes from the prefill. Of the rest only the longest sequences run, each covering all its prefixes, in batches of
similar length. Shorter ones are padded at their end, where no row that is read attends to.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmprobe.adapter import Adapter
from vlmprobe.adapter.kv_cache import cache_name
from vlmprobe.engines.local.capture import states_of
from vlmprobe.engines.local.model_state import state_of
from vlmprobe.engines.local.peft_state import puts_virtual_tokens

__all__ = ["Path", "SharedPrefix", "longest", "why_not_shared"]

Path = tuple[int, ...]  # ids after the prefix
CACHE_BYTES = 512 * 2**20  # of repeated prefix cache in one batch
PADDING = 0.25  # of the positions of a batch, at most


def longest(paths: Iterable[Path]) -> list[Path]:
    """The paths that are not a prefix of another one, shortest first; the empty path is dropped."""
    kept: list[Path] = []
    for path in sorted(set(paths), reverse=True):  # a prefix sorts right after the paths that extend it
        if path and not (kept and kept[-1][: len(path)] == path):
            kept.append(path)
    return sorted(kept, key=len)


def why_not_shared(adapter: Adapter, cache: Any) -> str | None:
    """Why the prompt's cache cannot be continued by several candidates, or None where it can."""
    if not adapter.capabilities.prefix_reuse:
        return f"the adapter {adapter.name} declares that its cache cannot be continued"
    if puts_virtual_tokens(adapter):
        return "PEFT puts virtual tokens before the prompt"
    if cache is None or not hasattr(cache, "layers"):
        return "the model returns no cache"
    for layer in cache.layers:
        if not hasattr(layer, "reorder_cache"):
            return f"the cache holds a {type(layer).__name__}, which cannot be repeated for several candidates"
    return None


class SharedPrefix:
    """A prompt, or its beginning, that has been prefilled once, to be continued by many paths.

    Its cache is never modified.
    """

    def __init__(self, adapter: Adapter, inputs: Mapping[str, Any], cache: Any, last: Tensor) -> None:
        self.adapter = adapter
        self.inputs = inputs
        self.cache = cache
        self.last = last  # [H], the state at the last position
        self.state = state_of(*adapter.model.modules())  # that the prefill left on the model (rope deltas)
        # A recurrent state advances token by token, as in generate; keys and values take several tokens at once.
        self._whole = all(hasattr(layer, "batch_repeat_interleave") for layer in cache.layers)

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        held = sum(each.nelement() * each.element_size() for each in self.inputs.values() if isinstance(each, Tensor))
        return held + _cache_bytes(self.cache)

    def states(self, paths: Sequence[Path]) -> dict[Path, Tensor]:
        """The hidden state [H] from which the token after each path is drawn; ``()`` is the end of the prefix."""
        for module, name, value in self.state:
            setattr(module, name, value)
        found: dict[Path, Tensor] = {(): self.last}
        for batch in self._batches(longest(paths)):
            length = len(batch[-1])
            ids = [path + path[-1:] * (length - len(path)) for path in batch]
            hidden = self._run(torch.tensor(ids, device=self.last.device))
            for path, rows in zip(batch, hidden, strict=True):
                found |= {path[: place + 1]: rows[place] for place in range(len(path))}
        return found

    def _batches(self, paths: Sequence[Path]) -> Iterator[list[Path]]:
        """Batches of the paths, which are sorted by length: bounded in memory, and in what is padding."""
        size = max(1, CACHE_BYTES // max(1, _cache_bytes(self.cache)))
        batch: list[Path] = []
        for path in paths:
            filled = sum(map(len, batch)) + len(path)
            if batch and (len(batch) == size or filled < (1 - PADDING) * (len(batch) + 1) * len(path)):
                yield batch
                batch = []
            batch.append(path)
        if batch:
            yield batch

    def _run(self, ids: Tensor) -> Tensor:
        """Hidden states [C, n, H] of C paths of n tokens each."""
        cache = copy.deepcopy(self.cache)
        if len(ids) > 1:  # what beam search does to every kind of cache, here with one beam taken C times
            cache.reorder_cache(torch.zeros(len(ids), dtype=torch.long, device=ids.device))
        return torch.cat([self._forward(part, cache) for part in ids.split(ids.shape[1] if self._whole else 1, 1)], 1)

    def _forward(self, ids: Tensor, cache: Any) -> Tensor:
        outer = self.adapter.outer
        arguments = {cache_name(outer.forward): cache, "use_cache": True, "return_dict": True}
        return states_of(outer, self.adapter.backbone, {**self.adapter.continue_from(self.inputs, ids), **arguments})


def _cache_bytes(cache: Any) -> int:
    held = (each for layer in cache.layers for each in vars(layer).values())
    tensors = (each for value in held for each in (value.values() if isinstance(value, dict) else (value,)))
    return sum(each.nelement() * each.element_size() for each in tensors if isinstance(each, Tensor))
