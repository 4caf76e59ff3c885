"""Scenes of handwriting as forms to be read: the two digits that they show, as JSON."""

from __future__ import annotations

import json

from vlmprobe.demo.handwriting import DIGITS
from vlmprobe.demo.scenes import SIDES

__all__ = ["WORDINGS", "form_answer", "form_fields"]

WORDINGS = ("Describe the picture as JSON.", "Describe the image as JSON.", "Answer as JSON: what do you see?")


def form_fields(digits: tuple[int, int]) -> dict[str, str]:
    """The fields of two digits, such as ``{"left": "nine", "right": "two"}``."""
    return {side: DIGITS[digit] for side, digit in zip(SIDES, digits, strict=True)}


def form_answer(digits: tuple[int, int]) -> str:
    """The JSON that is the right answer."""
    return json.dumps(form_fields(digits))
