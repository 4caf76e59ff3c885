"""Hooks with which the checks read and replace the inputs and outputs of a model's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vlmprobe.adapter import Adapter
from vlmprobe.testing.report import CheckFailure
from vlmprobe.testing.subject import Subject

__all__ = ["changed_output", "decoder_input", "last_hidden", "noisy_embeddings", "replaced_output", "tensor_of"]


def tensor_of(output: Any) -> Tensor:
    """The hidden states in a module's output: a tensor, a tuple that begins with it, or a model output."""
    if isinstance(output, Tensor):
        return output
    return output.last_hidden_state if hasattr(output, "last_hidden_state") else output[0]


def _with_tensor(output: Any, states: Tensor) -> Any:
    """The same output with other hidden states in it."""
    if isinstance(output, Tensor):
        return states
    if isinstance(output, tuple):
        return (states, *output[1:])
    output.last_hidden_state = states
    return output


@contextmanager
def changed_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Apply ``change`` to the hidden states that a module returns."""
    handle = module.register_forward_hook(lambda _, __, output: _with_tensor(output, change(tensor_of(output))))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced_output(module: nn.Module, states: Tensor) -> Iterator[None]:
    """Make a module return these hidden states."""
    with changed_output(module, lambda _: states):
        yield


def last_hidden(adapter: Adapter, subject: Subject, inputs: dict[str, Any]) -> Tensor:
    """[N, S, H]: what the backbone passes to the head in the model's own forward."""
    seen: list[Tensor] = []
    handle = adapter.backbone.register_forward_hook(lambda _, __, output: seen.append(tensor_of(output)))
    try:
        subject.forward(inputs)
    finally:
        handle.remove()
    return seen[-1]


def decoder_input(subject: Subject, inputs: dict[str, Any]) -> Tensor:
    """[S, ..]: the input of the first decoder layer in the model's own forward of one prompt."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).detach())

    handle = subject.adapter.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    try:
        subject.forward(inputs)
    finally:
        handle.remove()
    length = inputs["input_ids"].shape[1]
    if len(seen) != 1 or length not in seen[0].shape:
        shapes = [tuple(each.shape) for each in seen]
        raise CheckFailure(
            f"the first of adapter.layers to take states of {length} positions, once", f"it took {shapes or 'nothing'}"
        )
    place = list(seen[0].shape).index(length)
    return seen[0].movedim(place, 0).reshape(length, -1)


@contextmanager
def noisy_embeddings(subject: Subject, ids: Tensor) -> Iterator[None]:
    """Add noise to every embedding lookup of ``ids`` [N, S].

    A position whose decoder input does not change holds no token embedding: the model replaced it. All embedding
    tables are included, for some models have separate ones for special tokens or for each layer.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(_: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor:
        if not given or not isinstance(given[0], Tensor) or given[0].shape != ids.shape:
            return output
        drawn = torch.randn(output.shape, generator=generator, dtype=torch.float32)
        return output + drawn.to(output) * output.float().std().to(output)

    tables = [module for module in subject.model.modules() if isinstance(module, nn.Embedding)]
    handles = [table.register_forward_hook(noise) for table in tables]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
