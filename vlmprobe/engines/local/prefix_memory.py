"""Keeps the caches of beginnings of prompts between calls, for later prompts that begin alike."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmprobe.adapter import Adapter
from vlmprobe.adapter.prompts import common_prefix
from vlmprobe.engines.local.encoder_state import prefix_state
from vlmprobe.engines.local.feature_cache import same
from vlmprobe.engines.local.shared_prefix import SharedPrefix

__all__ = ["PrefixMemory"]

ASKED = 8  # prompts of earlier calls that a new one is compared with


@dataclass(frozen=True, eq=False)
class _Entry:
    images: Any  # what the images of the prompt are, by content
    aside: Any  # the inputs that they were encoded with
    ids: tuple[int, ...]
    prefix: SharedPrefix


@dataclass(eq=False)
class PrefixMemory:
    """LRU cache of prefilled beginnings. Used by one call at a time (calls on a model are serialised)."""

    limit: int = 2**30  # bytes; the most recently used beginning is kept even if it is larger
    # Whether the model's generate goes on from a cache, without images and with them, where that was tried.
    resumes: dict[bool, bool] = field(default_factory=dict)
    _state: Any = None  # of the model that the entries come from, or why it cannot be told
    _entries: list[_Entry] = field(default_factory=list)  # most recently used last
    _asked: deque[tuple[Any, Sequence[int]]] = field(default_factory=lambda: deque(maxlen=ASKED))  # images and ids

    def follow(self, adapter: Adapter, encoder: tuple[Any, ...] | str) -> None:
        """Drop the entries if the model has changed since, or if that cannot be told.

        Args:
            adapter: of the model.
            encoder: its :func:`~vlmprobe.engines.local.encoder_state.encoder_state`.
        """
        state = prefix_state(adapter, encoder)
        if isinstance(state, str) or state != self._state:
            self.clear()
        self._state = state

    @property
    def keeps(self) -> bool:
        """Whether what is put in now can be found by a later call."""
        return not isinstance(self._state, str)

    def find(self, images: Any, aside: Any, ids: Sequence[int]) -> tuple[int, SharedPrefix] | None:
        """The longest beginning of ``ids`` that was put in with these images and inputs, and its length."""
        fitting = [
            each
            for each in self._entries
            if each.images == images and tuple(ids[: len(each.ids)]) == each.ids and same(each.aside, aside)
        ]
        if not fitting:
            return None
        best = max(fitting, key=lambda each: len(each.ids))
        self._entries.remove(best)
        self._entries.append(best)
        return len(best.ids), best.prefix

    def put(self, images: Any, aside: Any, ids: Sequence[int], prefix: SharedPrefix) -> None:
        """Keep a beginning; evict the least recently used."""
        self._entries.append(_Entry(images, aside, tuple(ids), prefix))
        while len(self._entries) > 1 and sum(each.prefix.size for each in self._entries) > self.limit:
            self._entries.pop(0)

    def note(self, images: Any, ids: Sequence[int]) -> None:
        """Remember that this was asked, to find out what later prompts have in common with it."""
        self._asked.append((images, ids))

    def in_common(self, images: Any, ids: Sequence[int]) -> int:
        """With how many ids a prompt begins like one that was asked before about these images."""
        return max((common_prefix(ids, each) for about, each in self._asked if about == images), default=0)

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()
        self._asked.clear()
        self.resumes.clear()
