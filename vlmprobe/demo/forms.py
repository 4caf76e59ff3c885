"""Scenes of handwriting as forms to be read: what they show, as JSON with four fields."""

from __future__ import annotations

import json
from typing import Any

from vlmprobe.demo.handwriting import DIGITS
from vlmprobe.demo.scenes import SIDES

__all__ = ["WORDINGS", "form_answer", "form_fields"]

WORDINGS = ("Describe the picture as JSON.", "Describe the image as JSON.", "Answer as JSON: what do you see?")


def form_fields(digits: tuple[int, int], colours: tuple[str, str]) -> dict[str, Any]:
    """The fields of two digits and two colours."""
    return {
        side: {"digit": DIGITS[digit], "colour": colour}
        for side, digit, colour in zip(SIDES, digits, colours, strict=True)
    }


def form_answer(digits: tuple[int, int], colours: tuple[str, str]) -> str:
    """The JSON that is the right answer."""
    return json.dumps(form_fields(digits, colours))
