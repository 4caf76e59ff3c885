"""Inkling 2: what enters the head is mixed from the states at several depths, not the last layer's alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vlmprobe.adapter import Adapter

__all__ = ["Inkling2"]


class Inkling2(Adapter):
    """Attention over the block boundaries' states, after the last decoder layer, counts as one more layer."""

    @classmethod
    def handles(cls, config: Mapping[str, Any]) -> bool:
        """Whether the checkpoint is an Inkling 2 one."""
        return config.get("model_type") == "inkling2"

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers, then the module that mixes the states which they left."""
        decoder = self.outer.get_decoder()
        return nn.ModuleList([*decoder.layers, decoder.final_input])
