"""How far boxes that an answer could have had overlap with the one that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlmprobe.analysis.box_notations import Frame
from vlmprobe.analysis.box_numbers import Outcomes, mean_bounds

__all__ = ["Combined", "Joint", "joint_of", "overlap"]

MOST_CASES = 2048  # boxes that are enumerated
DRAWS = 512  # where there are more
PAIRS = ((0, 2), (1, 3))  # which columns of a box are its sides along one axis


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union [N] of a box [4] and others [N, 4]: x1, y1, x2, y2, corners in any order.

    NaN of boxes that are both without an area.
    """
    columns = np.ascontiguousarray(others.T)
    inner: Any = 1.0
    area: Any = 1.0
    for first, second in PAIRS:
        start, stop = np.minimum(columns[first], columns[second]), np.maximum(columns[first], columns[second])
        own = sorted((box[first], box[second]))
        inner = inner * np.maximum(np.minimum(stop, own[1]) - np.maximum(start, own[0]), 0)
        area = area * (stop - start)
    union = area + abs((box[2] - box[0]) * (box[3] - box[1])) - inner
    return np.divide(inner, union, out=np.full(len(others), np.nan), where=union > 0)


@dataclass(frozen=True)
class Joint:
    """N boxes that an answer could have had, in pixels; each coordinate is one number or a range."""

    low: np.ndarray  # float64 [N, 4]
    high: np.ndarray  # float64 [N, 4]
    weight: np.ndarray  # float64 [N], adding up to 1
    sure: np.ndarray  # float64 [N], of which this counts in any case: see mean_bounds

    def overlaps(self, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The least and greatest overlap of each with a box [4], float64 [N] both: equal where all are numbers.

        The overlap falls with the distance of each coordinate from that of the box, whatever the others are. So within
        ranges it is greatest where each is nearest, and least at one of the corners.
        """
        least = greatest = overlap(box, self.low)
        open_ = np.flatnonzero((self.low != self.high).any(axis=1))
        if not len(open_):
            return least, greatest
        low, high = self.low[open_], self.high[open_]
        corners = [
            overlap(box, np.where([place >> column & 1 for column in range(4)], high, low)) for place in range(16)
        ]
        worst = np.minimum.reduce(corners)
        ordered = np.array([*np.minimum(box[:2], box[2:]), *np.maximum(box[:2], box[2:])])
        best = np.zeros(len(open_))
        for turned in range(4):  # corners that may be in another order
            wanted = ordered.copy()
            for axis, (first, second) in enumerate(PAIRS):
                if turned >> axis & 1:
                    wanted[[first, second]] = ordered[[second, first]]
            best = np.fmax(best, overlap(box, np.clip(wanted, low, high)))
        crossing = np.zeros(len(open_), dtype=bool)  # the two sides may meet, and nothing is left between them
        for first, second in PAIRS:
            crossing |= (low[:, first] <= high[:, second]) & (low[:, second] <= high[:, first])
        least, greatest = least.copy(), greatest.copy()
        least[open_], greatest[open_] = np.where(crossing, 0.0, worst), best
        return least, greatest

    def expected(self, box: np.ndarray) -> tuple[float, float]:
        """Bounds on the expected overlap."""
        return self._bounds(*self.overlaps(box))

    def beyond(self, box: np.ndarray, threshold: float) -> tuple[float, float]:
        """Bounds on the probability that the overlap is greater than a threshold."""
        least, greatest = self.overlaps(box)
        return self._bounds((least > threshold).astype(np.float64), (greatest > threshold).astype(np.float64))

    def _bounds(self, least: np.ndarray, greatest: np.ndarray) -> tuple[float, float]:
        least, greatest = np.nan_to_num(least), np.nan_to_num(greatest)  # of boxes without an area
        return mean_bounds(least, greatest, self.weight, self.sure)


@dataclass(frozen=True)
class Combined:
    """Boxes of coordinates that are independent of each other, put together when they are needed: they are many."""

    parts: Sequence[tuple[tuple[int, ...], np.ndarray, np.ndarray, Outcomes]]  # of joint_of, in units
    frame: Frame

    @property
    def joint(self) -> Joint:
        """The boxes, in pixels."""
        made = joint_of(self.parts)
        return replace(made, low=self.frame.pixels(made.low), high=self.frame.pixels(made.high))

    def expected(self, box: np.ndarray) -> tuple[float, float]:
        """As :meth:`Joint.expected`."""
        return self.joint.expected(box)

    def beyond(self, box: np.ndarray, threshold: float) -> tuple[float, float]:
        """As :meth:`Joint.beyond`."""
        return self.joint.beyond(box, threshold)


def joint_of(parts: Sequence[tuple[tuple[int, ...], np.ndarray, np.ndarray, Outcomes]]) -> Joint:
    """Boxes of coordinates that are independent of each other: all of them, or evenly spread draws if there are many.

    Args:
        parts: columns of the box that a number says; low and high float64 [N, k]; and the outcomes that have them.
    """
    counts = [len(found.mass) for *_, found in parts]
    cases = int(np.prod(counts))
    if cases <= MOST_CASES:
        places = np.stack(np.unravel_index(np.arange(cases), counts))
        weight = np.prod([part[3].mass[place] for part, place in zip(parts, places, strict=True)], axis=0)
    else:
        random = np.random.default_rng(0)
        quantiles = [(random.permutation(DRAWS) + random.random(DRAWS)) / DRAWS for _ in parts]
        places = np.stack(
            [
                np.minimum(np.searchsorted(np.cumsum(found.mass), each, side="right"), len(found.mass) - 1)
                for (*_, found), each in zip(parts, quantiles, strict=True)
            ]
        )
        weight = np.full(DRAWS, 1 / DRAWS)
    low, high = np.empty((2, len(weight), 4))
    for (columns, lows, highs, _), place in zip(parts, places, strict=True):
        low[:, columns], high[:, columns] = lows[place], highs[place]
    weight = weight / weight.sum()
    shares = [(part[3].sure / part[3].mass)[place] for part, place in zip(parts, places, strict=True)]
    return Joint(low, high, weight, weight * np.prod(shares, axis=0))
