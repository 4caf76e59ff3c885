"""Image features of a batch, and the encoder's arguments: cut into those of its conversations, and joined again."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

__all__ = ["Shares", "bytes_of", "copied", "cut", "divided", "joined", "owned"]

DEEPSTACK = "deepstack_features"  # by layer, then by position
UNREAD = ("hidden_states", "attentions")  # of every layer of the vision tower: large, and unused by the language model


@dataclass(frozen=True)
class Shares:
    """How many images each conversation of a batch has, and how many positions they take; every one has an image."""

    images: Sequence[int]
    positions: Sequence[int]  # 0 where the model has no placeholders

    def of(self, places: Sequence[int]) -> Shares:
        """Those of some of the conversations."""
        return Shares([self.images[place] for place in places], [self.positions[place] for place in places])

    def sizes(self, length: int, counts: Sequence[Sequence[int]] = ()) -> list[int] | None:
        """How many of ``length`` rows belong to each conversation, or None if it cannot be told.

        A row is an image, a conversation with its images padded, what one of ``counts`` counts, or a fixed number of
        positions: a tile, a patch, or what is put at a position. Images first: each has at least one tile.
        """

        for known in (self.images, [1] * len(self.images), *counts):
            if sum(known) == length:
                return list(known)
        total = sum(self.positions)
        if not all(self.positions) or any(count * length % total for count in self.positions):
            return None
        return [count * length // total for count in self.positions]


def cut(arguments: Mapping[str, Any], shares: Shares) -> list[dict[str, Any]] | None:
    """The encoder's arguments for each conversation alone, from those of the batch; None if they cannot be told apart.

    Args:
        arguments: of the batch: tensors whose rows belong to one conversation after the other, and anything else that
            is the same for all.
        shares: of the conversations.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    if not tensors or any(not value.ndim for value in tensors.values()):
        return None
    if any(_is_listed(value, shares) for value in arguments.values()):
        return None
    counts = [per for value in tensors.values() if (per := _counted(value, shares)) is not None]
    pieces: dict[str, Sequence[Tensor]] = {}
    for name, value in tensors.items():
        sizes = shares.sizes(len(value), counts)
        if sizes is None:
            return None
        pieces[name] = value.split(sizes)
    return [
        {**arguments, **{name: each[place] for name, each in pieces.items()}} for place in range(len(shares.images))
    ]


def _is_listed(value: Any, shares: Shares) -> bool:
    """Whether a list may hold something of each image; else it is the same for all, as names of layers are."""
    if not isinstance(value, (list, tuple)):
        return False
    plain = all(each is None or isinstance(each, (bool, int, float, str)) for each in value)
    return not plain or len(value) in (len(shares.images), sum(shares.images))


def _counted(value: Tensor, shares: Shares) -> list[int] | None:
    """The rows of other tensors that each conversation has if ``value`` holds the grid of each image: its product."""
    if value.is_floating_point() or value.dtype == torch.bool or value.ndim > 2 or len(value) != sum(shares.images):
        return None
    products = iter(value.reshape(len(value), -1).prod(dim=1).tolist())
    return [sum(next(products) for _ in range(count)) for count in shares.images]


def divided(output: Any, shares: Shares) -> list[Any] | None:
    """The features of each conversation, from those of all in one run; None for an output that is not understood."""
    count = len(shares.images)
    if count == 1:
        return [output]
    if isinstance(output, Tensor):
        return _pieces(output, shares)
    if not isinstance(output, ModelOutput):
        return None
    found: dict[str, list[Any]] = {}
    for name, value in _parts(output).items():
        pieces = _layers(value, shares) if name == DEEPSTACK else _pieces(value, shares)
        if pieces is not None:
            found[name] = pieces
        elif name != "last_hidden_state" or "pooler_output" not in _parts(output):
            return None
    return [_made(type(output), {name: pieces[place] for name, pieces in found.items()}) for place in range(count)]


