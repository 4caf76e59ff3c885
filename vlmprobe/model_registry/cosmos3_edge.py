"""Cosmos 3 Edge: its processor returns what the model needs only when asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmprobe.adapter import Adapter

__all__ = ["Cosmos3Edge"]


class Cosmos3Edge(Adapter):
    """Positions of pictures are counted from type ids, which the processor leaves out by default."""

    model_types = ("cosmos3_edge",)

    processor_options: Mapping[str, Any] = {"return_mm_token_type_ids": True}
