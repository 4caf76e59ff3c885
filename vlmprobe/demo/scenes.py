"""Scenes of real handwriting: two digits of scikit-learn's bundled set, coloured, one left and one right.

Every scene records which samples it shows. Scenes for display and for evaluation come from :func:`held_out`:
test samples only, undistorted, with slightly varied positions and sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlmprobe.demo.drawing import COLOURS, placement, render, to_pil
from vlmprobe.demo.handwriting import DIGITS, samples, split

__all__ = ["QA", "SIDES", "Scene", "draw_asked", "draw_pairs", "held_out", "questions", "scene_at"]

SIDES = ("left", "right")
PIXELS = 256  # side of an image for display


@dataclass(frozen=True)
class QA:
    """A question about a scene and its answer."""

    kind: str  # "describe", "digit", "colour", "same" or "exists"
    question: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """Two handwritten digits side by side. Pairs are in the order left, right."""

    samples: tuple[int, int]  # indices into samples()
    digits: tuple[int, int]  # what the writer meant, 0 to 9
    colours: tuple[str, str]  # keys of COLOURS
    asked: int  # the digit that the "exists" question asks for
    picture: Image.Image  # RGB, PIXELS x PIXELS

    @property
    def description(self) -> str:
        """The sentence that describes the scene."""
        return describe(self.digits, self.colours)

    @property
    def questions(self) -> tuple[QA, ...]:
        """Every question in its plain wording, with its answer."""
        return questions(self.digits, self.colours, self.asked)


def describe(digits: tuple[int, int], colours: tuple[str, str]) -> str:
    """The sentence for two digits and two colours."""
    return " and ".join(
        f"{article(colour)} {colour} {DIGITS[digit]} on the {side}"
        for digit, colour, side in zip(digits, colours, SIDES, strict=True)
    )


def article(word: str) -> str:
    """The indefinite article in front of ``word``."""
    return "an" if word[0] in "aeiou" and word != "one" else "a"


def questions(digits: tuple[int, int], colours: tuple[str, str], asked: int) -> tuple[QA, ...]:
    """The seven questions about a scene in their plain wording."""
    word = DIGITS[asked]
    return (
        QA("describe", "Describe the picture.", describe(digits, colours)),
        *(
            QA("digit", f"Which digit is on the {side}?", DIGITS[digit])
            for side, digit in zip(SIDES, digits, strict=True)
        ),
        *(
            QA("colour", f"What colour is the digit on the {side}?", colour)
            for side, colour in zip(SIDES, colours, strict=True)
        ),
        QA("same", "Are the two digits the same?", "yes" if digits[0] == digits[1] else "no"),
        QA("exists", f"Is there {article(word)} {word}?", "yes" if asked in digits else "no"),
    )


def draw_pairs(
    rng: np.random.Generator, pool: np.ndarray, count: int, same: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of samples from ``pool`` and pairs of colours, both int64 [count, 2].

    Args:
        rng: source of randomness.
        pool: indices into :func:`samples`.
        count: how many pairs.
        same: the share of pairs that show one digit twice (two samples of it), the others showing two
            different digits; None draws both digits independently, so that one pair in ten is the same.
    """
    targets = samples()[1]
    by_digit = [pool[targets[pool] == digit] for digit in range(10)]
    digits = rng.integers(0, 10, (count, 2))
    if same is not None:
        twice = rng.random(count) < same
        other = (digits[:, 0] + rng.integers(1, 10, count)) % 10
        digits[:, 1] = np.where(twice, digits[:, 0], other)
    pairs = np.array([[rng.choice(by_digit[left]), rng.choice(by_digit[right])] for left, right in digits])
    return pairs.reshape(count, 2), rng.integers(0, len(COLOURS), (count, 2))


def draw_asked(rng: np.random.Generator, digits: np.ndarray) -> np.ndarray:
    """The digit that "exists" asks for, int64 [N]: half of the time one of the scene's ``digits`` [N, 2]."""
    there = digits[np.arange(len(digits)), rng.integers(0, 2, len(digits))]
    absent = rng.integers(0, 10, len(digits))
    while (clash := (absent == digits[:, 0]) | (absent == digits[:, 1])).any():
        absent[clash] = rng.integers(0, 10, int(clash.sum()))
    return np.where(rng.random(len(digits)) < 0.5, there, absent)


def held_out(count: int, *, seed: int = 0, same: float | None = None, strength: float = 0.0) -> Iterator[Scene]:
    """Scenes of test digits only, each with its questions and answers (``scene.questions``).

    Args:
        count: how many scenes.
        seed: scenes with one seed are always the same, and a longer run extends the shorter one.
        same: as in :func:`draw_pairs`.
        strength: distortion of the writing by rotation and shear: 0 for as written, 2 for about the limit of
            legibility.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    for place in range(count):
        yield scene_at(seed, place, same=same, strength=strength)


def scene_at(seed: int, place: int, *, same: float | None = None, strength: float = 0.0) -> Scene:
    """The scene at ``place`` in the run of :func:`held_out` with ``seed``, on its own."""
    rng, targets, names = np.random.default_rng([seed, place]), samples()[1], list(COLOURS)
    pairs, colours = draw_pairs(rng, split().test, 1, same)
    digits = targets[pairs]
    image = to_pil(render(pairs, colours, placement(rng, 1, strength=strength), side=PIXELS))[0]
    return Scene(
        samples=(int(pairs[0, 0]), int(pairs[0, 1])),
        digits=(int(digits[0, 0]), int(digits[0, 1])),
        colours=(names[colours[0, 0]], names[colours[0, 1]]),
        asked=int(draw_asked(rng, digits)[0]),
        picture=image,
    )
