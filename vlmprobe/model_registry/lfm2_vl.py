"""LFM2-VL and LFM3-VL: interleaved convolution and attention layers; the final norm has an unusual name."""

from __future__ import annotations

from torch import nn

from vlmprobe.adapter import Adapter

__all__ = ["Lfm2VL"]


class Lfm2VL(Adapter):
    """The decoder calls its last norm ``embedding_norm``."""

    model_types = ("lfm2_vl", "lfm3_vl")

    @property
    def final_norm(self) -> nn.Module:
        """The norm after the last decoder layer."""
        return self.outer.get_decoder().embedding_norm
