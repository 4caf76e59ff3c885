"""The metrics of a calibration report over resamples, each from counts of right and wrong answers by confidence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["ResampledMetrics"]


class ResampledMetrics:
    """Metrics of N answers that are drawn N times with replacement.

    The answers are sorted once, by their G different confidences; a resample is told by how often each of these was
    drawn, with a right answer and with a wrong one, and costs a few sums. The numbers are those of
    :func:`vlmprobe.analysis.calibration.bootstrap` with the same seed, which draws the same resamples.
    """

    def __init__(self, sure: np.ndarray, right: np.ndarray, bins: int, edges: np.ndarray) -> None:
        """Of confidences [N] and outcomes [N]; ``edges`` are those of ``bins`` bins of equal width."""
        self._values, group = np.unique(sure, return_inverse=True)  # [G], ascending
        self._code = group + len(self._values) * right  # [N]
        self._squares = (sure - right) ** 2  # [N]
        self._last = (np.arange(1, bins + 1) * len(sure) + bins - 1) // bins - 1  # answer that ends a bin, in order
        index = np.clip(np.searchsorted(edges, self._values, side="left") - 1, 0, bins - 1)
        self._uniform = np.searchsorted(index, np.arange(bins + 1))  # groups at which bins of equal width begin
        self._harmonic = np.append(0.0, np.cumsum(1 / np.arange(1, len(sure) + 1)))

    def over(self, resamples: int, seed: int) -> dict[str, np.ndarray]:
        """float64 [resamples] of each metric; fewer of ``auroc`` where hardly any resample has both outcomes."""
        random = np.random.default_rng(seed)
        found: dict[str, list[float]] = {}
        for _ in range(10 * resamples):  # those on which a metric is undefined are redrawn
            for name, value in self._of(random.integers(len(self._code), size=len(self._code))).items():
                values = found.setdefault(name, [])
                if len(values) < resamples and not np.isnan(value):
                    values.append(value)
            if all(len(values) == resamples for values in found.values()):
                break
        return {name: np.array(values) for name, values in found.items()}

    def _of(self, drawn: np.ndarray) -> Mapping[str, float]:
        """The metrics of one resample, told by which answers were drawn [N]."""
        count, groups = len(drawn), len(self._values)
        # Counts stay integers: their sums are exact, and twice as fast as those of floats.
        wrong, right = np.bincount(self._code[drawn], minlength=2 * groups).reshape(2, groups)
        both = wrong + right
        number, errors = _before(both), _before(wrong)  # of answers with less than each confidence; the wrong ones
        wrongs = int(errors[-1])
        pairs = wrongs * (count - wrongs)
        above = _product(right, errors[:-1] + errors[1:]) / 2  # pairs of which the right one is surer; ties count half
        # Among equal confidences the errors grow evenly; those of surer answers come before.
        surer = count - number
        missed = (wrongs - errors[1:]) - wrong / np.maximum(both, 1) * surer[1:]
        shares = self._harmonic[surer]
        ends = np.unique(np.searchsorted(number[1:], self._last + 1))
        gaps = right - both * self._values  # [G]: of the answers of each confidence, how many more are right than said

        def error(begins: np.ndarray) -> float:
            held = begins[:-1][np.diff(begins) > 0]  # reduceat takes a bin without groups for one with a single group
            return float(np.abs(np.add.reduceat(gaps, held)).sum()) / count

        return {
            "accuracy": (count - wrongs) / count,
            "confidence": (count - wrongs - float(gaps.sum())) / count,
            "auroc": above / pairs if pairs else float("nan"),
            "ece": error(self._uniform),
            "adaptive_ece": error(np.append(0, ends + 1)),
            "brier": float(self._squares[drawn].mean()),
            "aurc": (_product(missed, shares[:-1] - shares[1:]) + wrongs) / count,
        }


def _before(numbers: np.ndarray) -> np.ndarray:
    """int64 [G + 1]: the sums of the numbers before each place."""
    found = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(numbers, out=found[1:])
    return found


def _product(one: np.ndarray, other: np.ndarray) -> float:
    """The sum of products, on one core: threads of a BLAS take longer to start than this takes."""
    return float(np.einsum("i,i->", one, other))
