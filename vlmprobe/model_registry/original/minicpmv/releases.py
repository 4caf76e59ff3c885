"""The releases of MiniCPM-V and their differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmprobe.errors import CheckpointError

__all__ = ["RELEASES", "ImageRules", "Release", "release_of"]


@dataclass(frozen=True)
class Release:
    """Behaviour of one release's code that its config does not declare."""

    version: str
    language: str  # model type of the language model in transformers
    ends: tuple[str, ...]  # tokens at which the original chat() ends an answer
    strips: bool = True  # slices as strips of patches; else each as a separate image
    patch_mask: bool = True  # padding patches are masked and positions are two-dimensional
    slice_tag: str = "slice"  # how a slice is enclosed in the prompt
    hides_first_id: bool = True  # chat() masks every token with id 0 from attention
    template: bool = True  # the tokenizer has a chat template


RELEASES: Mapping[str, Release] = {
    release.version: release
    for release in (
        Release(
            "2.0",
            "granite",  # MiniCPM's architecture under another name: Llama with a factor on each sublayer's output
            ("</s>",),
            strips=False,
            patch_mask=False,
            slice_tag="image",
            hides_first_id=False,
            template=False,
        ),
        Release(
            "2.5",
            "llama",
            ("<|end_of_text|>", "<|eot_id|>"),
            # The original marks whole rows of its mask, so padding is attended to and positions are one-dimensional.
            # The released weights were trained with that.
            patch_mask=False,
            slice_tag="image",
            hides_first_id=False,
        ),
        Release("2.6", "qwen2", ("<|im_end|>", "<|endoftext|>")),
        Release("4.0", "llama", ("<|im_end|>", "</s>")),
        Release("4.5", "qwen3", ("<|im_end|>", "<|endoftext|>")),
    )
}


@dataclass(frozen=True)
class ImageRules:
    """How images become slices, pixels and placeholders."""

    max_slices: int
    resolution: int
    patch: int
    queries: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    numbered: bool  # images are numbered in the prompt


def release_of(config: Mapping[str, Any]) -> Release:
    """The release that a ``config.json`` belongs to.

    Raises:
        CheckpointError: for a version that is not supported.
    """
    version = config.get("version")
    if version is None and {"vision_encoder", "scale_emb", "scale_resolution"} <= config.keys():
        return RELEASES["2.0"]  # written before the field existed
    try:
        return RELEASES[f"{float(str(version)):.1f}"]  # a string in some releases, a number in others
    except (KeyError, ValueError):
        raise CheckpointError(
            f"MiniCPM-V version {version!r} is not supported; supported in the original format are "
            f"{', '.join(RELEASES)}. Versions 4.6 and later have checkpoints native to transformers."
        ) from None
