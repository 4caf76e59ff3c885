"""Real handwriting: the digits that scikit-learn bundles, and their fixed split into training and test."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmprobe.errors import MissingExtraError

__all__ = ["DIGITS", "Split", "samples", "split"]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEST_SAMPLES = 397
SPLIT_SEED = 20


@dataclass(frozen=True)
class Split:
    """Indices into :func:`samples`, disjoint and exhaustive."""

    train: np.ndarray  # int64 [1400]
    test: np.ndarray  # int64 [397]


@functools.cache
def _bunch() -> Any:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtraError("scikit-learn", "demo") from None
    return load_digits()


def samples() -> tuple[np.ndarray, np.ndarray]:
    """The handwriting: ink in 0 to 1, float32 [1797, 8, 8], and their labels, int64 [1797].

    Source: the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998,
    UCI Machine Learning Repository), as bundled with scikit-learn.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    bunch = _bunch()
    return (bunch.images / 16.0).astype(np.float32), bunch.target.astype(np.int64)


def split() -> Split:
    """The fixed split by sample, the same on every machine and in every version."""
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(samples()[1]))
    return Split(train=np.sort(shuffled[TEST_SAMPLES:]), test=np.sort(shuffled[:TEST_SAMPLES]))
