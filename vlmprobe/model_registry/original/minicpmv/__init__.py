"""MiniCPM-V checkpoints in their original format: 2.0, Llama3-V 2.5, 2.6, 4.0 and 4.5."""

from vlmprobe.model_registry.original.minicpmv.adapter import MiniCPMV

__all__ = ["MiniCPMV"]
