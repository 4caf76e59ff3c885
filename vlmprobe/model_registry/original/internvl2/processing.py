"""The prompt of a conversation for InternVL2, and the tiles of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from vlmprobe.errors import CheckpointError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.model_registry.original.fused_inputs import ImageTiles
from vlmprobe.model_registry.original.internvl2.prompt import Template, find_template, write_prompt
from vlmprobe.model_registry.original.internvl2.releases import system_text
from vlmprobe.model_registry.original.internvl2.tiling import tile_image

__all__ = ["InternVL2Processor"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class InternVL2Processor:
    """The preprocessing of the original ``chat()`` and its ``load_image``, configured by config.json."""

    tokenizer: Any
    template: Template
    system: str  # default system text
    size: int  # side of a tile, pixels
    positions: int  # of a tile in the sequence
    dynamic: bool  # whether images are tiled at all
    min_tiles: int
    max_tiles: int  # per image, its thumbnail not counted
    thumbnail: bool
    pad_to_square: bool

    @classmethod
    def build(
        cls, original: Mapping[str, Any], tokenizer: Any, *, size: int, positions: int, folder: Path | None = None
    ) -> InternVL2Processor:
        """Read the fields of an original config.json; absent ones have the original's defaults.

        Args:
            original: the object in config.json.
            tokenizer: of the checkpoint.
            size: side of a tile, pixels.
            positions: of a tile in the sequence.
            folder: of the checkpoint, where its default system text may stand.

        Raises:
            CheckpointError: an unknown template, or an empty range of tiles.
        """
        template = find_template(original.get("template"))
        fewest, most = int(original.get("min_dynamic_patch", 1)), int(original.get("max_dynamic_patch", 6))
        if not 1 <= fewest <= most:
            raise CheckpointError(f"config.json asks for at least {fewest} and at most {most} tiles.")
        return cls(
            tokenizer=tokenizer,
            template=template,
            system=system_text(original, folder),
            size=size,
            positions=positions,
            dynamic=bool(original.get("dynamic_image_size", False)),
            min_tiles=fewest,
            max_tiles=most,
            thumbnail=bool(original.get("use_thumbnail", False)),
            pad_to_square=bool(original.get("pad2square", False)),
        )

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """Tiles of an RGB image, thumbnail last: float32 [tiles, 3, size, size], ImageNet-normalised."""
        if self.dynamic:
            tiles = tile_image(
                image, min_tiles=self.min_tiles, max_tiles=self.max_tiles, size=self.size, thumbnail=self.thumbnail
            )
        else:
            whole = _squared(image) if self.pad_to_square else image
            tiles = [whole.resize((self.size, self.size), Image.Resampling.BICUBIC)]
        return torch.stack([normalize(to_tensor(tile), IMAGENET_MEAN, IMAGENET_STD) for tile in tiles])

    def tiles(self, image: Image.Image) -> ImageTiles:
        """The tiles of an RGB image, with their positions in the prompt."""
        pixels = self.pixels(image)
        return ImageTiles(pixels=pixels, positions=[self.positions] * len(pixels))

    def write(self, conversation: Conversation, contexts: Sequence[int]) -> str:
        """The text of a conversation; ``contexts`` are the positions that each image takes."""
        return write_prompt(conversation, self.template, self.system, contexts)


def _squared(image: Image.Image) -> Image.Image:
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(each * 255) for each in IMAGENET_MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square
