"""Tiny random checkpoints of the real architectures of transformers, for tests on a CPU without a network.

``build("internvl", folder)`` writes config, float32 weights, tokenizer, image processor, chat template and
generation config; ``AutoModelForImageTextToText`` and ``AutoProcessor`` load the folder, and so does
``vlmprobe.load``. The same name gives the same files, byte for byte.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmprobe.testing.tiny.registry import Family

__all__ = ["SKIPPED", "build", "family", "later", "names", "unlisted"]

MODULES = (
    "llava",
    "qwen",
    "qwen_next",
    "glm",
    "grids",
    "ocr",
    "gemma",
    "cohere",
    "patchwise",
    "tiles",
    "deepseek",
    "sam",
    "no_chat",
    "other",
)
NO_TEMPLATE = "it has no chat template, and no adapter knows its plain prompt"
ENCODER_DECODER = "an encoder-decoder: the prompt is not in the sequence that is generated"
SKIPPED: dict[str, str] = {  # name of an architecture -> why there is no tiny checkpoint of it
    "blip": NO_TEMPLATE,
    "diffusion_gemma": "generates by diffusion over blocks, not token by token",
    "evolla": "reads proteins, not images",
    "florence2": ENCODER_DECODER,
    "fuyu": NO_TEMPLATE,
    "idefics": NO_TEMPLATE,
    "instructblipvideo": NO_TEMPLATE,
    "kosmos_2_5": NO_TEMPLATE,
    "mistral4": "a text model; the vision-language model built on it is a mistral3",
    "pi0": "generates robot actions, not text",
    "pix2struct": ENCODER_DECODER,
    "pp_formulanet": ENCODER_DECODER,
    "shieldgemma2": "a classifier: its processor writes one prompt per policy itself",
    "t5gemma2": ENCODER_DECODER,
    "udop": ENCODER_DECODER,
    "vision_encoder_decoder": ENCODER_DECODER,
}


def names() -> list[str]:
    """The families that the installed transformers (and optional packages) can build, in registration order."""
    return [name for name, wanting in _wanting().items() if not wanting]


def later() -> dict[str, str]:
    """The families that the installed packages cannot build, and what each needs."""
    return {name: wanting for name, wanting in _wanting().items() if wanting}


def unlisted() -> list[str]:
    """Architectures that the installed transformers lists as image-text-to-text, and that are missing here."""
    from vlmprobe.model_registry.registry import known_model_types

    spelt = {name.replace("-", "_").replace(".", "_") for name in known_model_types()}
    return sorted(spelt - set(_table()) - set(SKIPPED))


def family(name: str) -> Family:
    """The entry of ``name``: what its checkpoint supports, and its peculiarities.

    Raises:
        UnknownModelError: for a name that is not registered; suggests similar ones.
    """
    from vlmprobe.errors import UnknownModelError, near

    table = _table()
    if name not in table:
        reason = f" It is left out: {SKIPPED[name]}." if name in SKIPPED else near(name, list(table))
        raise UnknownModelError(f"There is no tiny checkpoint named {name!r}.{reason}")
    return table[name]


def build(name: str, folder: str | Path) -> Path:
    """Write the tiny checkpoint ``name`` into ``folder`` and return the folder.

    Args:
        name: one of :func:`names`.
        folder: where to write; it is created.

    Raises:
        UnknownModelError: for an unknown name.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "IProgress not found")  # tqdm, in a notebook without ipywidgets
        from vlmprobe.testing.tiny.checkpoint import write

    return write(family(name), Path(folder))


def _wanting() -> dict[str, str]:
    """Every family, and what is missing to build it; empty if nothing is."""
    from importlib.util import find_spec

    from packaging.version import Version
    from transformers import CONFIG_MAPPING, __version__

    found = {}
    for entry in _table().values():
        missing = [package for package in entry.packages if find_spec(package) is None]
        if not all(need in CONFIG_MAPPING for need in entry.needs):
            found[entry.name] = "a transformers version that has it"
        elif Version(entry.since) > Version(__version__):
            found[entry.name] = f"transformers {entry.since}{f'; before, {entry.before}' if entry.before else ''}"
        elif __version__ in entry.broken:
            found[entry.name] = f"a transformers other than {__version__}, where {entry.broken[__version__]}"
        else:
            found[entry.name] = f"the package {missing[0]}" if missing else ""
    return found


def _table() -> dict[str, Family]:
    from importlib import import_module

    from vlmprobe.testing.tiny.registry import FAMILIES

    for module in MODULES:
        import_module(f"vlmprobe.testing.tiny.families.{module}")
    return FAMILIES
