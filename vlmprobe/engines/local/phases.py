"""Where the time of one run of a model goes: the vision tower, the prompts, the answers.

Moments are taken where the run is looked at in any case, and nothing waits for the device: on CUDA they are events,
which are read once the run has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["Moments", "phases"]


class Moments:
    """Spans of time of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: Any = None
        self._spans: list[tuple[Any, Any]] = []

    def begin(self) -> None:
        """A span begins, unless one has begun already."""
        if self._begun is None:
            self._begun = self._now()

    def end(self) -> None:
        """The span ends, if one has begun."""
        if self._begun is not None:
            self._spans.append((self._begun, self._now()))
            self._begun = None

    @contextmanager
    def span(self) -> Iterator[None]:
        """A span, as long as it is entered."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    @property
    def seconds(self) -> float:
        """Of all spans; on CUDA it waits for their ends."""
        if self._device.type != "cuda":
            return float(sum(end - begun for begun, end in self._spans))
        total = 0.0
        for begun, end in self._spans:
            end.synchronize()
            total += begun.elapsed_time(end) / 1000
        return total

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def phases(device: torch.device, whole: float, decoding: Moments, images: bool, features: Any) -> dict[str, float]:
    """Seconds of the phases of a run, which sum to ``whole``; none where the device computes later than it is told to.

    Args:
        device: of the model.
        whole: seconds of the run.
        decoding: from the last state of the prompts to the end.
        images: whether the prompts have any.
        features: a ``Reuse`` of the images; None where their encoder cannot be told from the rest of the prompts.
    """
    if device.type not in ("cpu", "cuda"):
        return {}
    decode = min(decoding.seconds, whole)
    if not images:
        return {"prefill_s": whole - decode, "decode_s": decode}
    if features is None or features.spent is None:
        return {"vision_and_prefill_s": whole - decode, "decode_s": decode}
    seen = min(features.spent.seconds, whole - decode)
    return {"vision_s": seen, "prefill_s": whole - decode - seen, "decode_s": decode}
