"""Caches image features: an image is not encoded again while its features are cached.

An adapter names the method of its model that encodes images, and nothing else, into features
(:attr:`vlmprobe.adapter.Adapter.image_encoder`). During one call on the model, that method is replaced by one that
looks its arguments up first. A hit needs equal arguments, number for number, and an encoder that
has not changed since, so reuse changes no result.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from vlmprobe.adapter import Adapter
from vlmprobe.engines.local.encoder_state import encoder_state
from vlmprobe.engines.local.image_features import Shares, bytes_of, copied, cut, divided, joined, owned
from vlmprobe.engines.local.model_state import device_of
from vlmprobe.engines.local.phases import Moments
from vlmprobe.engines.local.running import positions_of_run, rows_of_run
from vlmprobe.inputs.messages import Conversation

__all__ = ["ImageMemory", "Reuse", "images_key", "remembered", "same"]

# Whose features of a batch could not be told apart, so that it is not tried again.
TOGETHER: WeakSet[Adapter] = WeakSet()


@dataclass(frozen=True, eq=False)
class _Entry:
    arguments: Mapping[str, Any]
    output: Any
    size: int  # bytes


@dataclass(eq=False)
class ImageMemory:
    """LRU cache of image features. Used by one call at a time (calls on a model are serialised)."""

    images: int = 8  # maximum number of encoded inputs (all images of one conversation)
    limit: int = 2**30  # bytes; the most recently used input is kept even if it is larger
    lasts: bool = True  # whether it outlives a call, so that the model may change in between
    exact: bool = True  # whether every element of the encoder's weights is compared between calls
    state: Any = None  # of the encoder that the entries come from
    _entries: list[_Entry] = field(default_factory=list)  # most recently used last

    def state_of(self, adapter: Adapter) -> tuple[Any, ...] | str | None:
        """What the entries depend on besides the images, as it is now; None if the memory does not outlive a call."""
        return encoder_state(adapter, exact=self.exact) if self.lasts else None

    def follow(self, state: tuple[Any, ...] | str | None) -> str | None:
        """Drop the entries of another state; why it cannot be told, if so."""
        if isinstance(state, str) or state != self.state:
            self._entries.clear()
            self.state = state
        return state if isinstance(state, str) else None

    def find(self, arguments: Mapping[str, Any]) -> Any | None:
        """The output for equal arguments, or None."""
        for entry in self._entries:
            if same(entry.arguments, arguments):
                self._entries.remove(entry)
                self._entries.append(entry)
                return entry.output
        return None

    def put(self, arguments: Mapping[str, Any], output: Any) -> None:
        """Keep an output; evict the least recently used."""
        self._entries.append(_Entry(dict(arguments), output, bytes_of(arguments) + bytes_of(output)))
        while len(self._entries) > 1 and (
            len(self._entries) > self.images or sum(entry.size for entry in self._entries) > self.limit
        ):
            self._entries.pop(0)

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()


@dataclass
class Reuse:
    """Whether the image features of one call were encoded or reused."""

    reason: str | None = None  # why features of earlier calls cannot be reused, if so
    encoded: int = 0  # runs of the encoder
    reused: int = 0  # inputs whose features were cached
    spent: Moments | None = None  # on running the encoder; None where there is none that encodes images alone

    def __str__(self) -> str:
        if self.reused or not (self.encoded or self.reason):  # or all images are in a beginning that was kept
            return "reused in part" if self.encoded else "reused"
        return f"encoded: {self.reason}" if self.reason else "encoded"


@contextmanager
def remembered(
    adapter: Adapter, memory: ImageMemory | None, conversations: Sequence[Conversation], state: Any = None
) -> Iterator[Reuse | None]:
    """Let this thread's runs of the model on ``conversations`` look up their image features in ``memory``.

    ``state`` is that of the memory now, where it is known already.
    """
    if memory is None or not any(conversation.images for conversation in conversations):
        yield None
        return
    place = adapter.image_encoder
    if place is None:
        yield Reuse(f"the adapter {adapter.name} names no method that encodes images alone")
        return
    reason = memory.follow(memory.state_of(adapter) if state is None else state)
    reuse = Reuse(reason, spent=Moments(device_of(adapter.model)))
    owner, name = place
    encoder = _Encoder(adapter, memory, conversations, getattr(owner, name), reuse)
    caller = threading.get_ident()

    @functools.wraps(encoder.original)  # generate reads its signature
    def look_up(*args: Any, **kwargs: Any) -> Any:
        return (encoder if threading.get_ident() == caller else encoder.original)(*args, **kwargs)

    covered = owner.__dict__.get(name)
    owner.__dict__[name] = look_up  # takes precedence over the class's method, or the submodule, of this name
    try:
        yield reuse
    finally:
        if covered is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = covered


class _Encoder:
    """The image encoder behind a cache, for one call."""

    def __init__(
        self,
        adapter: Adapter,
        memory: ImageMemory,
        conversations: Sequence[Conversation],
        original: Callable[..., Any],
        reuse: Reuse,
    ) -> None:
        self.adapter = adapter
        self.memory = memory
        self.conversations = conversations
        self.original = original
        self.reuse = reuse
        assert reuse.spent is not None
        self.run = reuse.spent.span()(original)  # it is timed

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = _by_name(self.original, args, kwargs)
        if arguments is None:
            self.reuse.encoded += 1
            return self.run(*args, **kwargs)
        rows = rows_of_run()
        if rows == len(self.conversations) > 1 and (together := self._batch(arguments)) is not None:
            return together
        alone = rows == 1 or sum(bool(each.images) for each in self.conversations) == 1
        return self._one(arguments, keep=alone)

    def _one(self, arguments: dict[str, Any], *, keep: bool) -> Any:
        found = self.memory.find(arguments)
        if found is not None:
            self.reuse.reused += 1
            return copied(found)
        self.reuse.encoded += 1
        output = self.run(**arguments)
        if keep:
            self.memory.put(arguments, copied(output))
        return output

    def _batch(self, arguments: dict[str, Any]) -> Any | None:
        """Features of a batch, each image encoded once; None if nothing is gained or the images cannot be told apart.

        The arguments of each conversation are cut out of those of the batch. Conversations with the same images must
        have the same ones there, number for number; all that are not in memory are encoded in one run.
        """
        shown = [place for place, each in enumerate(self.conversations) if each.images]
        keys = [images_key(self.conversations[place]) for place in shown]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        if len(first) == len(keys) or self.adapter in TOGETHER:
            return None
        count = [len(each.images) for each in self.conversations]
        shares = Shares(count, positions_of_run(self.adapter)).of(shown)
        parts = cut(arguments, shares)
        aside = self.adapter.batch_arguments
        known = [{name: value for name, value in each.items() if name not in aside} for each in parts or ()]
        if parts is None or any(not same(known[first[key]], each) for key, each in zip(keys, known, strict=True)):
            return None
        found = {key: self.memory.find(known[place]) for key, place in first.items()}
        places = [place for key, place in first.items() if found[key] is None]
        if places:
            output = self.run(**_concatenated([parts[place] for place in places]))
            self.reuse.encoded += 1
            pieces = divided(copied(output), shares.of(places))
            if pieces is None or joined(pieces) is None:
                TOGETHER.add(self.adapter)
                return None
            for place, piece in zip(places, pieces, strict=True):
                found[keys[place]] = piece
                self.memory.put(known[place], owned(piece) if self.memory.lasts and len(places) > 1 else piece)
        together = joined([found[key] for key in keys])
        if together is not None:
            self.reuse.reused += len(keys) - len(places)
        return together


def _by_name(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments of a call by name, or None if some have no name."""
    if not args:
        return kwargs
    bound = inspect.signature(call).bind(*args, **kwargs)
    kinds = inspect.signature(call).parameters
    if any(kinds[name].kind is inspect.Parameter.VAR_POSITIONAL for name in bound.arguments):
        return None
    named = dict(bound.arguments)
    for name, parameter in kinds.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def images_key(conversation: Conversation) -> tuple[Any, ...]:
    """Equal for conversations with the same images under the same options."""
    return tuple((part.digest, repr(sorted(part.options.items()))) for part in conversation.image_parts)


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, number for number."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return one is other or (alike and torch.equal(one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)


def _concatenated(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The encoder's arguments for several conversations, from those of each."""
    return {
        name: torch.cat([part[name] for part in parts]) if isinstance(value, Tensor) else value
        for name, value in parts[0].items()
    }
