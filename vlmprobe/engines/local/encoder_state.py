"""What image features, and hidden states, depend on besides the prompt: weights, switches and hooks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vlmprobe.adapter import Adapter
from vlmprobe.engines.local.model_state import changes_of
from vlmprobe.errors import AdapterError

__all__ = ["decoder_state", "encoder_state"]

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
ODD, OTHER = 0x9E3779B1, 0x85EBCA77  # so that the same numbers at other places give another sum
SMALL, WIDTH = 2**18, 1024  # elements: of a tensor that is read together with others, and of their common rows
SAMPLE = 16384  # elements of a weight that are compared where not all are
PLAIN = (bool, int, float, str)
HOOKED = "a hook or a patched forward around the image encoder may act differently in every call"
OFFLOADED = "a change of an offloaded or quantised weight would not be noticed"


def encoder_state(adapter: Adapter, *, exact: bool = True) -> tuple[Any, ...] | str:
    """Equal for two calls between which nothing changed that image features depend on, or why that cannot be told.

    Compared are the contents of weights, however they were changed, the switches of PEFT adapters, the config, and the
    hooks that are called before a forward, which are taken to look only. Decoder layers and LM head are left out. What
    an offloaded weight holds, and what a forward hook or a patched forward will do in the next call, cannot be told.

    If not ``exact``, weights are compared as those of the decoder in :func:`decoder_state`.
    """
    aside = set(_modules_aside(adapter))
    around = {part for name, module in adapter.model.named_modules() if module in aside for part in _parents(name)}
    if adapter.image_encoder is not None:
        owner, method = adapter.image_encoder
        if vars(owner).get(method) is not None:
            return HOOKED
    known: list[Any] = [repr(adapter.model.config.to_dict())]
    tensors: list[Tensor] = []
    for name, module in adapter.model.named_modules():
        if module in aside:
            continue
        known.append((name, type(module), _switches(module), changes_of(module)))
        if name not in around and changes_of(module, before=False):
            return HOOKED
        for key, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if value.device.type == "meta" or value.element_size() not in INTEGERS:
                return OFFLOADED
            known.append((key, value.shape, value.dtype, value.device, *(() if exact else _written(value))))
            tensors.append(value if exact else _sample(value))
    return known, _digests(tensors)


def decoder_state(adapter: Adapter) -> tuple[Any, ...] | str:
    """The same of the decoder layers.

    Their weights, most of the model, are told apart by where they are, by how often they were written to, and by the
    contents of some of their elements, spread over each: a change through ``.data`` of single elements is not found.
    """
    known: list[Any] = []
    samples: list[Tensor] = []
    for module in _modules_aside(adapter):
        if changes_of(module, before=False):
            return "a hook or a patched forward in a decoder layer may act differently in every call"
        known.append((type(module), _switches(module), changes_of(module)))
        for key, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if value.device.type == "meta" or value.element_size() not in INTEGERS:
                return OFFLOADED
            known.append((key, value.shape, value.dtype, value.device, *_written(value)))
            samples.append(_sample(value))
    return known, _digests(samples)


def _written(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor is, and how often it was written to, except through ``.data``."""
    return tensor.data_ptr(), tensor._version


def _sample(tensor: Tensor) -> Tensor:
    """Elements spread over a tensor, among them some of each row and column."""
    line = tensor.detach().reshape(-1)
    return line[:: 1 + 2 * (len(line) // (2 * SAMPLE))]  # an odd step meets every column


def _modules_aside(adapter: Adapter) -> Iterator[nn.Module]:
    try:
        layers: Iterable[nn.Module] = adapter.layers
    except (AdapterError, AttributeError):  # an adapter that does not locate them: they are compared like the rest
        layers = ()
    for layer in layers:
        yield from layer.modules()
    yield from adapter.head.modules()


def _parents(name: str) -> Iterator[str]:
    """Names of the modules that a module is in: "a" and "" of "a.b"."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def _switches(module: nn.Module) -> str:
    """Plain attributes: which adapters are active, merged or disabled, how they are scaled."""
    named = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    named |= {name: getattr(module, name, None) for name in ("active_adapters", "disable_adapters")}  # of PEFT layers
    return repr({name: value for name, value in named.items() if _is_plain(value)})


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(each) for each in (*value, *value.values()))
    if isinstance(value, (list, tuple, set)):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, PLAIN)


def _digests(tensors: list[Tensor]) -> list[int]:
    """Numbers that depend on every element of the tensors and on its place; exact, in integers.

    Small tensors are read together, for each operation costs more than their content.
    """
    small: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    found: dict[torch.device, list[Tensor]] = {}
    for each in tensors:
        numbers = _integers(each.detach())
        if numbers.numel() < SMALL:
            small.setdefault((numbers.dtype, numbers.device), []).append(numbers.flatten())
        else:
            found.setdefault(each.device, []).append(_digest(numbers.reshape(-1, numbers.shape[-1])))
    for (_, device), several in small.items():
        line = torch.cat(several)
        line = torch.nn.functional.pad(line, (0, -len(line) % WIDTH))
        found.setdefault(device, []).append(_digest(line.view(-1, WIDTH)))
    return [number for sums in found.values() for number in torch.stack(sums).tolist()]


def _integers(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8)
    return tensor if tensor.dtype in INTEGERS.values() else tensor.view(INTEGERS[tensor.element_size()])


def _digest(table: Tensor) -> Tensor:
    """Of integers [R, C]: the sums of columns and rows, each weighed by its place."""
    return _placed(table.sum(0, dtype=torch.int64)) + OTHER * _placed(table.sum(1, dtype=torch.int64))


def _placed(numbers: Tensor) -> Tensor:
    places = torch.arange(1, len(numbers) + 1, device=numbers.device)
    return (numbers * (places * ODD)).sum()
