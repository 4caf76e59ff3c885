"""Distillation: a teacher's top-k targets, read from Parquet, and the KL divergence of a student from them.

>>> for targets in distillation.read_parquet("teacher.parquet"):
...     student = model(...).logits[0, targets.positions - 1]      # [T, V]: row t - 1 predicts token t
...     loss = distillation.kl_divergence(targets, student)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlmprobe.analysis.export import FORMAT, METADATA, SIDES, arrow, arrow_schema, top_columns
from vlmprobe.analysis.uncertainty import Source, table_of
from vlmprobe.errors import ResultError
from vlmprobe.results.layouts import require_readable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Targets", "describe_parquet", "kl_divergence", "read_parquet", "targets_of"]


@dataclass(frozen=True, eq=False)
class Targets:
    """Teacher targets for T tokens of one side of one result. Tokens without a distribution are left out."""

    result: int  # index of the result in the file
    id: str | None  # of the request
    side: str  # "prompt" or "output"
    positions: Tensor  # int64 [T], in the teacher's own sequence
    token_ids: Tensor  # int64 [T]
    top_ids: Tensor  # int64 [T, K], best first
    top_logprobs: Tensor  # float32 [T, K], nats

    @property
    def tail(self) -> Tensor:
        """float32 [T]: probability of all tokens beyond the K likeliest."""
        return (1 - self.top_logprobs.double().exp().sum(-1)).clamp(0, 1).float()

    def dense(self, vocabulary: int, tail: Literal["spread", "drop"] = "spread") -> Tensor:
        """Log-probabilities of the whole vocabulary, as ``torch.nn.functional.kl_div(..., log_target=True)`` takes.

        Beyond the top-k this is an assumption, not the teacher's output.

        Args:
            vocabulary: V.
            tail: ``"spread"`` shares the remaining mass equally among the other tokens; ``"drop"`` gives them none and
                renormalises the top-k.

        Returns:
            float32 [T, V], nats.
        """
        import torch

        count, known = self.top_ids.shape
        _require_within(self.top_ids, vocabulary)
        if tail not in ("spread", "drop"):
            raise ResultError(f"tail must be 'spread' or 'drop', not {tail!r}")
        if tail == "drop" or known == vocabulary:
            others = torch.full((count, 1), -torch.inf)
            head = self.top_logprobs - self.top_logprobs.logsumexp(-1, keepdim=True)
        else:
            others = (self.tail / (vocabulary - known)).log()[:, None]
            head = self.top_logprobs
        return others.repeat(1, vocabulary).scatter(-1, self.top_ids, head)


def kl_divergence(targets: Targets, logits: Tensor, *, reduction: Literal["mean", "sum", "none"] = "mean") -> Tensor:
    """Kullback-Leibler divergence of a student from the teacher, with all tokens beyond the top-k merged into one.

    ``sum_k p_k log(p_k / q_k) + tail_p log(tail_p / tail_q)``. Merging tokens never raises a divergence, so this is at
    most that over the full vocabulary, and equal to it if the top-k is the whole vocabulary. It is differentiable.

    Args:
        targets: of T tokens.
        logits: the student's, [T, V], at the positions before the tokens.
        reduction: ``"mean"`` over the tokens, ``"sum"``, or ``"none"`` for [T].

    Returns:
        Nats.
    """
    import torch

    if logits.ndim != 2 or len(logits) != len(targets.top_ids):
        raise ResultError(f"logits has shape {tuple(logits.shape)}; the targets are of {len(targets.top_ids)} tokens")
    _require_within(targets.top_ids, logits.shape[-1])
    teacher = targets.top_logprobs.to(logits.device)
    rows = logits.float()
    normal = rows.logsumexp(-1, keepdim=True)
    student = rows.gather(-1, targets.top_ids.to(logits.device)) - normal
    # A token with teacher probability 0 (-inf) contributes 0, where 0 * inf would be NaN.
    terms = torch.where(teacher.isneginf(), 0.0, teacher.exp() * (teacher.clamp_min(-1e30) - student))
    divergence = terms.sum(-1)
    tail = targets.tail.to(logits.device)
    if targets.top_ids.shape[-1] < logits.shape[-1]:
        # The student's tail is summed, not computed as 1 minus the top-k, which would cancel for a confident student.
        rest = rows.scatter(-1, targets.top_ids.to(logits.device), -torch.inf).logsumexp(-1) - normal[:, 0]
        divergence = divergence + torch.special.xlogy(tail, tail) - tail * rest
    if reduction == "none":
        return divergence
    if reduction not in ("mean", "sum"):
        raise ResultError(f"reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
    return divergence.mean() if reduction == "mean" else divergence.sum()


def targets_of(source: Source, top: int | None = None, *, side: str = "output") -> Targets:
    """Targets straight from a table or result, without a file.

    Args:
        source: table or result.
        top: K; as many as the table holds if None.
        side: label of the targets.
    """
    import torch

    table = table_of(source)
    ids, logprobs = top_columns(table, table.top_ids.shape[1] if top is None else top)
    rows = table.scored
    return Targets(
        result=0,
        id=None,
        side=side,
        positions=torch.tensor(table.positions[rows]),
        token_ids=torch.tensor(table.ids[rows]),
        top_ids=torch.tensor(ids[rows]),
        top_logprobs=torch.tensor(logprobs[rows]),
    )


def read_parquet(path: str | Path) -> Iterator[Targets]:
    """Targets of every side of every result of a file, in file order, with one row group in memory at a time.

    Raises:
        ResultError: if the file was not written by :func:`~vlmprobe.analysis.export.write_parquet`, was written by a
            later vlmprobe, or has rows that do not match its schema.
    """
    file = _opened(path)
    rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
    for (result, side), group in groupby(rows, key=lambda row: (row["result"], row["side"])):
        yield _targets(result, side, list(group), path)


def describe_parquet(path: str | Path) -> dict[str, Any]:
    """The metadata of a file: layout, K, vocabulary, model and versions."""
    return _described(_opened(path), path)


def _opened(path: str | Path) -> Any:
    pyarrow, parquet = arrow()
    try:
        file = parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ResultError(f"{path} cannot be read as Parquet ({type(error).__name__}: {error}).") from error
    _described(file, path)
    wanted = arrow_schema({})
    if not file.schema_arrow.equals(wanted, check_metadata=False):
        raise ResultError(f"{path} does not have the columns of layout {FORMAT}: {', '.join(file.schema_arrow.names)}.")
    return file


def _described(file: Any, path: str | Path) -> dict[str, Any]:
    try:
        described = json.loads((file.schema_arrow.metadata or {}).get(METADATA, b"null"))
    except ValueError:
        described = None
    if not isinstance(described, dict) or "format" not in described:
        raise ResultError(f"{path} was not written by vlmprobe.analysis.export.write_parquet.")
    require_readable(path, described["format"], FORMAT)
    return described


def _targets(result: int, side: str, rows: list[dict[str, Any]], path: str | Path) -> Targets:
    import torch

    rows = [row for row in rows if row["top_logprobs"] is not None]
    known = {len(row["top_ids"] or ()) for row in rows} | {len(row["top_logprobs"]) for row in rows}
    if side not in SIDES or len(known) > 1 or any(row["position"] is None or row["token_id"] is None for row in rows):
        raise ResultError(f"{path}: the rows of result {result} do not form a table with a single K.")
    width = known.pop() if known else 0
    return Targets(
        result=result,
        id=rows[0]["id"] if rows else None,
        side=side,
        positions=torch.tensor([row["position"] for row in rows], dtype=torch.int64),
        token_ids=torch.tensor([row["token_id"] for row in rows], dtype=torch.int64),
        top_ids=torch.tensor([row["top_ids"] for row in rows], dtype=torch.int64).reshape(len(rows), width),
        top_logprobs=torch.tensor([row["top_logprobs"] for row in rows], dtype=torch.float32).reshape(len(rows), width),
    )


def _require_within(ids: Tensor, vocabulary: int) -> None:
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ResultError(f"The targets have token ids outside a vocabulary of {vocabulary}.")
