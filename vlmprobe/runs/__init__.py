"""Runs over data sets: every row asked once, whatever ends the process, and what was found."""

from __future__ import annotations

from vlmprobe.runs.on_ray import OnRay
from vlmprobe.runs.opened import OpenedRun, open_run
from vlmprobe.runs.running import Summary, run

__all__ = ["OnRay", "OpenedRun", "Summary", "open_run", "run"]
