"""Boxes and points in the text of an answer, in the notations of the families that write them.

A notation says how coordinates are written, which of a corner comes first, and what they count in. Text is read without
regard to the family's tokenizer: special tokens are part of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vlmprobe.analysis.box_syntax import SYNTAXES, Found
from vlmprobe.errors import ResultError, near

__all__ = ["NOTATIONS", "Frame", "Notation", "notation_of", "read_boxes"]

GRID = 32  # patches on a side of Kosmos-2's image


@dataclass(frozen=True)
class Notation:
    """How a family writes boxes."""

    name: str
    syntaxes: tuple[str, ...]  # of SYNTAXES
    units: float | None  # of the width, and of the height; None for pixels of the image as the model receives it
    last: float | None = None  # greatest coordinate that exists, if it is not ``units``
    offset: float = 0.0  # added to a coordinate before it is divided by ``units``
    step: float = 1.0  # between two coordinates
    order: tuple[int, ...] = (0, 1, 2, 3)  # which of x1, y1, x2, y2 each number is
    grid: bool = False  # a number is a patch of a grid, and so two coordinates

    def axes(self, kind: str) -> list[tuple[int, ...]]:
        """Which of x1, y1, x2, y2 each number of a box or point says."""
        if self.grid:
            return [(0, 1), (2, 3)]
        return [(column,) for column in self.order] if kind == "box" else [(0,), (1,)]

    def values(self, number: np.ndarray) -> np.ndarray:
        """float64 [N, 1], or [N, 2] of a grid: the coordinates that numbers [N] say, in units."""
        number = np.asarray(number, dtype=np.float64)[:, None]
        return np.concatenate([number % GRID, number // GRID], axis=1) if self.grid else number

    def scale(self, size: tuple[int, int]) -> np.ndarray:
        """float64 [4]: units along each of x1, y1, x2, y2 of an image that the model receives at this size."""
        return np.array([*size, *size] if self.units is None else [self.units] * 4, dtype=np.float64)

    def greatest(self, axis: tuple[int, ...], scale: np.ndarray) -> float:
        """The greatest number that stands for a place in the image."""
        if self.last is not None:
            return self.last
        return float(scale[axis[0]])

    def shares(self, corners: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """Coordinates [..., 4] in units as shares of width and height, from 0 to 1."""
        shares = (corners + self.offset) / scale
        if self.grid:
            # As transformers' own processor: two corners in one row or one column of patches enclose these patches.
            flat = np.any(corners[..., :2] == corners[..., 2:], axis=-1, keepdims=True)
            half = 0.5 / scale * np.array([-1, -1, 1, 1])
            shares = np.where(flat, shares + half, shares)
        return np.clip(shares, 0.0, 1.0)


@dataclass(frozen=True)
class Frame:
    """The image that the numbers of a notation lie on."""

    notation: Notation
    scale: np.ndarray  # float64 [4], units along each of x1, y1, x2, y2
    size: tuple[int, int]  # of the image, width and height in pixels

    def pixels(self, corners: np.ndarray) -> np.ndarray:
        """Coordinates [..., 4] in units as pixels of the image."""
        return self.notation.shares(corners, self.scale) * np.array([*self.size, *self.size])


NOTATIONS = {
    each.name: each
    for each in (
        Notation("qwen2-vl", ("box_start", "json"), 1000),
        Notation("qwen2.5-vl", ("json", "box_start", "point_tags"), None),
        Notation("qwen3-vl", ("json", "box_start", "point_tags"), 1000),
        Notation("internvl", ("box_lists",), 1000),
        Notation("minicpm-v", ("box_numbers",), 1000),
        Notation("paligemma", ("loc_yxyx",), 1023, order=(1, 0, 3, 2)),
        Notation("florence-2", ("loc_xyxy",), 1000, 999, offset=0.5),
        Notation("kosmos-2", ("patches",), GRID, GRID**2 - 1, offset=0.5, grid=True),
        Notation("molmo", ("point_tags",), 100, step=0.1),
    )
}
TOLD_BY = {  # a syntax that one family alone has
    "box_start": "qwen2-vl",
    "box_lists": "internvl",
    "box_numbers": "minicpm-v",
    "loc_yxyx": "paligemma",
    "loc_xyxy": "florence-2",
    "patches": "kosmos-2",
    "point_tags": "molmo",
}


def notation_of(name: str) -> Notation:
    """A notation by its name.

    Raises:
        ResultError: for an unknown one.
    """
    if name not in NOTATIONS:
        raise ResultError(f"format must be one of {', '.join(NOTATIONS)}, not {name!r}.{near(str(name), NOTATIONS)}")
    return NOTATIONS[name]


def read_boxes(text: str, name: str | None, recorded: str | None) -> tuple[Notation | None, list[Found]]:
    """The boxes and points of a text, in its order.

    Args:
        text: of the answer, special tokens included.
        name: of the notation; if None, that which the result recorded, if the text has it, else that of the syntax.
        recorded: what the result says of its family.

    Returns:
        The notation, None if there is no box and no name; and what was found.

    Raises:
        ResultError: for an unknown name, or JSON whose units are not known.
    """
    wanted = notation_of(name) if name is not None else NOTATIONS.get(recorded or "")
    if wanted is not None and (found := _read(text, wanted)):
        return wanted, found
    if name is not None:
        return wanted, []
    for syntax, family in TOLD_BY.items():
        if found := _read(text, NOTATIONS[family], (syntax,)):
            return NOTATIONS[family], found
    if SYNTAXES["json"](text):
        raise ResultError(
            "The answer has boxes as JSON, and the result does not say what their numbers count in: pass "
            "format='qwen2.5-vl' (pixels of the image as the model receives it) or 'qwen3-vl' (thousandths)."
        )
    return wanted, []


def _read(text: str, notation: Notation, syntaxes: tuple[str, ...] = ()) -> list[Found]:
    found = [each for syntax in syntaxes or notation.syntaxes for each in SYNTAXES[syntax](text)]
    return sorted(found, key=lambda each: each.span)
