"""The model's own operation counts, from its sizes: a lower bound on the cost of a task."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.model import SIZES

__all__ = ["Counts", "counts"]


@dataclass(frozen=True)
class Counts:
    """Operations (two per multiply-add) of the parts of a model."""

    tower: float  # for one tile
    position: float  # of the language model, for one position, excluding attention scores
    row: float  # of the head, for one row
    image: int  # positions that a tile takes in the language model

    def prefill(self, text: int, tiles: int = 0) -> float:
        """Operations of a prompt, with the head at its last position only."""
        return tiles * self.tower + (text + tiles * self.image) * self.position + self.row


def counts(size: str) -> Counts:
    """Counts for a size of :data:`benchmarks.model.SIZES`."""
    wanted = SIZES[size]
    vision, text = wanted["vision"], wanted["text"]
    patches = (wanted["side"] // vision["patch_size"][0]) ** 2 + 1
    width, hidden = vision["hidden_size"], text["hidden_size"]
    layer = 4 * width**2 + 2 * width * vision["intermediate_size"]
    tower = 2 * patches * vision["num_hidden_layers"] * (layer + 2 * patches * width)
    image = (patches - 1) // 4
    projector = 2 * image * (4 * width * hidden + hidden**2)
    keys = hidden * text["num_key_value_heads"] // text["num_attention_heads"]
    block = 2 * hidden**2 + 2 * hidden * keys + 3 * hidden * text["intermediate_size"]
    return Counts(tower + projector, 2 * text["num_hidden_layers"] * block, 2 * hidden * wanted["vocabulary"], image)
