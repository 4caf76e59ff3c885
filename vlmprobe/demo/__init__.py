"""The embedded default model, ``vlmprobe.load("demo")``: a tiny VLM that reads scenes of real handwriting.

Importing this package is cheap. ``scenes`` makes images with questions and answers; ``tools/demo_model`` in the
repository trains and evaluates the shipped checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from vlmprobe.errors import CheckpointError, renamed

__all__ = ["checkpoint", "sample_images"]

_HERE = Path(__file__).resolve().parent


def checkpoint() -> Path:
    """The folder of the shipped checkpoint, in the format of ``from_pretrained``.

    Raises:
        CheckpointError: if the installation lacks it.
    """
    folder = _HERE / "checkpoint"
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder} holds no weights: reinstall vlmprobe, or, in a clone of the repository, train them with: "
            f"python -m tools.demo_model.train --out {folder}"
        )
    return folder


def sample_images() -> list[Path]:
    """The bundled images, PNG files named after what they show; the ``unsure_`` one holds a digit hard to read."""
    return sorted((_HERE / "pictures").glob("*.png"))


def pictures() -> list[Path]:
    """The former name of :func:`sample_images`."""
    renamed("vlmprobe.demo.pictures", "vlmprobe.demo.sample_images")
    return sample_images()
