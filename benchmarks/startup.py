"""Time for a fresh process to import vlmprobe, and to show its help."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["COMMANDS", "startup"]

COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import vlmprobe": [sys.executable, "-c", "import vlmprobe"],
    "vlmprobe --help": [str(Path(sys.executable).with_name("vlmprobe")), "--help"],
}


def startup(runs: int = 15) -> dict[str, dict[str, list[float]]]:
    """Seconds of every run, wall and CPU, with the commands interleaved; the first run of each is a warm-up."""
    found: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in COMMANDS}
    for turn in range(runs + 1):
        for name, command in COMMANDS.items():
            before, started = _children(), time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            wall = time.perf_counter() - started
            if turn:
                found[name]["wall"].append(wall)
                found[name]["cpu"].append(_children() - before)
    return found


def _children() -> float:
    times: Any = os.times()
    return times.children_user + times.children_system
