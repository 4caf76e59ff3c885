"""One call on a model at a time: its lock, its modes, and the state that a forward leaves on its modules."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from vlmprobe.adapter import Adapter
from vlmprobe.engines.local.peft_state import active_adapters
from vlmprobe.errors import AdapterError

__all__ = [
    "STATE",
    "alone",
    "changes_everywhere",
    "changes_of",
    "device_of",
    "is_hooked",
    "sees_prompts",
    "state_of",
    "to_model",
]

# Hooks, and state that models keep (rope deltas), belong to one call at a time, whichever probe holds the model.
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
# Attributes that a forward writes and a later one reads, all None in a new model; a test looks for others.
STATE = ("rope_deltas",)
THEIRS = ("transformers.", "accelerate.")


@contextmanager
def alone(adapter: Adapter) -> Iterator[None]:
    """One call on the model at a time, dropout and gradients off, in the state of a model that has not run yet.

    Afterwards every module has the mode and the state that it had. Calls may nest: each starts from fresh state.

    Raises:
        CapabilityError: if a PEFT adapter is active that a probe cannot follow.
    """
    with _LOCKS.setdefault(adapter.model, threading.RLock()):
        active_adapters(adapter)
        modules = list((adapter.peft or adapter.model).modules())
        training = [module for module in modules if module.training]
        for module in training:
            module.training = False
        held = state_of(*modules)
        for module, name, _ in held:
            setattr(module, name, None)
        try:
            with torch.no_grad(), _first_frequencies(modules):
                yield
        finally:
            for module, name, value in held:
                setattr(module, name, value)
            for module in training:
                module.training = True


def state_of(*modules: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """The attributes of these modules that a forward writes and a later one reads: module, name, value."""
    return [(module, name, vars(module)[name]) for module in modules for name in STATE if name in vars(module)]


@contextmanager
def _first_frequencies(modules: list[nn.Module]) -> Iterator[None]:
    """Dynamic RoPE keeps the frequencies of the longest sequence so far: here it starts from those of the config."""
    held: list[tuple[nn.Module, dict[str, Any]]] = []
    for module in modules:
        if "dynamic" not in str(getattr(module, "rope_type", "")):
            continue
        named = {**vars(module), **dict(module.named_buffers(recurse=False))}
        kept = {name: value for name, value in named.items() if name.endswith(("inv_freq", "max_seq_len_cached"))}
        held.append((module, {n: v.clone() if isinstance(v, Tensor) else v for n, v in kept.items()}))
        for name in kept:
            if (first := f"{name.removesuffix('inv_freq')}original_inv_freq") in named and name != first:
                setattr(module, name, named[first].clone())
            elif name.endswith("max_seq_len_cached") and "original_max_seq_len" in named:
                setattr(module, name, named["original_max_seq_len"])
    try:
        yield
    finally:
        for module, kept in held:
            for name, value in kept.items():
                setattr(module, name, value)


def changes_of(module: nn.Module, *, before: bool = True) -> list[Any]:
    """Hooks and patched forward of a module, without those of transformers and accelerate, which change no number.

    ``before`` says whether hooks that are called before the forward count.
    """
    found = [*module._forward_hooks.values(), vars(module).get("forward")]
    return _of_others([*found, *(module._forward_pre_hooks.values() if before else ())])


def is_hooked(model: nn.Module) -> bool:
    """Whether a hook or a patched forward of somebody else is anywhere in a model, or on all modules."""
    return bool(changes_everywhere()) or any(changes_of(module) for module in model.modules())


def sees_prompts(adapter: Adapter) -> bool:
    """The same of what runs along a prompt: the decoder, what it is in, and the head, not what encodes images."""
    modules = dict(adapter.model.named_modules())
    try:
        layers, head = adapter.layers, adapter.head
    except (AdapterError, AttributeError):  # an adapter that does not locate them
        return is_hooked(adapter.model)
    name = next((name for name, module in modules.items() if module is layers), None)
    if name is None:
        return is_hooked(adapter.model)
    above = name.split(".")[:-1]
    around = [modules[".".join(above[:length])] for length in range(len(above))]
    along = [*around, *modules[".".join(above)].modules(), *head.modules()]
    return bool(changes_everywhere()) or any(changes_of(module) for module in along)


def changes_everywhere(*, before: bool = True) -> list[Any]:
    """The same of the hooks that torch calls for all modules."""
    every = nn.modules.module
    found = [*every._global_forward_hooks.values()]
    return _of_others([*found, *(every._global_forward_pre_hooks.values() if before else ())])


def _of_others(calls: list[Any]) -> list[Any]:
    return [each for each in calls if each is not None and not _source(each).startswith(THEIRS)]


def _source(call: Any) -> str:
    """The module that a function was written in, which a wrapped one does not say of itself."""
    inner = getattr(call, "func", call)  # of a partial
    return str(getattr(getattr(inner, "__func__", inner), "__globals__", {}).get("__name__", ""))


def device_of(model: nn.Module) -> torch.device:
    """The device that a model takes its inputs on: that of its first weights in memory, for some may be offloaded."""
    return next((each.device for each in model.parameters() if each.device.type != "meta"), torch.device("cpu"))


def to_model(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs on the model's device, floating-point tensors in its dtype."""
    device = device_of(model)
    return {
        key: value.to(device, model.dtype if value.is_floating_point() else None)
        if isinstance(value, Tensor)
        else value
        for key, value in inputs.items()
    }
