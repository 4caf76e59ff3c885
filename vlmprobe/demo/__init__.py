"""The embedded default model, ``vlmprobe.load("demo")``: a tiny VLM that reads scenes of real handwriting.

Importing this package is cheap. ``scenes`` makes images with questions and answers; ``tools/demo_model`` in the
repository trains and evaluates the shipped checkpoint.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from vlmprobe.errors import CheckpointError, renamed

__all__ = ["checkpoint", "sample_images", "sample_questions"]

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


def sample_questions(count: int = 100, *, strength: float = 0.0) -> list[dict[str, Any]]:
    """Questions about held-out scenes of handwriting, with the right answers: a small data set to try things on.

    Args:
        count: how many, seven about each scene.
        strength: distortion of the writing: 0 for as written, 2 for about the limit of legibility, beyond the range of
            the training, where the demo model makes mistakes.

    Returns:
        Dictionaries with ``id``, ``question``, ``image`` (a PIL image) and ``gold``, the right answer.

    Raises:
        MissingExtraError: without scikit-learn, which bundles the handwriting.
    """
    from vlmprobe.demo.scenes import held_out

    rows = (
        {"id": f"{place}-{number}", "question": each.question, "image": scene.picture, "gold": each.answer}
        for place, scene in enumerate(held_out(-(-count // 7), strength=strength))
        for number, each in enumerate(scene.questions)
    )
    return list(islice(rows, count))


def pictures() -> list[Path]:
    """The former name of :func:`sample_images`."""
    renamed("vlmprobe.demo.pictures", "vlmprobe.demo.sample_images")
    return sample_images()
