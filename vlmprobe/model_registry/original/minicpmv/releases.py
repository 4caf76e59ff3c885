"""The releases of MiniCPM-V and MiniCPM-o, and their differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlmprobe.errors import CheckpointError

__all__ = ["RELEASES", "ImageRules", "Release", "is_omni", "release_of"]

OMNI = "o "  # begins the versions of MiniCPM-o here, which its config.json numbers like those of MiniCPM-V


@dataclass(frozen=True)
class Release:
    """Behaviour of one release's code that its config does not declare."""

    version: str
    language: str  # model type of the language model in transformers
    ends: tuple[str, ...]  # tokens at which the original chat() ends an answer
    strips: bool = True  # slices as strips of patches; else each as a separate image
    patch_mask: bool = True  # padding patches are masked and positions are two-dimensional
    square: bool = False  # an image is resized to a square, whatever its shape, and never cut
    slice_tag: str = "slice"  # how a slice is enclosed in the prompt
    hides_first_id: bool = True  # chat() masks every token with id 0 from attention
    template: bool = True  # the tokenizer has a chat template
    thinks: bool = False  # chat() passes enable_thinking to it
    speaks: bool = False  # and use_tts_template, which is for answers to be spoken
    dropped: str = ""  # a token that chat() takes out of a prompt

    @property
    def title(self) -> str:
        """Its full name, such as ``MiniCPM-V 2.6``."""
        return f"MiniCPM-{self.version}" if self.version.startswith(OMNI) else f"MiniCPM-V {self.version}"


RELEASES: Mapping[str, Release] = {
    release.version: release
    for release in (
        Release(
            "1.0",
            "granite",  # MiniCPM's architecture under another name: Llama with a factor on each sublayer's output
            ("</s>",),
            strips=False,
            patch_mask=False,
            square=True,
            slice_tag="image",
            hides_first_id=False,
            template=False,
        ),
        Release(
            "2.0",
            "granite",
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
        Release("4.5", "qwen3", ("<|im_end|>", "<|endoftext|>"), thinks=True),
        # The attention mask of MiniCPM-o is one for every token of a prompt, whatever its id.
        Release(f"{OMNI}2.6", "qwen2", ("<|im_end|>", "<|endoftext|>"), hides_first_id=False),
        Release(
            f"{OMNI}4.5",
            "qwen3",
            ("<|im_end|>", "<|endoftext|>"),
            hides_first_id=False,
            thinks=True,
            speaks=True,
            dropped="<|listen|>",
        ),
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
    side: int = 448  # of the square image of 1.0


def is_omni(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is of MiniCPM-o: MiniCPM-V with audio input and speech output."""
    return config.get("model_type") == "minicpmo"


def release_of(config: Mapping[str, Any]) -> Release:
    """The release that a ``config.json`` belongs to.

    Raises:
        CheckpointError: for a version that is not supported.
    """
    version = config.get("version")
    omni = is_omni(config)
    named = "vision_encoder" in config  # the tower: in 1.0 and 2.0, older than the field version
    if version is None and named and not omni:
        version = "2.0" if "scale_resolution" in config else "1.0"
    try:  # a string in some releases, a number in others
        found = RELEASES[f"{OMNI if omni else ''}{float(str(version)):.1f}"]
        if found.strips or named:
            return found
    except (KeyError, ValueError):
        pass
    known = [each.removeprefix(OMNI) for each in RELEASES if each.startswith(OMNI) == omni]
    later = "" if omni else " Versions 4.6 and later have checkpoints native to transformers."
    raise CheckpointError(
        f"MiniCPM-{'o' if omni else 'V'} version {config.get('version')!r} is not supported; supported in the original "
        f"format are {', '.join(known)}.{later}"
    )
