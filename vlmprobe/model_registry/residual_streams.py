"""Decoders with several residual streams, merged before the head: Gemma 3n, GLM-5, Hy 4 and Qwen4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlmprobe.adapter import Adapter

__all__ = ["Gemma3n", "Glm5Next", "HyV4VL", "Qwen4Exp"]


class Gemma3n(Adapter):
    """Gemma 3n: four residual streams (AltUp), merged before the head.

    The last three are projected, rescaled to the RMS of the first, and averaged with it.
    """

    model_types = ("gemma3n",)

    @property
    def final_norm(self) -> nn.Module:
        """From the streams [4, N, S, H] after the last layer to the input of the head [N, S, H]."""
        return _MeanOfStreams(self.outer.get_decoder())


class Glm5Next(Adapter):
    """GLM-5: hyper-connections, whose residual streams are averaged before the norm."""

    model_types = ("glm5_next",)

    @property
    def final_norm(self) -> nn.Module:
        """From the streams [N, S, streams, H] after the last layer to the input of the head [N, S, H]."""
        decoder = self.outer.get_decoder()
        return nn.Sequential(decoder.hc_head, decoder.norm)


class HyV4VL(Glm5Next):
    """Hy 4: hyper-connections, whose residual streams are summed, each weighted by a gate, before the norm."""

    model_types = ("hy_v4_vl",)


class Qwen4Exp(Adapter):
    """Qwen4: hyper-connections, whose residual streams a gated mixer merges; it contains the norm."""

    model_types = ("qwen4_exp",)

    @property
    def final_norm(self) -> nn.Module:
        """From the streams [N, S, streams x H] after the last layer to the input of the head [N, S, H]."""
        return self.outer.get_decoder().hyper_connection_mixer


class _MeanOfStreams(nn.Module):
    """What Gemma 3n's decoder does after its last layer, with the decoder's own projections and norm."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.norm = decoder.norm
        self.projections: nn.ModuleList = decoder.altup_unembed_projections

    def forward(self, streams: Tensor) -> Tensor:
        first = streams[0]
        size = first.square().mean(dim=-1, keepdim=True).sqrt()
        merged = [first]
        for stream, project in zip(streams[1:], self.projections, strict=True):
            projected = project(stream).to(first.dtype)
            own = projected.square().mean(dim=-1, keepdim=True).clamp(min=1e-5).sqrt()
            merged.append(projected * size / own)
        return self.norm(torch.stack(merged).mean(dim=0))
