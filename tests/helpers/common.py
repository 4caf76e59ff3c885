"""Words, pictures and places that most tests use."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DATA = ROOT / "tests" / "data"
GOLDEN = DATA / "golden"  # tiny random checkpoints in original formats, and what the original code computes on them
FAMILIES = (
    "mllama",
    "internvl",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava",
    "llava_next",
    "llava_onevision",
    "idefics3",
    "smolvlm",
    "gemma3",
    "gemma3n",
    "gemma4",
    "paligemma",
    "aya_vision",
    "cohere2_vision",
    "cohere_compass",
    "mistral3",
    "granite4_vision",
    "minicpmv4_6",
    "minicpmv4_7",
)
QUESTION = "What animal is this? Describe the picture."


def families() -> list:
    """The architectures that the core is tested on, those that the installed packages lack marked as skipped."""
    from vlmprobe.testing import tiny

    missing = {"gemma3n": "timm"}
    return [
        pytest.param(name, marks=pytest.mark.skip(f"needs {missing[name]}"))
        if name in missing and find_spec(missing[name]) is None
        else name
        for name in FAMILIES
        if name in missing or name in tiny.names()
    ]


def picture(seed: int = 1, width: int = 48, height: int = 40) -> Image.Image:
    """A picture of coloured patches."""
    patches = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.NEAREST)
