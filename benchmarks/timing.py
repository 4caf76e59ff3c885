"""Interleaved timings of several variants of one task, so that background load affects all of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["alternate", "load", "ratio", "synchronise"]


def alternate(
    variants: Mapping[str, Callable[[], Any]], rounds: int, once: tuple[str, ...] = ()
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round of every variant: A B C, A B C, ...

    Returns:
        For each variant ``wall`` and ``cpu``, the latter over all threads. If other processes compete for the cores,
        wall time includes theirs and CPU time does not. Variants in ``once`` run in the first round only.
    """
    seconds: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in variants}
    for turn in range(rounds):
        for name, call in variants.items():
            if turn and name in once:
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            synchronise()
            seconds[name]["cpu"].append(time.process_time() - cpu)
            seconds[name]["wall"].append(time.perf_counter() - wall)
    return seconds


def synchronise() -> None:
    """Synchronise the accelerator, if there is one."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def ratio(seconds: Mapping[str, Mapping[str, list[float]]], variant: str, over: str, clock: str) -> tuple[float, ...]:
    """Median, min and max ratio of two variants, round by round; one that ran once is compared with all rounds."""
    one, other = np.array(seconds[variant][clock]), np.array(seconds[over][clock])
    each = one / other if len(one) == len(other) else (one[:, None] / other[None, :]).ravel()
    return float(np.median(each)), float(each.min()), float(each.max())


def load() -> float:
    """Load average of the last minute."""
    return os.getloadavg()[0]
