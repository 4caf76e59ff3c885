"""LFM2-VL and LFM3-VL: convolutions among attention layers; the final norm has a name of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vlmprobe.adapter import Adapter

__all__ = ["Lfm2VL"]


class Lfm2VL(Adapter):
    """The decoder calls its last norm ``embedding_norm``."""

    @classmethod
    def handles(cls, config: Mapping[str, Any]) -> bool:
        """Whether the checkpoint is an LFM2-VL or LFM3-VL one."""
        return config.get("model_type") in ("lfm2_vl", "lfm3_vl")

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last decoder layer."""
        return self.outer.get_decoder().embedding_norm
