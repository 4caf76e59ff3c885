"""OmniLMM-12B checkpoints in their original format."""

from vlmprobe.model_registry.original.omnilmm.adapter import OmniLMM

__all__ = ["OmniLMM"]
