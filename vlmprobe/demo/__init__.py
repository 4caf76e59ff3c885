"""The embedded models, tiny VLMs: ``vlmprobe.load("demo")`` reads scenes of real handwriting, and
``vlmprobe.load("demo-forms")`` the same as forms, answering with JSON.

Importing this package is cheap. ``scenes`` makes images with questions and answers, ``forms`` the fields of one;
``tools/demo_model`` in the repository trains and evaluates the shipped checkpoints.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from vlmprobe.errors import CheckpointError, renamed

__all__ = ["BUNDLED", "checkpoint", "sample_forms", "sample_images", "sample_questions"]

_HERE = Path(__file__).resolve().parent
BUNDLED = {"demo": ("checkpoint", "train"), "demo-forms": ("forms_checkpoint", "forms")}  # folder, training


def checkpoint(name: str = "demo") -> Path:
    """The folder of a shipped checkpoint, in the format of ``from_pretrained``.

    Args:
        name: ``"demo"`` or ``"demo-forms"``.

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


def sample_forms(count: int = 100, *, strength: float = 2.0) -> list[dict[str, Any]]:
    """Held-out scenes to be read as forms, with the right fields: a small data set for the model ``"demo-forms"``.

    Args:
        count: how many.
        strength: as in :func:`sample_questions`; the model errs at 2.

    Returns:
        Dictionaries with ``id``, ``question``, ``image`` (a PIL image) and ``gold``, the right fields.

    Raises:
        MissingExtraError: without scikit-learn, which bundles the handwriting.
    """
    from vlmprobe.demo.forms import WORDINGS, form_fields
    from vlmprobe.demo.scenes import held_out

    return [
        {
            "id": str(place),
            "question": WORDINGS[0],
            "image": scene.picture,
            "gold": form_fields(scene.digits),
        }
        for place, scene in enumerate(held_out(count, strength=strength))
    ]


def pictures() -> list[Path]:
    """The former name of :func:`sample_images`."""
    renamed("vlmprobe.demo.pictures", "vlmprobe.demo.sample_images")
    return sample_images()
