"""InternVL checkpoints in transformers' own format ("-hf": InternVL2.5, InternVL3)."""

from __future__ import annotations

import numpy as np

from vlmprobe.adapter import Adapter
from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.inputs.messages import Conversation

__all__ = ["InternVL"]


class InternVL(Adapter):
    """The tiles of an image follow each other with no token between them, so a run is split into tiles here."""

    model_types = ("internvl",)

    def spans(self, ids: np.ndarray, conversation: Conversation) -> tuple[ImageSpan, ...]:
        """One span for each tile, the thumbnail last."""
        size = self.processor.image_seq_length  # positions of one tile
        return tuple(
            ImageSpan(span.image, tile, start, start + size)
            for span in super().spans(ids, conversation)
            for tile, start in enumerate(range(span.start, span.stop, size))
        )
