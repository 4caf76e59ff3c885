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
        wrong, right = np.bincount(self._code[drawn], minlength=2 * groups).astype(np.float64).reshape(2, groups)
        both = wrong + right
        # Of the answers with less than each confidence: how many, how many of them wrong, and their confidences.
        number, errors, sure = (_before(each) for each in (both, wrong, both * self._values))
        wrongs = errors[-1]
        pairs = wrongs * (count - wrongs)
        above = _product(right, errors[:-1] + wrong / 2)  # pairs of which the right one is surer
        # Among equal confidences the errors grow evenly; those of surer answers come before.
        rate = wrong / np.maximum(both, 1)
        missed = wrongs - errors[1:] - rate * (count - number[1:])
        shares = self._harmonic[(count - number).astype(np.int64)]
        ends = np.unique(np.searchsorted(number[1:], self._last + 1))

        def error(begins: np.ndarray) -> float:
            gaps = np.diff((number - errors - sure)[begins])
            return float(np.abs(gaps).sum()) / count

        return {
            "accuracy": float(count - wrongs) / count,
            "confidence": float(sure[-1]) / count,
            "auroc": above / pairs if pairs else float("nan"),
            "ece": error(self._uniform),
            "adaptive_ece": error(np.append(0, ends + 1)),
            "brier": float(self._squares[drawn].mean()),
            "aurc": (_product(missed, shares[:-1] - shares[1:]) + wrongs) / count,
        }


def _before(numbers: np.ndarray) -> np.ndarray:
    """float64 [G + 1]: the sums of the numbers before each place."""
    found = np.empty(len(numbers) + 1)
    found[0] = 0.0
    np.cumsum(numbers, out=found[1:])
    return found


def _product(one: np.ndarray, other: np.ndarray) -> float:
    """The sum of products, on one core: threads of a BLAS take longer to start than this takes."""
    return float(np.einsum("i,i->", one, other))
