"""PaliGemma: bidirectional attention over the prompt, causal over the answer; type ids mark which is which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vlmprobe.adapter import Adapter

__all__ = ["PaliGemma"]


class PaliGemma(Adapter):
    """Tokens after the prompt must be marked as answer, or the prompt would attend to them."""

    model_types = ("paligemma",)

    def extend(self, inputs: Mapping[str, Any], ids: torch.Tensor, drop: int = 0) -> dict[str, Any]:
        """As the base class, with new positions marked as answer (type 1) rather than prompt (type 0)."""
        grown = super().extend(inputs, ids, drop)
        if "token_type_ids" in grown:
            grown["token_type_ids"][:, -ids.shape[1] :] = 1
        return grown
