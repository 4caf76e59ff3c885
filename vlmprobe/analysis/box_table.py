"""``Boxes``: the boxes and points of an answer as a table, with the distribution of each coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from PIL.Image import Image

from vlmprobe.analysis.box_numbers import mean_bounds
from vlmprobe.analysis.box_overlap import Combined, Joint
from vlmprobe.analysis.box_pixels import as_stored, orientation_of
from vlmprobe.display.overview import Kind, Overview, Viewed
from vlmprobe.display.view import DASH, counted, percent
from vlmprobe.errors import ResultError, near
from vlmprobe.inputs.images import load_image
from vlmprobe.results.choices import StaysReadOnly
from vlmprobe.results.document import finite
from vlmprobe.results.frame import DataFrame, data_frame

__all__ = ["Boxes", "Coordinate"]

SIDES = ("x1", "y1", "x2", "y2")
LITTLE = 1e-3  # how far apart bounds may be for one number to be given: of the image's side, and of an overlap
TAILS = (0.05, 0.95)
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Coordinate(StaysReadOnly):
    """The distribution of one coordinate in pixels, given that a place in the image is written: N outcomes, ascending.

    An outcome is one number, or a range of which no more is known than its probability.
    """

    name: str  # x1, y1, x2 or y2
    low: np.ndarray  # float64 [N]
    high: np.ndarray  # float64 [N]; equal to ``low`` where the number is known
    mass: np.ndarray  # float64 [N], adding up to 1
    sure: np.ndarray  # float64 [N], of which this has ended in the image: numbers that may go on might still leave it
    outside: float  # probability of anything else than a place in the image, at least; NaN if unknown
    side: float  # pixels: width or height of the image

    @property
    def exact(self) -> np.ndarray:
        """bool [N]: the outcomes that are one number."""
        return self.low == self.high

    @property
    def unresolved(self) -> float:
        """Probability of what has not ended, and was not followed."""
        return float(np.maximum(self.mass - self.sure, 0).sum())

    @property
    def bounds(self) -> tuple[float, float]:
        """Pixels: the least and the greatest mean that the outcomes allow."""
        return mean_bounds(self.low, self.high, self.mass, self.sure)

    @property
    def expected(self) -> float:
        """Pixels: mean of the numbers; NaN if its bounds are more than a thousandth of the image's side apart."""
        return self._moments()[0]

    @property
    def spread(self) -> float:
        """Pixels: standard deviation of the numbers; NaN as :attr:`expected`."""
        return self._moments()[1]

    def interval(self, tails: tuple[float, float] = TAILS) -> tuple[float, float]:
        """Pixels between which the number lies with 90%, or other tails: as wide as the outcomes may make it."""
        return self._quantile(self.low, tails[0]), -self._quantile(-self.high, 1 - tails[1])

    def _quantile(self, values: np.ndarray, share: float) -> float:
        """The least value that the quantile may have."""
        order = np.argsort(values, kind="stable")
        sure, maybe = np.cumsum(self.sure[order]), np.cumsum(np.maximum(self.mass - self.sure, 0)[order])
        total = float(self.sure.sum()) + maybe
        reached = np.divide(sure + maybe, total, out=np.zeros(len(total)), where=total > 0)
        return float(values[order[min(int(np.searchsorted(reached, share - 1e-12)), len(order) - 1)]])

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per outcome, the likeliest first."""
        order = np.argsort(-self.mass, kind="stable")
        return data_frame({"low": self.low[order], "high": self.high[order], "probability": self.mass[order]})

    def __repr__(self) -> str:
        low, high = self.interval()
        return f"Coordinate({self.name}: 90% from {low:.4g} to {high:.4g}, {counted(len(self.mass), 'outcome')})"

    def _moments(self) -> tuple[float, float]:
        least, most = self.bounds
        if most - least > LITTLE * self.side:
            return NAN, NAN
        exact = self.exact
        mass = self.mass[exact]
        mean = float(mass @ self.low[exact] / mass.sum())
        return mean, float(np.sqrt(mass @ (self.low[exact] - mean) ** 2 / mass.sum()))


@dataclass(frozen=True, eq=False)
class Boxes(Viewed, StaysReadOnly):
    """B boxes and points of an answer, in the order of its text, in pixels of the upright image.

    Numbers are NaN where they are not known; where only bounds are, ``probability`` and ``iou`` are NaN beside them.
    """

    kinds: list[str]  # [B] box, point, or malformed
    labels: list[str]  # [B]; empty where there is none
    xyxy: np.ndarray  # float64 [B, 4]: x1, y1, x2, y2; a point has x1, y1 only, something malformed nothing
    written: list[list[float]]  # [B] the numbers as written, in their order
    coordinates: list[list[Coordinate | None]]  # [B][4]
    at_least: np.ndarray  # float64 [B], probability of the numbers: tokens that hold structure too counted
    at_most: np.ndarray  # float64 [B], such tokens left out; also where the engine gives only bounds
    straddles: np.ndarray  # bool [B]: a token holds both digits and structure
    label_at_least: np.ndarray  # float64 [B], probability of the label's tokens, as at_least
    label_at_most: np.ndarray  # float64 [B]
    iou_at_least: np.ndarray  # float64 [B]: expected overlap with what could have been written instead; NaN of points
    iou_at_most: np.ndarray  # float64 [B]
    spans: np.ndarray  # int64 [B, 2]: text[start:stop] is the box as written
    complete: np.ndarray  # bool [B]: False where the text ends in it
    notes: list[str]  # [B] "corners reversed", "out of range", "cut off", "3 numbers, not 4", ...
    text: str  # of the answer, special tokens included
    format: str  # the notation; empty if there is no box
    which: int  # number of the image, from 0
    size: tuple[int, int] | None  # of the image, width and height
    joints: list[Joint | Combined | None]  # [B] the boxes that could have been written instead
    image: Image | None = None  # the image, downscaled for display

    @classmethod
    def of(
        cls,
        made: Sequence[dict[str, Any]],
        text: str,
        format: str,
        which: int,
        size: tuple[int, int] | None,
        image: Image | None,
    ) -> Boxes:
        """From the columns of each box."""
        overlaps = [(NAN, NAN) if each["joint"] is None else each["joint"].expected(each["box"]) for each in made]

        def column(name: str, kind: Any = np.float64) -> np.ndarray:
            return np.array([each[name] for each in made], dtype=kind)

        return cls(
            kinds=[each["kind"] for each in made],
            labels=[each["label"] for each in made],
            xyxy=column("box").reshape(-1, 4),
            written=[each["written"] for each in made],
            coordinates=[each["coordinates"] for each in made],
            **{name: column(name) for name in ("at_least", "at_most", "label_at_least", "label_at_most")},
            straddles=column("straddles", bool),
            iou_at_least=np.array([least for least, _ in overlaps], dtype=np.float64),
            iou_at_most=np.array([most for _, most in overlaps], dtype=np.float64),
            spans=column("span", np.int64).reshape(-1, 2),
            complete=column("complete", bool),
            notes=["; ".join(each["notes"]) for each in made],
            text=text,
            format=format,
            which=which,
            size=size,
            joints=[each["joint"] for each in made],
            image=image,
        )

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, rows: Any) -> Boxes:
        """The same table with some of its boxes: a slice, a list of places, or a mask."""
        one = isinstance(rows, (int, np.integer)) and not isinstance(rows, bool)
        chosen: list[int] = np.arange(len(self))[np.array([rows]) if one else rows].tolist()
        changed: dict[str, Any] = {
            column.name: value[chosen] if isinstance(value, np.ndarray) else [value[row] for row in chosen]
            for column in fields(self)
            if isinstance(value := getattr(self, column.name), (np.ndarray, list))
        }
        return replace(self, **changed)

    @property
    def probability(self) -> np.ndarray:
        """float64 [B]: of exactly the numbers that were written, each given those before it; NaN where only bounded."""
        return np.where(self.straddles | (self.at_least != self.at_most), NAN, self.at_least)

    @property
    def iou(self) -> np.ndarray:
        """float64 [B]: the expected overlap; NaN where the bounds are more than a thousandth apart."""
        return np.where(self.iou_at_most - self.iou_at_least > LITTLE, NAN, self.iou_at_least)

    @property
    def scores(self) -> np.ndarray:
        """float64 [B], for average precision: probability of the label times the expected overlap.

        Both are lower bounds where only bounds are known. Without a label it is the overlap alone, and of a point, in
        place of the overlap, the probability of its numbers. NaN where nothing is known.
        """
        sure = np.where([kind == "point" for kind in self.kinds], self.at_least, self.iou_at_least)
        return sure * np.where([not label for label in self.labels], 1.0, self.label_at_least)

    def overlap_above(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper bounds, float64 [B] both, on the probability that the overlap is greater than a threshold.

        They are equal where every coordinate is resolved. NaN of points.
        """
        pairs = zip(self.joints, self.xyxy, strict=True)
        found = [(NAN, NAN) if each is None else each.beyond(box, threshold) for each, box in pairs]
        least, most = np.array(found, dtype=np.float64).reshape(-1, 2).T
        return least, most

    def as_stored(self, image: Any) -> np.ndarray:
        """``xyxy``, float64 [B, 4], in the rows and columns of an image file as they are stored.

        Models, and nearly all programs, see an image rotated upright by its EXIF orientation; this undoes it.

        Args:
            image: a path, the bytes of a file, or a Pillow image as it was opened.

        Raises:
            ResultError: if the image is not of the size of that of the boxes.
        """
        orientation, stored = orientation_of(image)
        upright = stored[::-1] if orientation >= 5 else stored
        if self.size is not None and upright != self.size:
            raise ResultError(f"The image is {upright[0]} x {upright[1]} pixels, that of the boxes {self.size}.")
        return as_stored(self.xyxy, upright, orientation)

    def coordinate(self, row: int, side: str) -> Coordinate:
        """The distribution of ``"x1"``, ``"y1"``, ``"x2"`` or ``"y2"`` of one box.

        Raises:
            ResultError: for another side, or one that is not written.
        """
        if side not in SIDES:
            raise ResultError(f"side must be {', '.join(SIDES)}, not {side!r}.{near(str(side), SIDES)}")
        found = self.coordinates[row][SIDES.index(side)]
        if found is None:
            raise ResultError(f"{self.kinds[row].capitalize()} {row} has no {side} with a distribution.")
        return found

    def columns(self) -> dict[str, Any]:
        """The columns, named as in :meth:`to_pandas`."""
        ends = np.full((len(self), 4, 2), NAN)
        expected, spread, unresolved = np.full((3, len(self), 4), NAN)
        for row, sides in enumerate(self.coordinates):
            for side, each in enumerate(sides):
                if each is not None:
                    ends[row, side] = each.interval()
                    expected[row, side], spread[row, side] = each.expected, each.spread
                    unresolved[row, side] = each.unresolved
        columns: dict[str, Any] = {"kind": self.kinds, "label": self.labels}
        columns |= {name: self.xyxy[:, side] for side, name in enumerate(SIDES)}
        for side, name in enumerate(SIDES):
            columns |= {f"{name}_low": ends[:, side, 0], f"{name}_high": ends[:, side, 1]}
            columns |= {f"{name}_expected": expected[:, side], f"{name}_spread": spread[:, side]}
            columns |= {f"{name}_unresolved": unresolved[:, side]}
        columns |= {name: getattr(self, name) for name in ("probability", "at_least", "at_most", "straddles")}
        columns |= {name: getattr(self, name) for name in ("label_at_least", "label_at_most")}
        columns |= {name: getattr(self, name) for name in ("iou", "iou_at_least", "iou_at_most")}
        columns |= {"score": self.scores, "start": self.spans[:, 0], "stop": self.spans[:, 1]}
        return columns | {"complete": self.complete, "notes": self.notes}

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per box or point; ``_low`` and ``_high`` are a 90% interval."""
        return data_frame(self.columns())

    def to_dict(self) -> dict[str, Any]:
        """The columns as JSON-ready values: ``boxes``, a list with one mapping each, ``format``, ``which``, ``size``.

        Numbers that are not finite are None.
        """
        plain = {name: each.tolist() if isinstance(each, np.ndarray) else each for name, each in self.columns().items()}
        rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
        size = None if self.size is None else list(self.size)
        return finite({"boxes": rows, "format": self.format, "which": self.which, "size": size})

    def plot(self, ax: Any = None, *, image: Any = None, most: int = 30) -> Any:
        """The boxes on the image, each side with the 90% interval of where it could have been. Returns the axes.

        Args:
            ax: axes to draw on.
            image: what to draw on, as a path, Pillow image or array, upright and of any size; that of the result if
                None.
            most: how many boxes to draw.
        """
        from vlmprobe.display.plots.boxes import draw_boxes

        shown = self[: min(most, len(self))]
        ends = np.full((len(shown), 4, 2), NAN)
        for row, sides in enumerate(shown.coordinates):
            for side, each in enumerate(sides):
                if each is not None:
                    ends[row, side] = each.interval()
        names = [" ".join(filter(None, [shown.labels[row], _share(shown, row)])) for row in range(len(shown))]
        background = self.image if image is None else load_image(image)
        return draw_boxes(shown.xyxy, ends, names, self.size, background, ax, more=len(self) - len(shown))

    def __repr__(self) -> str:
        known = np.flatnonzero(~np.isnan(self.scores))
        sure = ""
        if len(known):
            row = int(known[np.argmin(self.scores[known])])
            sure = f", least sure {self.labels[row] or row} {_share(self, row)}"
        return f"Boxes({_counted(len(self))}, {self.format or 'no notation'}{sure})"

    def _overview(self) -> Overview:
        columns: dict[str, Kind] = {"label": "text", "place": "text", "90%": "text", "overlap": "number"}
        columns |= {"score": "number", "notes": "text"}
        rows = []
        for row in range(len(self)):
            place = ", ".join(f"{each:.0f}" for each in self.xyxy[row] if not np.isnan(each)) or DASH
            sides = [each for each in self.coordinates[row] if each is not None]
            wide = ", ".join("{:.0f}–{:.0f}".format(*each.interval()) for each in sides) or DASH
            at_least = "" if np.isnan(self.iou_at_least[row]) or not np.isnan(self.iou[row]) else "at least "
            overlap = at_least + percent(float(self.iou_at_least[row]))
            label = self.labels[row] or self.kinds[row]
            rows.append([label, place, wide, overlap, percent(float(self.scores[row])), self.notes[row]])
        return Overview(columns, rows, figures=[("boxes", f"{len(self):,}", self.format or "no notation")])


def _counted(number: int) -> str:
    return f"{number:,} box{'' if number == 1 else 'es'}"


def _share(found: Boxes, row: int) -> str:
    bounded = found.kinds[row] == "box" and np.isnan(found.iou[row]) and not np.isnan(found.scores[row])
    sure = percent(float(found.scores[row]))
    return f"≥{sure}" if bounded else sure
