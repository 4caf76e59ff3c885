"""Caches image features: an image is not encoded again while its features are cached.

An adapter names the method of its model that encodes images, and nothing else, into features
(:attr:`vlmprobe.adapter.Adapter.image_encoder`). During one call on the model, that method is replaced by one that
looks its arguments up first. A hit needs equal arguments, number for number, and an encoder that
has not changed since, so reuse changes no result.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from vlmprobe.adapter import Adapter
from vlmprobe.engines.local.encoder_state import encoder_state
from vlmprobe.engines.local.model_state import to_model
from vlmprobe.inputs.messages import Conversation

__all__ = ["ImageMemory", "Reuse", "images_key", "remembered", "same"]

UNREAD = ("hidden_states", "attentions")  # of every layer of the vision tower: large, and unused by the language model


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
    state: Any = None  # of the encoder that the entries come from
    _entries: list[_Entry] = field(default_factory=list)  # most recently used last

    def follow(self, adapter: Adapter) -> str | None:
        """Drop the entries if what they depend on besides the images has changed since, or why that cannot be told."""
        state = encoder_state(adapter) if self.lasts else None
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
        self._entries.append(_Entry(dict(arguments), output, _bytes(arguments) + _bytes(output)))
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

    def __str__(self) -> str:
        if self.reused:
            return "reused in part" if self.encoded else "reused"
        return f"encoded: {self.reason}" if self.reason else "encoded"


@contextmanager
def remembered(
    adapter: Adapter, memory: ImageMemory | None, conversations: Sequence[Conversation]
) -> Iterator[Reuse | None]:
    """Let this thread's runs of the model on ``conversations`` look up their image features in ``memory``."""
    if memory is None or not any(conversation.images for conversation in conversations):
        yield None
        return
    place = adapter.image_encoder
    if place is None:
        yield Reuse(f"the adapter {adapter.name} names no method that encodes images alone")
        return
    reuse = Reuse(memory.follow(adapter))
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
        self.conversations = [each for each in conversations if each.images]
        self.original = original
        self.reuse = reuse

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        arguments = _by_name(self.original, args, kwargs)
        if arguments is None:
            self.reuse.encoded += 1
            return self.original(*args, **kwargs)
        if len(self.conversations) > 1 and (together := self._batch(arguments)) is not None:
            return together
        return self._one(arguments, keep=len(self.conversations) == 1)

    def _one(self, arguments: dict[str, Any], *, keep: bool = True) -> Any:
        found = self.memory.find(arguments)
        if found is not None:
            self.reuse.reused += 1
            return _copy(found)
        self.reuse.encoded += 1
        output = self.original(**arguments)
        if keep:
            self.memory.put(arguments, _copy(output))
        return output

    def _batch(self, arguments: dict[str, Any]) -> Any | None:
        """Features of a batch, each image encoded once; None if nothing is gained or the parts do not add up."""
        keys = [images_key(conversation) for conversation in self.conversations]
        first = {key: place for place, key in reversed(list(enumerate(keys)))}
        if len(first) == len(keys):
            return None
        alone = {key: self._alone(arguments, self.conversations[place]) for key, place in first.items()}
        if any(each is None for each in alone.values()):
            return None
        if not _adds_up(arguments, [alone[key] for key in keys], self.adapter.batch_arguments):
            return None
        features = {key: self._one(each) for key, each in alone.items() if each is not None}
        self.reuse.reused += len(keys) - len(first)
        return _joined([features[key] for key in keys])

    def _alone(self, arguments: Mapping[str, Any], conversation: Conversation) -> dict[str, Any] | None:
        """The encoder's arguments for one conversation of the batch alone."""
        inputs = to_model(self.adapter.model, self.adapter.encode([conversation]).inputs)
        tensors = {name for name, value in arguments.items() if isinstance(value, Tensor)}
        return {**arguments, **{name: inputs[name] for name in tensors}} if tensors <= set(inputs) else None


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
    return tuple(
        (part.image.size, hashlib.blake2b(part.image.tobytes()).digest(), repr(sorted(part.options.items())))
        for part in conversation.image_parts
    )


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are equal, number for number."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.shape == other.shape and one.dtype == other.dtype and one.device == other.device
        return one is other or (alike and torch.equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return type(one) is type(other) and bool(one == other)


def _adds_up(whole: Mapping[str, Any], parts: Sequence[Any], aside: frozenset[str]) -> bool:
    """Whether every tensor of the batch is the concatenation of its conversations' tensors, without padding."""
    for name, value in whole.items():
        if not isinstance(value, Tensor) or name in aside:
            continue
        pieces = [part[name] for part in parts]
        if value.ndim == 0 or any(piece.shape[1:] != value.shape[1:] for piece in pieces):
            return False
        if not same(torch.cat(pieces), value):
            return False
    return True


def _joined(outputs: Sequence[Any]) -> Any | None:
    """Features of several inputs concatenated into a batch; None for an unknown type of output."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs)) if all(each.shape[1:] == first.shape[1:] for each in outputs) else None
    if not isinstance(first, ModelOutput):
        return None
    joined: dict[str, Any] = {}
    for name, value in _parts(first).items():
        if name in UNREAD:  # a cached output lacks them
            continue
        values = [_parts(each)[name] for each in outputs]
        if name == "deepstack_features":  # by layer, then by position
            layers = [_chained(layer) for layer in zip(*values, strict=True)]
            joined[name] = layers
            if any(layer is None for layer in layers):
                return None
        elif name in ("pooler_output", "last_hidden_state"):
            joined[name] = _chained(values)
            if joined[name] is None and name == "pooler_output":
                return None
        elif isinstance(value, (Tensor, list, tuple)):
            return None
    return _made(type(first), joined)


def _chained(values: Sequence[Any]) -> Any | None:
    first = values[0]
    if all(isinstance(each, Tensor) and each.shape[1:] == first.shape[1:] for each in values):
        return torch.cat(list(values))
    if all(isinstance(each, (list, tuple)) and all(isinstance(part, Tensor) for part in each) for each in values):
        return type(first)(part for each in values for part in each)
    return None


def _copy(output: Any) -> Any:
    """The same tensors in new containers, without unread fields: a model may reassign the fields of its output."""
    if isinstance(output, ModelOutput):
        return _made(type(output), {name: _copy(value) for name, value in _parts(output).items() if name not in UNREAD})
    if type(output) in (list, tuple):
        return type(output)(_copy(each) for each in output)
    return output


def _parts(output: ModelOutput) -> dict[str, Any]:
    """All attributes of an output: some models store features outside the fields of its class."""
    return {name: value for name, value in vars(output).items() if value is not None}


def _made(kind: type[ModelOutput], parts: Mapping[str, Any]) -> ModelOutput:
    own = set(inspect.signature(kind).parameters)
    made = kind(**{name: value for name, value in parts.items() if name in own})
    for name in parts.keys() - own:
        setattr(made, name, parts[name])
    return made


def _bytes(held: Any) -> int:
    if isinstance(held, Tensor):
        return held.nelement() * held.element_size()
    if isinstance(held, ModelOutput):
        held = _parts(held)
    if isinstance(held, Mapping):
        return sum(_bytes(each) for each in held.values())
    return sum(_bytes(each) for each in held) if isinstance(held, (list, tuple)) else 0
