"""Blocks shared by the vision transformers of the original families."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

__all__ = ["ACTIVATIONS", "FeedForward"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
}


class FeedForward(nn.Module):
    """Two linear layers, from ``width`` to ``inner`` and back."""

    def __init__(self, width: int, inner: int, activation: str) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Position-wise: [.., width] to [.., width]."""
        return self.fc2(self.act(self.fc1(hidden)))
