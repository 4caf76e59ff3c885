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
from vlmprobe.adapter.encoding import is_along
from vlmprobe.adapter.kv_cache import cache_name
from vlmprobe.engines.local.capture import states_of
from vlmprobe.engines.local.model_state import state_of
from vlmprobe.engines.local.peft_state import puts_virtual_tokens

__all__ = ["Path", "SharedPrefix", "Stem", "longest", "recurs", "why_not_shared"]

Path = tuple[int, ...]  # ids after the prefix
CACHE_BYTES = 512 * 2**20  # of repeated prefix cache in one batch
# On a CPU more rows than these cost more, for what they read and write exceeds the processor's own caches.
NEAR_BYTES, NEAR_ROWS = 24 * 2**20, 16
PADDING = 0.3  # of the positions of a batch, at most


@dataclass(frozen=True)
class Stem:
    """What continuations of one prompt have in common after the prefix, and each of them."""

    row: int  # of the prefix
    path: Path
    branches: Sequence[Path]  # each without the path; a state is wanted after each of their tokens

    @property
    def forks(self) -> bool:
        """Whether the path runs once, then the branches on its cache, rather than each branch with the path."""
        return bool(self.path) and len(longest(self.branches)) > 1

    @property
    def runs(self) -> list[Path]:
        """What must run on the prefix itself."""
        return [self.path] if self.forks else longest(self.path + each for each in (*self.branches, ()))

    def states(self, ran: Path, rows: Tensor) -> dict[Path, Tensor]:
        """What of the states [n, H] after each token of a path is after this one's own, by what comes after it."""
        own = len(self.path)
        return {ran[own:end]: rows[end - 1] for end in range(max(own, 1), len(ran) + 1)}


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


def recurs(cache: Any) -> bool:
    """Whether a cache holds a state that sums up all positions, of linear attention."""
    held = (getattr(layer, "recurrent_states", None) for layer in cache.layers)
    return any(state is not None for each in held for state in (each.values() if isinstance(each, dict) else (each,)))


