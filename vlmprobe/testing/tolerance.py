"""Compare rows of logits: tolerances by dtype, and failures that say where and how they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from vlmprobe.testing.report import CheckFailure

__all__ = ["columns_of", "log_softmax", "require_numbers", "require_rows", "scale_of", "tolerances"]

FLOOR = 10.0  # logits up to ten are held to an absolute tolerance, larger ones to a relative one
# Relative to the largest logit: the same arithmetic in the same order ("rows"), and in another order ("paths": with
# a cache, in a batch). In half precision these detect only gross errors, which is why a report states them.
RELATIVE = {
    torch.float64: {"rows": 1e-7, "paths": 1e-6},
    torch.float32: {"rows": 1e-6, "paths": 1e-5},
    torch.float16: {"rows": 4e-3, "paths": 2e-2},
    torch.bfloat16: {"rows": 3e-2, "paths": 1.2e-1},
}
FORBIDDEN = 1e30  # logits that a model sets to the lowest number (masked tokens) do not count for the scale


def tolerances(dtype: torch.dtype, scale: float = 0.0) -> dict[str, float]:
    """The greatest allowed difference of a logit, for ``"rows"`` and ``"paths"``; ``scale`` is the largest logit."""
    return {kind: relative * max(scale, FLOOR) for kind, relative in RELATIVE[dtype].items()}


def scale_of(rows: np.ndarray) -> float:
    """The largest absolute logit, masked entries aside."""
    size = np.abs(rows)
    size = size[size < FORBIDDEN]
    return float(size.max()) if size.size else 0.0


def log_softmax(rows: np.ndarray) -> np.ndarray:
    """Log-probabilities [.., V] of logits [.., V], in float64, computed explicitly."""
    rows = np.asarray(rows, dtype=np.float64)
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def columns_of(rows: np.ndarray, ids: np.ndarray, top_ids: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of tokens ``ids`` [R] and alternatives ``top_ids`` [R, K] under full rows [R, V], in float64."""
    logprobs = log_softmax(rows)
    weighted = np.where(logprobs > -np.inf, np.exp(logprobs) * logprobs, 0.0)
    beyond = ids >= rows.shape[-1]  # some tokenizers have more ids than the head
    chosen = np.minimum(ids, rows.shape[-1] - 1)
    return {
        "logprobs": np.where(beyond, np.nan, logprobs[np.arange(len(ids)), chosen]),
        "logsumexp": rows[:, 0] - logprobs[:, 0],
        "entropy": -weighted.sum(axis=-1),
        "top_logprobs": np.take_along_axis(logprobs, top_ids, axis=-1),
    }


def require_rows(
    came: np.ndarray,
    expected: np.ndarray,
    tolerance: float,
    *,
    of: str,
    path: str,
    names: Sequence[str],
    hints: Callable[[], Sequence[str]] = tuple,
) -> None:
    """Raise :class:`CheckFailure` if rows of logits differ by more than the tolerance.

    Args:
        came: [R, V], reported by the probe.
        expected: [R, V], computed independently.
        tolerance: greatest allowed difference of a logit.
        of: what the rows are, such as ``"prompt rows"``.
        path: how the expected rows were computed.
        names: token and position of each row.
        hints: called on a failure for what the numbers suggest about its cause.
    """
    if came.shape != expected.shape:
        raise CheckFailure(f"{of} of shape {expected.shape}, {path}", f"shape {came.shape}", hints=hints())
    if not came.size:
        return
    gaps = _gaps(came, expected)
    worst_of_row = gaps.max(axis=-1)
    beyond = np.flatnonzero(worst_of_row > tolerance)
    if not len(beyond):
        return
    row = int(worst_of_row.argmax())
    entry = int(gaps[row].argmax())
    raise CheckFailure(
        f"{of} equal to {path} within {tolerance:.1e}; vocabulary entry {entry} has {expected[row, entry]:.6g}",
        f"{came[row, entry]:.6g}, a difference of {worst_of_row[row]:.3g}; {len(beyond)} of {len(came)} rows differ",
        f"worst at {names[row]}; first at {names[beyond[0]]}",
        difference=float(worst_of_row[row]),
        hints=hints(),
    )


def require_numbers(came: Any, expected: Any, tolerance: float, *, of: str, path: str, names: Sequence[str]) -> None:
    """The same for one number per row: ``came`` and ``expected`` are [R]."""
    came, expected = np.asarray(came, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    if came.shape != expected.shape:
        raise CheckFailure(f"{len(expected)} numbers, {path}, for {of}", f"{len(came)} numbers")
    gaps = np.where(np.isnan(came) & np.isnan(expected), 0.0, _gaps(came, expected))  # undefined on both sides
    beyond = np.flatnonzero(gaps > tolerance)
    if len(beyond):
        row = int(gaps.argmax())
        raise CheckFailure(
            f"{of} equal to {path} within {tolerance:.1e}: {expected[row]:.6g}",
            f"{came[row]:.6g}, a difference of {gaps[row]:.3g}; {len(beyond)} of {len(came)} differ",
            f"worst at {names[row]}; first at {names[beyond[0]]}",
            difference=float(gaps[row]),
        )


def _gaps(came: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Absolute differences in float64: zero for equal infinities, infinity for a NaN on one side."""
    came, expected = came.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):  # infinity less infinity, which is equal and so not taken
        gaps = np.where(came == expected, 0.0, np.abs(came - expected))
    return np.where(np.isnan(gaps), np.inf, gaps)
