"""Many continuations on one prefill: which token sequences must run, and their states from the prefix's cache.

A continuation of n tokens needs n rows: the last row of the prefix, then those after its first 1 .. n-1 tokens. The
first comes from the prefill. Of the rest only the longest sequences run, each covering all its prefixes, in batches of
similar length. Shorter ones are padded at their end, where no row that is read attends to. What several continuations
begin with (the question before the candidates) runs once, and they run on the cache that it leaves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmprobe.adapter import Adapter
from vlmprobe.adapter.kv_cache import cache_name
from vlmprobe.engines.local.capture import states_of
from vlmprobe.engines.local.model_state import state_of
from vlmprobe.engines.local.peft_state import puts_virtual_tokens

__all__ = ["Path", "SharedPrefix", "Stem", "longest", "why_not_shared"]

Path = tuple[int, ...]  # ids after the prefix
CACHE_BYTES = 512 * 2**20  # of repeated prefix cache in one batch
PADDING = 0.25  # of the positions of a batch, at most


@dataclass(frozen=True)
class Stem:
    """What continuations of one prompt have in common after the prefix, and each of them."""

    row: int  # of the prefix
    path: Path
    branches: Sequence[Path]  # each without the path; a state is wanted after each of their tokens

    @property
    def forks(self) -> bool:
        """Whether running the path once, then the branches on its cache, saves anything."""
        return bool(self.path) and len(longest(self.branches)) > 1


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
    """N prompts of S positions, or their beginnings, that have been prefilled, each to be continued by many paths.

    Their cache is never modified.
    """

    def __init__(
        self,
        adapter: Adapter,
        inputs: Mapping[str, Any],
        cache: Any,
        last: Tensor,
        state: Sequence[tuple[nn.Module, str, Any]] | None = None,
    ) -> None:
        self.adapter = adapter
        self.inputs = inputs
        self.cache = cache
        self.last = last  # [N, H], the states at the last position
        # That the prefill left on the model (rope deltas).
        self.state = state_of(*adapter.model.modules()) if state is None else state
        # A recurrent state advances token by token, as in generate; keys and values take several tokens at once.
        self._whole = all(hasattr(layer, "batch_repeat_interleave") for layer in cache.layers)

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        held = sum(each.nelement() * each.element_size() for each in self.inputs.values() if isinstance(each, Tensor))
        return held + _cache_bytes(self.cache)

    def after(self, path: Sequence[int]) -> SharedPrefix:
        """This prefix of one row, continued by further ids; itself without any."""
        if not path:
            return self
        run = (0, tuple(path))
        hidden, cache = self._run([run])
        grown = self._grown([run], [0], cache, hidden, len(path))
        assert grown is not None  # nothing is cut
        return grown

    def states(self, stems: Sequence[Stem]) -> list[dict[Path, Tensor]]:
        """For each stem the hidden states [H] from which the token after its path, and after each branch, is drawn.

        They are keyed by what comes after the stem's path; ``()`` is the end of that path.
        """
        runs: dict[tuple[int, Path], list[int]] = {}  # what runs on this prefix, and whose it is
        found: list[dict[Path, Tensor]] = [{} if stem.path else {(): self.last[stem.row]} for stem in stems]
        for place, stem in enumerate(stems):
            for path in [stem.path] if stem.forks else longest(stem.path + each for each in (*stem.branches, ())):
                runs.setdefault((stem.row, path), []).append(place)
        for batch in self._batches(list(runs)):
            hidden, cache = self._run(batch)
            forks: dict[int, list[tuple[int, int]]] = {}  # by length: rows of the batch, and stems
            for row, (run, rows) in enumerate(zip(batch, hidden, strict=True)):
                path = run[1]
                for place in runs[run]:
                    stem = stems[place]
                    skipped = len(stem.path)
                    found[place] |= {path[skipped:end]: rows[end - 1] for end in range(max(skipped, 1), len(path) + 1)}
                    if stem.forks:
                        forks.setdefault(len(path), []).append((row, place))
            for length, rows_and_stems in forks.items():
                self._fork(batch, hidden, cache, length, rows_and_stems, stems, found)
        return found

    def _fork(
        self,
        batch: Sequence[tuple[int, Path]],
        hidden: Tensor,
        cache: Any,
        length: int,
        rows_and_stems: Sequence[tuple[int, int]],
        stems: Sequence[Stem],
        found: list[dict[Path, Tensor]],
    ) -> None:
        """Run the branches of stems of one length on the cache that their batch left."""
        rows = list(dict.fromkeys(row for row, _ in rows_and_stems))
        grown = self._grown([batch[row] for row in rows], rows, cache, hidden, length)
        if grown is None:  # a cache that forgot what padding pushed out
            for row, place in rows_and_stems:
                whole = Stem(stems[place].row, (), [stems[place].path + each for each in stems[place].branches])
                states = self.states([whole])[0]
                found[place] |= {path[length:]: state for path, state in states.items() if len(path) >= length}
            return
        children = [Stem(rows.index(row), (), stems[place].branches) for row, place in rows_and_stems]
        for (_, place), states in zip(rows_and_stems, grown.states(children), strict=True):
            found[place] |= states

    def _grown(
        self, runs: Sequence[tuple[int, Path]], rows: Sequence[int], cache: Any, hidden: Tensor, length: int
    ) -> SharedPrefix | None:
        """The prefix after some rows of a batch that ran on it, all of this length; None if it cannot be cut to it."""
        before, after = self.inputs["input_ids"].shape[1], hidden.shape[1]
        taken = copy.deepcopy(cache)
        taken.reorder_cache(torch.tensor(rows, device=hidden.device))
        if after > length and not _cropped(taken, self.cache, after, after - length):
            return None
        of = torch.tensor([row for row, _ in runs], device=hidden.device)
        ids = torch.tensor([path for _, path in runs], device=hidden.device)
        inputs = self.adapter.extend(self._inputs_of(of), ids)
        assert inputs["input_ids"].shape[1] == before + length
        return SharedPrefix(self.adapter, inputs, taken, hidden[rows, length - 1], self._state_of(of))

    def _inputs_of(self, rows: Tensor) -> dict[str, Any]:
        shape = self.inputs["input_ids"].shape
        return {
            name: value[rows] if isinstance(value, Tensor) and value.shape[:2] == shape else value
            for name, value in self.inputs.items()
        }

    def _state_of(self, rows: Tensor) -> list[tuple[nn.Module, str, Any]]:
        count = len(self.last)
        return [
            (module, name, value[rows] if isinstance(value, Tensor) and len(value) == count else value)
            for module, name, value in self.state
        ]

    def _batches(self, runs: list[tuple[int, Path]]) -> Iterator[list[tuple[int, Path]]]:
        """Batches of rows and paths, of similar length: bounded in memory, and in what is padding."""
        size = max(1, CACHE_BYTES * len(self.last) // max(1, _cache_bytes(self.cache)))
        batch: list[tuple[int, Path]] = []
        tokens = 0
        for run in sorted(runs, key=lambda each: len(each[1])):
            length = len(run[1])
            padded = (len(batch) + 1) * length
            if batch and (len(batch) == size or (tokens + length < (1 - PADDING) * padded if self._whole else
                                                 length != len(batch[0][1]))):
                yield batch
                batch, tokens = [], 0
            batch.append(run)
            tokens += length
        if batch:
            yield batch

    def _run(self, batch: Sequence[tuple[int, Path]]) -> tuple[Tensor, Any]:
        """Hidden states [C, n, H] of C paths of up to n tokens, padded at their end, and the cache after them."""
        length = max(len(path) for _, path in batch)
        device = self.last.device
        ids = torch.tensor([path + path[-1:] * (length - len(path)) for _, path in batch], device=device)
        rows = torch.tensor([row for row, _ in batch], device=device)
        for module, name, value in self._state_of(rows):
            setattr(module, name, value)
        cache = copy.deepcopy(self.cache)
        if len(batch) > 1 or len(self.last) > 1:  # what beam search does to every kind of cache, here to repeat rows
            cache.reorder_cache(rows)
        inputs = self._inputs_of(rows)
        parts = [self._forward(inputs, part, cache) for part in ids.split(length if self._whole else 1, 1)]
        return torch.cat(parts, 1), cache

    def _forward(self, inputs: Mapping[str, Any], ids: Tensor, cache: Any) -> Tensor:
        outer = self.adapter.outer
        arguments = {cache_name(outer.forward): cache, "use_cache": True, "return_dict": True}
        return states_of(outer, self.adapter.backbone, {**self.adapter.continue_from(inputs, ids), **arguments})


def _cropped(cache: Any, before: Any, ran: int, remove: int) -> bool:
    """Remove the last positions of what ran on a copy of a cache, in place; whether every layer could.

    Layers that did not grow hold images, not text.
    """
    for layer, earlier in zip(cache.layers, before.layers, strict=True):
        grew = layer.get_seq_length() - earlier.get_seq_length()
        if not grew:
            continue
        if hasattr(layer, "recurrent_states") or grew != ran:
            return False
        if getattr(layer, "is_sliding", False) and layer.get_seq_length() >= layer.sliding_window:
            return False
        layer.crop(-remove)
    return True


def _cache_bytes(cache: Any) -> int:
    held = (each for layer in cache.layers for each in vars(layer).values())
    tensors = (each for value in held for each in (value.values() if isinstance(value, dict) else (value,)))
    return sum(each.nelement() * each.element_size() for each in tensors if isinstance(each, Tensor))
