"""MiniCPM-V and MiniCPM-o checkpoints in their original format: V 1.0, 2.0, 2.5, 2.6, 4.0 and 4.5; o 2.6 and 4.5."""

from vlmprobe.model_registry.original.minicpmv.adapter import MiniCPMV

__all__ = ["MiniCPMV"]
