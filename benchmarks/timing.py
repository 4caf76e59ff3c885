"""Times of several variants of one task, taken in turns, so that whatever else the machine does hits all of them."""

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
        For each variant ``wall`` and ``cpu``, the latter of all threads. Where other processes want the same cores,
        wall time counts their turns too and CPU time does not. Variants in ``once`` run in the first round only.
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
    """Wait for an accelerator, where there is one."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def ratio(seconds: Mapping[str, Mapping[str, list[float]]], variant: str, over: str, clock: str) -> tuple[float, ...]:
    """Median, least and greatest ratio of two variants, each round with itself; one that ran once, over all rounds."""
    one, other = np.array(seconds[variant][clock]), np.array(seconds[over][clock])
    each = one / other if len(one) == len(other) else (one[:, None] / other[None, :]).ravel()
    return float(np.median(each)), float(each.min()), float(each.max())


def load() -> float:
    """How many processes wanted a core during the last minute."""
    return os.getloadavg()[0]