class SharedPrefix:
    """N prompts of S positions, or their beginnings, that have been prefilled, each to be continued by many paths.

    Their cache is never modified.
    """

    def __init__(
        self,
        adapter: Adapter,
        inputs: Mapping[str, Any],
        cache: Any,
        hidden: Tensor,
        state: Sequence[tuple[nn.Module, str, Any]] | None = None,
    ) -> None:
        self.adapter = adapter
        self.inputs = inputs
        self.cache = cache
        self.hidden = hidden  # [N, n, H], the states at the last positions, of a prompt at all
        # That the prefill left on the model (rope deltas).
        self.state = state_of(*adapter.model.modules()) if state is None else state
        mask = inputs.get("attention_mask")
        self.padded = mask is not None and not bool(mask.all())  # on the left, of prompts of different lengths
        # A recurrent state advances token by token, as in generate; keys and values take several tokens at once.
        self.whole = all(hasattr(layer, "batch_repeat_interleave") for layer in cache.layers)
        # A window has forgotten what padding pushed out of it, and a recurrent state cannot go back.
        self._cuts = all(hasattr(layer, "crop") and not _forgets(layer) for layer in cache.layers)

    @property
    def last(self) -> Tensor:
        """[N, H], the states at the last position."""
        return self.hidden[:, -1]

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        tensors = [each for each in (self.hidden, *self.inputs.values()) if isinstance(each, Tensor)]
        held = sum(each.nelement() * each.element_size() for each in tensors)
        return held + _cache_bytes(self.cache)

    def after(self, path: Sequence[int]) -> SharedPrefix:
        """This prefix of one row, continued by further ids; itself without any."""
        if not path:
            return self
        run = (0, tuple(path))
        hidden, cache = self._run([run])
        grown = self._grown([run], [0], cache, hidden, len(path))
        grown.hidden = torch.cat([self.hidden, grown.hidden], dim=1)
        return grown

    def after_each(self, runs: Sequence[tuple[int, Path]], inputs: Mapping[str, Any]) -> SharedPrefix | None:
        """This prefix continued by a path for each of N rows, padded on the left; None where its cache cannot be.

        Args:
            runs: rows of the prefix, and paths of one id or more.
            inputs: of the N prompts that result, padded on the left.
        """
        if not self.whole:
            return None
        hidden, cache = self._run(runs)
        rows = torch.tensor([row for row, _ in runs], device=hidden.device)
        hidden = torch.cat([self.hidden[rows], hidden], dim=1)
        short = [hidden.shape[1] - self.hidden.shape[1] - len(path) for _, path in runs]
        if any(short):
            hidden = _rolled(hidden, short, 1)
            for layer, before in zip(cache.layers, self.cache.layers, strict=True):
                length = layer.get_seq_length()
                if length == before.get_seq_length():  # it holds images
                    continue
                for name in ("keys", "values"):
                    held = getattr(layer, name, None)
                    if not isinstance(held, Tensor) or held.shape[-2] != length:
                        return None
                    setattr(layer, name, _rolled(held, short, held.dim() - 2))
        return SharedPrefix(self.adapter, inputs, cache, hidden, self._state_of(rows))

    def cut_back(self, length: int, ran: int) -> bool:
        """Cut the cache back to this many positions, of the ``ran`` that it holds; False if it has forgotten some."""
        if not self._cuts:
            return False
        for layer in self.cache.layers:
            if layer.get_seq_length() == ran > length:  # else it holds images
                layer.crop(length - ran)
        return True

    def restore(self, rows: Tensor | None = None) -> None:
        """Leave on the model what the prefill left there: of these rows [C], or of all."""
        for module, name, value in self.state if rows is None else self._state_of(rows):
            setattr(module, name, value)

    def states(self, stems: Sequence[Stem]) -> list[dict[Path, Tensor]]:
        """For each stem the hidden states [H] from which the token after its path, and after each branch, is drawn.

        They are keyed by what comes after the stem's path; ``()`` is the end of that path.
        """
        found: list[dict[Path, Tensor]] = [{} if stem.path else {(): self.last[stem.row]} for stem in stems]
        runs: dict[tuple[int, Path], list[int]] = {}  # what runs on this prefix, and whose it is
        for place, stem in enumerate(stems):
            for path in stem.runs:
                runs.setdefault((stem.row, path), []).append(place)
        padded = self.whole and (self._cuts or not any(stem.forks for stem in stems))
        for batch in self._batches(list(runs), padded):
            hidden, cache = self._run(batch)
            forks: dict[int, list[tuple[int, int]]] = {}  # rows of the batch, and stems, by the length of their path
            for row, run in enumerate(batch):
                for place in runs[run]:
                    found[place] |= stems[place].states(run[1], hidden[row])
                    if stems[place].forks:
                        forks.setdefault(len(run[1]), []).append((row, place))
            for length, several in forks.items():
                grown = self._grown(batch, [row for row, _ in several], cache, hidden, length)
                stubs = [Stem(row, (), stems[place].branches) for row, (_, place) in enumerate(several)]
                for (_, place), states in zip(several, grown.states(stubs), strict=True):
                    found[place] |= states
        return found

    def _grown(
        self, batch: Sequence[tuple[int, Path]], rows: Sequence[int], cache: Any, hidden: Tensor, length: int
    ) -> SharedPrefix:
        """The prefix after some rows of a batch that ran on it, whose paths have this length."""
        taken = copy.deepcopy(cache)
        taken.reorder_cache(torch.tensor(rows, device=hidden.device))
        if padding := hidden.shape[1] - length:
            for layer, before in zip(taken.layers, self.cache.layers, strict=True):
                if layer.get_seq_length() > before.get_seq_length():  # else it holds images
                    layer.crop(-padding)
        of = torch.tensor([batch[row][0] for row in rows], device=hidden.device)
        ids = torch.tensor([batch[row][1] for row in rows], device=hidden.device)
        inputs = self.adapter.extend(self._inputs_of(of), ids)
        return SharedPrefix(self.adapter, inputs, taken, hidden[rows, :length], self._state_of(of))

    def _inputs_of(self, rows: Tensor) -> dict[str, Any]:
        return {name: value[rows] if is_along(self.inputs, name) else value for name, value in self.inputs.items()}

    def _state_of(self, rows: Tensor) -> list[tuple[nn.Module, str, Any]]:
        count = len(self.hidden)
        return [
            (module, name, value[rows] if isinstance(value, Tensor) and len(value) == count else value)
            for module, name, value in self.state
        ]

    def _batches(self, runs: list[tuple[int, Path]], padded: bool) -> Iterator[list[tuple[int, Path]]]:
        """Batches of rows and paths: bounded in memory, of one length or, if ``padded``, with little padding."""
        each = max(1, _cache_bytes(self.cache) // len(self.hidden))
        size = max(1, CACHE_BYTES // each)
        if self.hidden.device.type == "cpu":
            size = min(size, max(NEAR_ROWS, NEAR_BYTES // each))
        batch: list[tuple[int, Path]] = []  # longest first, so that the first one says how long it is
        for run in sorted(runs, key=lambda each: -len(each[1])):
            filled = len(run[1]) + sum(len(path) for _, path in batch)
            most = PADDING if padded else 0
            if batch and (len(batch) == size or filled < (1 - most) * (len(batch) + 1) * len(batch[0][1])):
                yield batch
                batch = []
            batch.append(run)
        if batch:
            yield batch

    def _run(self, batch: Sequence[tuple[int, Path]]) -> tuple[Tensor, Any]:
        """Hidden states [C, n, H] of C paths of up to n tokens, padded at their end, and the cache after them."""
        length = max(len(path) for _, path in batch)
        device = self.hidden.device
        ids = torch.tensor([path + path[-1:] * (length - len(path)) for _, path in batch], device=device)
        rows = torch.tensor([row for row, _ in batch], device=device)
        self.restore(rows)
        cache = copy.deepcopy(self.cache)
        if len(batch) > 1 or len(self.hidden) > 1:  # what beam search does to every kind of cache, here to repeat rows
            cache.reorder_cache(rows)
        inputs = self._inputs_of(rows)
        deltas = next((value for *_, value in self._state_of(rows) if isinstance(value, Tensor)), None)
        parts = [self._forward(inputs, part, cache, deltas) for part in ids.split(length if self.whole else 1, 1)]
        return torch.cat(parts, 1), cache

    def _forward(self, inputs: Mapping[str, Any], ids: Tensor, cache: Any, deltas: Tensor | None) -> Tensor:
        outer = self.adapter.outer
        arguments = self.adapter.continue_from(inputs, ids)
        if self.padded and "attention_mask" not in arguments:
            mask = self.adapter.extend(inputs, ids)["attention_mask"]
            places = (mask.cumsum(1) - 1)[:, -ids.shape[1] :]
            # As generate counts them: of m-rope for each of its axes, from the last position of image and text.
            arguments |= {"attention_mask": mask, "position_ids": places if deltas is None else places[None] + deltas}
        arguments |= {cache_name(outer.forward): cache, "use_cache": True, "return_dict": True}
        return states_of(outer, self.adapter.backbone, arguments)


def _rolled(rows: Tensor, short: Sequence[int], dim: int) -> Tensor:
    """Rows [N, ...] with the padding at the end of each, of these lengths, moved to its start."""
    return torch.stack([each.roll(less, dim - 1) for each, less in zip(rows, short, strict=True)])


def _forgets(layer: Any) -> bool:
    return bool(getattr(layer, "is_sliding", False)) or hasattr(layer, "recurrent_states")


def _cache_bytes(cache: Any) -> int:
    """Bytes that a cache holds: of a window that is a view, all that it is a view of."""
    held = (each for layer in cache.layers for each in vars(layer).values())
    tensors = (each for value in held for each in (value.values() if isinstance(value, dict) else (value,)))
    storages = (each.untyped_storage() for each in tensors if isinstance(each, Tensor))
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())
