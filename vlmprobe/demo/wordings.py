"""How each question may be worded: the plain wording first, then others that the model also understands."""

from __future__ import annotations

from vlmprobe.demo.handwriting import DIGITS
from vlmprobe.demo.scenes import QA, SIDES, article

__all__ = ["WORDINGS", "wordings"]

_BY_KIND: dict[str, tuple[str, ...]] = {
    "describe": ("Describe the picture.", "Describe the image.", "What is in the picture?", "What do you see?"),
    "digit": (
        "Which digit is on the {side}?",
        "What digit is on the {side}?",
        "What is the digit on the {side}?",
        "Which number is on the {side}?",
    ),
    "colour": (
        "What colour is the digit on the {side}?",
        "What color is the digit on the {side}?",
        "Which colour is on the {side}?",
        "What colour is the {side} digit?",
    ),
    "same": (
        "Are the two digits the same?",
        "Are the digits the same?",
        "Are both digits the same?",
        "Is it the same digit twice?",
    ),
    "exists": (
        "Is there {a} {digit}?",
        "Is there {a} {digit} in the picture?",
        "Is one of the digits {a} {digit}?",
        "Do you see {a} {digit}?",
    ),
}


def wordings(qa: QA) -> tuple[str, ...]:
    """Every wording of the question that ``qa`` asks, its plain one first."""
    plain = _BY_KIND[qa.kind][0]
    for filled in _fillings():
        if plain.format(**filled) == qa.question:
            return tuple(wording.format(**filled) for wording in _BY_KIND[qa.kind])
    raise ValueError(f"no wording of {qa.question!r}: it is not a plain question about a scene")


def _fillings() -> list[dict[str, str]]:
    return [{"side": side, "digit": digit, "a": article(digit)} for side in SIDES for digit in DIGITS]


WORDINGS: tuple[str, ...] = tuple(
    dict.fromkeys(
        wording.format(**filled) for asked in _BY_KIND.values() for wording in asked for filled in _fillings()
    )
)
