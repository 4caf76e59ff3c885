"""Adapters and engines that each break one promise: what the conformance checks must catch, and by which check."""

from __future__ import annotations

from broken_adapters import (
    batches,
    candidates,
    conversations,
    current_model,
    images,
    meaning,
    prefixes,
    rows,
    safety,
)
from broken_adapters.case import BROKEN
from broken_adapters.rows import RowsOffByOne

__all__ = [
    "BROKEN",
    "RowsOffByOne",
    "batches",
    "candidates",
    "conversations",
    "current_model",
    "images",
    "meaning",
    "prefixes",
    "rows",
    "safety",
]
