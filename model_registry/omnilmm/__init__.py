"""OmniLMM-12B checkpoints in their original format."""

from model_registry.omnilmm.adapter import OmniLMM

__all__ = ["OmniLMM"]
