"""What image features, and hidden states, depend on besides the prompt: weights, switches and hooks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmprobe.adapter import Adapter
from vlmprobe.engines.local.model_state import changes_everywhere, changes_of, is_hooked
from vlmprobe.errors import AdapterError

__all__ = ["encoder_state", "prefix_state"]

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
ODD, OTHER = 0x9E3779B1, 0x85EBCA77  # so that the same numbers at other places give another sum
SMALL, WIDTH = 2**18, 1024  # elements: of a tensor that is read together with others, and of their common rows
PART = 2**16  # integers that are read at once, so that they stay in a processor's own cache
SAMPLE = 16384  # elements of a weight that are compared where not all are
DEVICES = ("cpu", "cuda", "mps")
PLAIN = (bool, int, float, str)
HOOKED = "a hook or a patched forward around the image encoder may act differently in every call"
OFFLOADED = "a change of an offloaded or quantised weight would not be noticed"


def encoder_state(adapter: Adapter, *, exact: bool = True) -> tuple[Any, ...] | str:
    """Equal for two calls between which nothing changed that image features depend on, or why that cannot be told.

    Compared are the contents of weights, however they were changed, the switches of PEFT adapters, the config, and the
    hooks that are called before a forward, which are taken to look only. Decoder layers and LM head are left out. What
    an offloaded weight holds, and what a forward hook or a patched forward will do in the next call, cannot be told.

    If not ``exact``, weights are compared as those of the decoder in :func:`decoder_state`, and no hook is taken to
    look only.
    """
    if changes_everywhere(before=not exact):
        return HOOKED
    if adapter.image_encoder is not None:
        owner, method = adapter.image_encoder
        if vars(owner).get(method) is not None:
            return HOOKED
    modules = list(adapter.model.named_modules())
    aside = set(_modules_aside(adapter))
    around = {part for name, module in modules if module in aside for part in _parents(name)}
    known: list[Any] = [_surroundings(), _configs(module for _, module in modules), changes_everywhere(before=True)]
    tensors: list[Tensor] = []
    for name, module in modules:
        if module in aside:
            continue
        hooks = changes_of(module)
        if hooks and not (exact and (name in around or not changes_of(module, before=False))):
            return HOOKED
        kept = _kept(module)
        known.append((name, kept.told, hooks))
        for value in kept.tensors:
            if value.device.type == "meta" or value.element_size() not in INTEGERS:
                return OFFLOADED
            known.append((value.shape, value.dtype, value.device, *(() if exact else _written(value))))
            tensors.append(value if exact else _sample(value))
    return known, _digests(tensors)


def prefix_state(adapter: Adapter, encoder: tuple[Any, ...] | str) -> tuple[Any, ...] | str:
    """The same of the states of a prompt: of the encoder, as :func:`encoder_state` tells it, and of the decoder.

    No hook is taken to look only: for one that is called with a beginning that has run already sees nothing of it.
    """
    if isinstance(encoder, str):
        return encoder
    if is_hooked(adapter.model):
        return HOOKED
    decoder = decoder_state(adapter)
    return decoder if isinstance(decoder, str) else (encoder, decoder)


def decoder_state(adapter: Adapter) -> tuple[Any, ...] | str:
    """The same of the decoder layers.

    Their weights, most of the model, are told apart by where they are, by how often they were written to, and by the
    contents of some of their elements, spread over each: a change through ``.data`` of single elements is not found.
    What hooks and patched forwards do in the next call cannot be told, nor whether those before a forward only look.
    """
    known: list[Any] = []
    samples: list[Tensor] = []
    for module in _modules_aside(adapter):
        if changes_of(module):
            return "a hook or a patched forward in a decoder layer may act differently in every call"
        kept = _kept(module)
        known.append(kept.told)
        for value in kept.tensors:
            if value.device.type == "meta" or value.element_size() not in INTEGERS:
                return OFFLOADED
            known.append((value.shape, value.dtype, value.device, *_written(value)))
            samples.append(_sample(value))
    return known, _digests(samples)


def _written(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor is, and how often it was written to, except through ``.data``, or in inference mode."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _sample(tensor: Tensor) -> Tensor:
    """Elements spread over a tensor, among them some of each row and column."""
    line = tensor.detach().reshape(-1)
    width = max(1, tensor.shape[-1]) if tensor.dim() else 1
    step = max(1, min(1 + len(line) // SAMPLE, width, len(line) // width))
    while math.gcd(step, width) > 1:  # else it would miss columns
        step -= 1
    return line[::step]


def _surroundings() -> tuple[Any, ...]:
    """What changes the numbers of every model: autocast, and the precision of products."""
    cast = tuple(torch.get_autocast_dtype(kind) for kind in DEVICES if torch.is_autocast_enabled(kind))
    return cast, torch.get_float32_matmul_precision()


def _configs(modules: Iterable[nn.Module]) -> list[Any]:
    """All configs that modules hold, and the attention functions that they name, which no ``to_dict`` tells."""
    found = {id(config): config for module in modules if (config := vars(module).get("config")) is not None}
    known: list[Any] = []
    for config in found.values():
        named = getattr(config, "_attn_implementation", None)
        known.append((_contents(config), named, ALL_ATTENTION_FUNCTIONS.get(named) if isinstance(named, str) else None))
    return known


def _contents(value: Any) -> Any:
    """A copy of what a config holds, and the configs in it: to compare, at a fifth of the cost of ``to_dict``."""
    if isinstance(value, PLAIN) or value is None:
        return value
    if isinstance(value, dict):
        return {key: _contents(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_contents(each) for each in value]
    if hasattr(value, "to_dict"):
        return type(value), _contents(vars(value))
    return repr(value)


@dataclass(frozen=True)
class _Kept:
    """What a module computes with: its tensors, and all else as it is now."""

    told: tuple[Any, ...]
    tensors: list[Tensor]


def _kept(module: nn.Module) -> _Kept:
    """Of one module, without those in it.

    Parameters, buffers, tensors that are plain attributes; its class, the forward of that, functions that it was given;
    plain attributes: which adapters are active, merged or disabled, how they are scaled.
    """
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    given: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif name.startswith("_"):
            continue
        elif callable(value):
            given[name] = value
        elif _is_plain(value):
            plain[name] = value
    for name in ("active_adapters", "disable_adapters"):  # of PEFT layers
        if hasattr(type(module), name) and _is_plain(value := getattr(module, name)):
            plain[name] = value
    return _Kept((type(module), type(module).forward, given, repr(plain), [*tensors]), [*tensors.values()])


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
    if table.is_contiguous() and table.shape[1] * table.element_size() % 8 == 0:
        columns, rows = _sums(table.view(torch.int64))  # 10 times as fast as to widen the elements
    else:
        columns, rows = table.sum(0, dtype=torch.int64), table.sum(1, dtype=torch.int64)
    return _placed(columns) + OTHER * _placed(rows)


def _sums(table: Tensor) -> tuple[Tensor, Tensor]:
    """Of integers that hold several elements each: the sums of columns and rows, where the upper half counts twice.

    A sum loses what exceeds its 64 bits, so of the uppermost element it would tell little: of two signs, nothing.
    """
    columns, rows = table.new_zeros(table.shape[1]), []
    size = PART if table.device.type == "cpu" else 256 * PART
    for part in table.split(max(1, size // table.shape[1])):
        both = (part >> 31).add_(part)
        columns += both.sum(0)
        rows.append(both.sum(1))
    return columns, torch.cat(rows)


def _placed(numbers: Tensor) -> Tensor:
    places = torch.arange(1, len(numbers) + 1, device=numbers.device)
    return (numbers * (places * ODD)).sum()
