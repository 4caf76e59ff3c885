"""The prompts that this thread runs on a model right now, for what acts inside the model and is given parts of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from vlmprobe.adapter import Adapter

__all__ = ["positions_of_run", "rows_of_run", "running"]

_RUN = threading.local()


@contextmanager
def running(inputs: Mapping[str, Any]) -> Iterator[None]:
    """Let the functions below tell of these model inputs of N prompts; runs may nest."""
    held = getattr(_RUN, "inputs", None)
    _RUN.inputs = inputs
    try:
        yield
    finally:
        _RUN.inputs = held


def rows_of_run() -> int:
    """N; 0 if no run of this thread is known."""
    inputs = getattr(_RUN, "inputs", None)
    return 0 if inputs is None else len(inputs["input_ids"])


def positions_of_run(adapter: Adapter) -> list[int]:
    """[N]: how many positions of each prompt the model fills with image features, as far as its inputs tell."""
    inputs: Mapping[str, Any] = _RUN.inputs
    if (index := inputs.get("image_index")) is not None:  # of the original formats: 0 for text
        filled = index > 0
    else:
        ids = inputs["input_ids"]
        filled = torch.isin(ids, torch.tensor(sorted(adapter.image_ids), dtype=ids.dtype, device=ids.device))
    return [int(each) for each in filled.sum(dim=1)]
