"""The embedded models, tiny VLMs: ``vlmprobe.load("demo")`` reads scenes of real handwriting, and
``vlmprobe.load("demo-receipts")`` date and total of drawn receipts, as JSON.

Importing this package is cheap. ``scenes`` and ``receipts`` make images with questions and answers;
``tools/demo_model`` in the repository trains and evaluates the shipped checkpoints.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from vlmprobe.errors import CheckpointError, renamed

__all__ = ["BUNDLED", "checkpoint", "sample_images", "sample_questions", "sample_receipts"]

_HERE = Path(__file__).resolve().parent
BUNDLED = {"demo": ("checkpoint", "train"), "demo-receipts": ("receipts_checkpoint", "receipts")}  # folder, training


def checkpoint(name: str = "demo") -> Path:
    """The folder of a shipped checkpoint, in the format of ``from_pretrained``.

    Args:
        name: ``"demo"`` or ``"demo-receipts"``.

    Raises:
        CheckpointError: if the installation lacks it.
    """
    folder, training = _HERE / BUNDLED[name][0], BUNDLED[name][1]
    if not (folder / "model.safetensors").is_file():
        raise CheckpointError(
            f"{folder} holds no weights: reinstall vlmprobe, or, in a clone of the repository, train them with: "
            f"python -m tools.demo_model.{training} --out {folder}"
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


def sample_receipts(count: int = 100, *, strength: float = 1.0) -> list[dict[str, Any]]:
    """Held-out receipts with what they say: a small data set for fields, made for the model ``"demo-receipts"``.

    Args:
        count: how many.
        strength: of noise, blur, rotation and wear: 0 for a clean print, 1 as in the training, 2 for about the limit of
            legibility.

    Returns:
        Dictionaries with ``id``, ``question``, ``image`` (a PIL image) and ``gold``, the right fields.

    Raises:
        MissingExtraError: without matplotlib, which bundles the fonts.
    """
    from vlmprobe.demo.receipts import WORDINGS, held_out

    return [
        {"id": str(place), "question": WORDINGS[0], "image": receipt.picture, "gold": receipt.gold}
        for place, receipt in enumerate(held_out(count, strength=strength))
    ]


def pictures() -> list[Path]:
    """The former name of :func:`sample_images`."""
    renamed("vlmprobe.demo.pictures", "vlmprobe.demo.sample_images")
    return sample_images()
