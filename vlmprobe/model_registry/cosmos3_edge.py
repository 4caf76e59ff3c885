"""Cosmos 3 Edge: token type ids have to be requested from its processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmprobe.adapter import Adapter

__all__ = ["Cosmos3Edge"]


class Cosmos3Edge(Adapter):
    """The model derives image positions from token type ids, which the processor omits by default."""

    model_types = ("cosmos3_edge",)

    processor_options: Mapping[str, Any] = {"return_mm_token_type_ids": True}
