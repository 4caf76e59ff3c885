"""Ovis2: besides its features an image has indicator tokens, whose embeddings come from the vision side too."""

from __future__ import annotations

from vlmprobe.adapter import Adapter

__all__ = ["Ovis2"]


class Ovis2(Adapter):
    """Indicators mark where an image, its columns and its rows begin and end; none of them is text."""

    model_types = ("ovis2",)

    @property
    def image_ids(self) -> frozenset[int]:
        """The feature placeholder and the indicators."""
        return super().image_ids | frozenset(self.model.config.visual_indicator_token_ids)
