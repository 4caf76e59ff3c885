"""Drawn receipts with a date and a total, and what they say: noise, blur, rotation and worn ink, in several fonts.

Receipts for display and for evaluation come from :func:`held_out`; training never draws a date together with a total
that stand together on one of those.
"""

from __future__ import annotations

import functools
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from vlmprobe.demo.scenes import QA
from vlmprobe.errors import MissingExtraError

__all__ = ["FONTS", "WORDINGS", "Glyph", "Receipt", "draw_receipt", "held_out", "receipt_at"]

WORDINGS = ("Read the receipt.", "Read the receipt as JSON.", "Which date and total are on the receipt?")
FONTS = (  # files of matplotlib's; "" for the one of Pillow
    "",
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf",
    "STIXGeneral.ttf",
)
SHOPS = ("Corner Shop", "Bakery", "Cafe Nord", "Book Store", "Pharmacy", "Garden", "Hardware", "Kiosk 24")
ITEMS = ("Bread", "Coffee", "Tea", "Paper", "Soap", "Apples", "Nails", "Stamps")
PAID = ("Cash", "Card", "Thank you", "Change")
PIXELS = 384  # side of an image for display
FIRST_DAY, DAYS = date(2020, 1, 1), 3653  # to the end of 2029
TEST_SHARE = 10  # one in so many pairs of a date and a total is for tests


@dataclass(frozen=True)
class Glyph:
    """A character that is drawn on a receipt."""

    character: str
    field: str  # "date" or "total"; empty for all else
    place: int  # in the field's text
    centre: tuple[float, float]  # x, y as shares of the image's side


@dataclass(frozen=True)
class Receipt:
    """A receipt and what stands on it."""

    date: str  # such as 2026-07-15
    total: str  # such as 12.50
    picture: Image.Image = field(repr=False)  # RGB, square
    glyphs: tuple[Glyph, ...] = field(repr=False)

    @property
    def gold(self) -> dict[str, Any]:
        """The right values of the fields."""
        return {"date": self.date, "total": float(self.total)}

    @property
    def answer(self) -> str:
        """The JSON that is the right answer."""
        return f'{{"date": {json.dumps(self.date)}, "total": {self.total}}}'

    @property
    def questions(self) -> tuple[QA, ...]:
        """The question in its plain wording, with its answer."""
        return (QA("receipt", WORDINGS[0], self.answer),)


def held_out(count: int, *, seed: int = 0, strength: float = 1.0) -> Iterator[Receipt]:
    """Receipts for tests.

    Args:
        count: how many.
        seed: receipts with one seed are always the same, and a longer run extends the shorter one.
        strength: of rotation, noise, blur and wear: 0 for a clean print, 1 as in the training, 2 for about the limit of
            legibility.

    Raises:
        MissingExtraError: without matplotlib, which bundles the fonts.
    """
    for place in range(count):
        yield receipt_at(seed, place, strength=strength)


def receipt_at(seed: int, place: int, *, strength: float = 1.0) -> Receipt:
    """The receipt at ``place`` in the run of :func:`held_out` with ``seed``, on its own."""
    return draw_receipt(np.random.default_rng([seed, place]), held_out=True, strength=strength)


def draw_receipt(rng: np.random.Generator, *, held_out: bool, strength: float = 1.0, side: int = PIXELS) -> Receipt:
    """A receipt of random content.

    Args:
        rng: source of randomness.
        held_out: whether its date and total are for tests, or for training.
        strength: as in :func:`held_out`.
        side: height and width of the image, pixels.
    """
    day, total = _content(rng)
    while (zlib.crc32(f"{day} {total}".encode()) % TEST_SHARE == 0) != held_out:
        day, total = _content(rng)
    page, glyphs = _page(rng, day, total, side, strength)
    angle = float(np.clip(strength * rng.normal(0, 1.5), -8, 8))
    shift = strength * rng.uniform(-0.015, 0.015, 2)
    turned = page.rotate(
        angle, Image.Resampling.BICUBIC, translate=tuple(shift * side), fillcolor=page.getpixel((0, 0))
    )
    sin, cos = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    moved = [
        Glyph(
            each.character,
            each.field,
            each.place,
            (
                0.5 + cos * (each.centre[0] - 0.5) + sin * (each.centre[1] - 0.5) + float(shift[0]),
                0.5 - sin * (each.centre[0] - 0.5) + cos * (each.centre[1] - 0.5) + float(shift[1]),
            ),
        )
        for each in glyphs
    ]
    return Receipt(day, total, _photographed(rng, turned, side, strength), tuple(moved))


