"""Peak memory of one call in this process: on the CPU, or on the accelerator that holds the model."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["EXACT", "peak"]

# With these settings freed memory is returned to the system immediately, so that RSS equals what is in use.
EXACT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STATUS = Path("/proc/self/status")


def peak(call: Callable[[], Any], device: str = "cpu") -> int:
    """Peak memory during the call, in bytes above the memory held before it."""
    import torch

    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    if not STATUS.exists():
        raise SystemExit("Peak memory of a process is read from /proc, which this system does not have.")
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak RSS
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
