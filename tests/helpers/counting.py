"""How often the expensive parts of a model run: pictures that a vision tower takes, prompts that a decoder prefills."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder")


@dataclass
class Count:
    pictures: list[int] = field(default_factory=list)  # values that entered the vision tower, run by run
    positions: list[tuple[int, int]] = field(default_factory=list)  # (prompts, positions) that entered the decoder

    @property
    def prefills(self) -> int:
        """How many prompts were run from their beginning."""
        return sum(prompts for prompts, positions in self.positions if positions > 1)


@contextmanager
def counting(model: torch.nn.Module, layers: torch.nn.ModuleList) -> Iterator[Count]:
    count = Count()
    found = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in TOWERS]
    tower = found[0]

    def looked(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pixels = args[0] if args else next(value for value in kwargs.values() if isinstance(value, torch.Tensor))
        count.pictures.append(pixels.numel())

    def ran(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        count.positions.append(tuple(states.shape[:2]))

    handles = [
        tower.register_forward_pre_hook(looked, with_kwargs=True),
        layers[0].register_forward_pre_hook(ran, with_kwargs=True),
    ]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()