def _content(rng: np.random.Generator) -> tuple[str, str]:
    day = FIRST_DAY + timedelta(days=int(rng.integers(DAYS)))
    return day.isoformat(), f"{int(np.exp(rng.uniform(0, math.log(100))))}.{rng.integers(100):02}"


def _page(
    rng: np.random.Generator, day: str, total: str, side: int, strength: float
) -> tuple[Image.Image, list[Glyph]]:
    """The paper, printed and worn, upright."""
    paper = int(rng.integers(225, 254))
    ink = int(rng.uniform(10, 10 + 100 * min(1.5, strength)))
    page = Image.new("L", (side, side), int(rng.integers(20, 110)))  # the table that it lies on
    pen = ImageDraw.Draw(page)
    pen.rectangle([0.02 * side, 0.01 * side, 0.98 * side, 0.99 * side], fill=paper)
    name = FONTS[rng.integers(len(FONTS))]
    wide = _font(name, 100).getlength("2020-10-20")
    size = 100 * side * rng.uniform(0.8, 0.88) / wide
    shop, item, paid = (words[rng.integers(len(words))] for words in (SHOPS, ITEMS, PAID))
    price = f"{rng.integers(1, 20)}.{rng.integers(100):02}"
    heights = np.array([0.12, 0.31, 0.5, 0.69, 0.88]) + rng.uniform(-0.02, 0.02, 5)
    glyphs: list[Glyph] = []

    def line(text: str, share: float, height: float, align: float, what: str = "") -> None:
        font = _font(name, round(share * min(size, 0.17 * side)))
        ends = [font.getlength(text[:end]) for end in range(len(text) + 1)]
        left = side * 0.06 + align * (side * 0.88 - ends[-1])
        pen.text((left, height * side), text, font=font, fill=ink, anchor="lm")
        for place, character in enumerate(text):
            middle = left + (ends[place] + ends[place + 1]) / 2
            glyphs.append(Glyph(character, what, place, (middle / side, height)))

    line(shop, 0.75, heights[0], rng.uniform(0, 1))
    line(day, 1.0, heights[1], rng.uniform(0, 1), "date")
    line(item, 0.65, heights[2], 0)
    line(price, 0.65, heights[2], 1)
    line("TOTAL", 0.7, heights[3], 0)
    line(total, 1.0, heights[3], 1, "total")
    line(paid, 0.65, heights[4], rng.uniform(0, 1))
    if rng.random() < 0.2 * strength:
        page = _worn(rng, page, paper, side)
    return page, glyphs


def _worn(rng: np.random.Generator, page: Image.Image, paper: int, side: int) -> Image.Image:
    """Ink rubbed off around one place of the date or the total."""
    x, y = rng.uniform(0.1, 0.95), (0.31, 0.69)[rng.integers(2)]
    half = rng.uniform(0.03, 0.12), rng.uniform(0.03, 0.08)
    mask = Image.new("L", (side, side), 0)
    box = [(x - half[0]) * side, (y - half[1]) * side, (x + half[0]) * side, (y + half[1]) * side]
    ImageDraw.Draw(mask).ellipse(box, fill=int(rng.uniform(120, 250)))
    mask = mask.filter(ImageFilter.BoxBlur(0.02 * side))
    return Image.composite(Image.new("L", page.size, paper), page, mask)


def _photographed(rng: np.random.Generator, page: Image.Image, side: int, strength: float) -> Image.Image:
    """Blur, uneven light and grain."""
    blurred = page.filter(ImageFilter.GaussianBlur(strength * rng.uniform(0, 0.006) * side))
    across, down = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    slope = strength * rng.uniform(-0.1, 0.1, 2)
    light = 1 + slope[0] * across + slope[1] * down
    # Grain of the size of a 96th of the image, whatever the resolution: what resizing does not average away.
    grain = rng.normal(0, strength * rng.uniform(0, 0.1), (96, 96)).astype(np.float32)
    coarse = np.asarray(Image.fromarray(grain).resize((side, side), Image.Resampling.BILINEAR))
    pixels = np.asarray(blurred, np.float32) / 255 * light + coarse
    return Image.fromarray((pixels.clip(0, 1) * 255).astype(np.uint8)).convert("RGB")


@functools.cache
def _font(name: str, size: int) -> Any:
    if not name:
        return ImageFont.load_default(size)
    try:
        import matplotlib
    except ImportError:
        raise MissingExtraError("matplotlib", "plot") from None
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)
