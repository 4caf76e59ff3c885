"""Emu3, HunYuan-VL, MiniMax M3-VL and Perception LM: their numbers depend on what else is in the batch."""

from __future__ import annotations

from vlmprobe.adapter import Adapter, Capabilities

__all__ = ["REASONS", "OneByOne"]

REASONS = {  # model_type -> why, with the largest change of a logit on a tiny checkpoint
    "emu3": "images are padded to the largest of the batch, which changes the codes of the others (1.9)",
    "hunyuan_vl": "positions count the images of the whole batch instead of each prompt's (0.02)",
    "minimax_m3_vl": "sparse attention compares position ids, which skip padding, to indices that count it (8.6)",
    "perception_lm": "the processor cannot stack images that were split into different numbers of tiles",
}


class OneByOne(Adapter):
    """The conventions of transformers, without batching."""

    model_types = tuple(REASONS)

    capabilities = Capabilities(batching=False)