def _pieces(value: Any, shares: Shares) -> list[Any] | None:
    """A tensor, or a list of tensors, cut into those of the conversations."""
    several = isinstance(value, (list, tuple)) and all(isinstance(each, Tensor) for each in value)
    if not several and not (isinstance(value, Tensor) and value.ndim):
        return None
    sizes = shares.sizes(len(value))
    if sizes is None:
        return None
    stops = list(accumulate(sizes))
    return [value[stop - size : stop] for size, stop in zip(sizes, stops, strict=True)]


def _layers(value: Any, shares: Shares) -> list[Any] | None:
    """A list of the features of each layer, cut by conversation."""
    layers = [_pieces(layer, shares) for layer in value]
    if any(layer is None for layer in layers):
        return None
    return [list(each) for each in zip(*(layer for layer in layers if layer is not None), strict=True)]


def joined(outputs: Sequence[Any]) -> Any | None:
    """Features of several inputs concatenated into a batch; None for an unknown type of output."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(list(outputs)) if all(each.shape[1:] == first.shape[1:] for each in outputs) else None
    if not isinstance(first, ModelOutput):
        return None
    found: dict[str, Any] = {}
    for name, value in _parts(first).items():
        if name in UNREAD:  # a cached output lacks them
            continue
        if any(name not in _parts(each) for each in outputs):  # told apart in one run, and not in another
            if name == "last_hidden_state":
                continue
            return None
        values = [_parts(each)[name] for each in outputs]
        if name == DEEPSTACK:
            layers = [_chained(layer) for layer in zip(*values, strict=True)]
            found[name] = layers
            if any(layer is None for layer in layers):
                return None
        elif name in ("pooler_output", "last_hidden_state"):
            found[name] = _chained(values)
            if found[name] is None and name == "pooler_output":
                return None
        elif isinstance(value, (Tensor, list, tuple)):
            return None
    return _made(type(first), found)


def _chained(values: Sequence[Any]) -> Any | None:
    first = values[0]
    if all(isinstance(each, Tensor) and each.shape[1:] == first.shape[1:] for each in values):
        return torch.cat(list(values))
    if all(isinstance(each, (list, tuple)) and all(isinstance(part, Tensor) for part in each) for each in values):
        return type(first)(part for each in values for part in each)
    return None


def copied(output: Any) -> Any:
    """The same tensors in new containers, without unread fields: a model may reassign the fields of its output."""
    if isinstance(output, ModelOutput):
        return _made(
            type(output), {name: copied(value) for name, value in _parts(output).items() if name not in UNREAD}
        )
    if type(output) in (list, tuple):
        return type(output)(copied(each) for each in output)
    return output


def owned(output: Any) -> Any:
    """The features in memory of their own: a view would hold those of the whole batch."""
    if isinstance(output, ModelOutput):
        return _made(type(output), {name: owned(value) for name, value in _parts(output).items()})
    if type(output) in (list, tuple):
        return type(output)(owned(each) for each in output)
    return output.clone() if isinstance(output, Tensor) else output


def _parts(output: ModelOutput) -> dict[str, Any]:
    """All attributes of an output: some models store features outside the fields of its class."""
    return {name: value for name, value in vars(output).items() if value is not None}


def _made(kind: type[ModelOutput], parts: Mapping[str, Any]) -> ModelOutput:
    own = set(inspect.signature(kind).parameters)
    made = kind(**{name: value for name, value in parts.items() if name in own})
    for name in parts.keys() - own:
        setattr(made, name, parts[name])
    return made


def bytes_of(held: Any) -> int:
    """Of all tensors in an output, in arguments by name, or in a list."""
    if isinstance(held, Tensor):
        return held.nelement() * held.element_size()
    if isinstance(held, ModelOutput):
        held = _parts(held)
    if isinstance(held, Mapping):
        return sum(bytes_of(each) for each in held.values())
    return sum(bytes_of(each) for each in held) if isinstance(held, (list, tuple)) else 0
