"""The top-k tokens at every position as Parquet, for distillation and for analysis in other tools.

Layout, version 1. One row per token, in order of results, sides and positions:

================  =============  =======================================================================================
column            type           meaning
================  =============  =======================================================================================
``result``        int32          index of the result in the file, from 0
``id``            string         ``id`` of the request, null where it had none
``side``          string         ``prompt`` or ``output``
``position``      int32          position of the token in the model's own sequence
``token_id``      int32          the token
``token``         string         its text
``kind``          string         ``text``, ``special`` or ``image``
``logprob``       float32        log-probability of the token, nats, raw; null where it has none (image, first token)
``logsumexp``     float32        raw logit = log-probability + logsumexp; null likewise
``top_ids``       list<int32>    the K likeliest tokens, best first; null likewise
``top_logprobs``  list<float32>  their log-probabilities, nats, raw
================  =============  =======================================================================================

The mass of all other tokens is 1 minus that of the K. The schema's metadata holds, under ``vlmprobe``, a JSON object
with ``format`` (the version), ``top`` (K), ``vocabulary`` (V, null where no full rows were kept), ``model``,
``adapter``, ``dtype`` and the library versions of the first result. :mod:`vlmprobe.analysis.distillation` reads the
file back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlmprobe.analysis.failures import without_failures
from vlmprobe.errors import MissingExtraError, ResultError
from vlmprobe.results.failure import Failure
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable

__all__ = ["FORMAT", "METADATA", "SIDES", "arrow", "arrow_schema", "top_columns", "write_parquet"]

FORMAT = 1  # version of the layout
METADATA = b"vlmprobe"  # key of the schema's metadata
SIDES = ("prompt", "output")
GROUP_ROWS = 16384  # rows per row group, as many as are held in memory


def write_parquet(
    results: Iterable[Result | Failure],
    path: str | Path,
    *,
    top: int | None = None,
    sides: Sequence[str] = ("output",),
    vocabulary: int | None = None,
) -> Path:
    """Write the top-k of every token of every result to one Parquet file.

    Results are written as they arrive, so a generator (:meth:`Probe.generate_many`) is never held whole in memory.

    Args:
        results: at least one; failures are left out.
        path: of the file; it appears only when it is complete.
        top: K; as many as the first table holds if None. More than a table holds are taken from its full rows.
        sides: ``"output"``, ``"prompt"`` or both.
        vocabulary: V, recorded in the metadata; that of the full rows if they are kept.

    Raises:
        ResultError: for no results, a side that a result lacks, or fewer likeliest tokens than ``top``.
        MissingExtraError: without pyarrow.
    """
    _, parquet = arrow()
    path = Path(path)
    if not sides or not set(sides) <= set(SIDES):
        raise ResultError(f"sides must be among {', '.join(SIDES)}, not {tuple(sides)!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    writer: Any = None
    pending: list[dict[str, Any]] = []
    try:
        for index, result in enumerate(without_failures(results)):
            for side, table in _tables(result, index, sides):
                if writer is None:
                    top = table.top_ids.shape[1] if top is None else top
                    vocabulary = _vocabulary(table, vocabulary)
                    writer = parquet.ParquetWriter(
                        partial, arrow_schema(_described(result, top, vocabulary)), compression="zstd"
                    )
                pending += _rows(result, index, side, table, int(top or 0))
                if len(pending) >= GROUP_ROWS:
                    _flush(writer, pending)
        if writer is None:
            raise ResultError("There are no results to write.")
        _flush(writer, pending)
        writer.close()
        partial.replace(path)
    finally:
        if writer is not None:
            writer.close()
        partial.unlink(missing_ok=True)
    return path


def top_columns(table: TokenTable, top: int) -> tuple[np.ndarray, np.ndarray]:
    """The K likeliest tokens of each row, int64 [T, K] and float32 [T, K], from the columns, else from full rows.

    Raises:
        ResultError: if the table holds fewer.
    """
    held = table.top_ids.shape[1]
    if isinstance(top, bool) or not isinstance(top, (int, np.integer)) or top < 1:
        raise ResultError(f"top must be an integer of at least 1, not {top!r}")
    if top <= held:
        return table.top_ids[:, :top], table.top_logprobs[:, :top]
    if table.logits is None:
        raise ResultError(
            f"The table holds {held} likeliest tokens, not {top}: pass alternatives={top}, or keep='logits'."
        )
    if top > table.logits.shape[1]:
        raise ResultError(f"top={top} is more than the {table.logits.shape[1]} tokens of the vocabulary")
    ids = np.full((len(table), top), -1, np.int64)
    logprobs = np.full((len(table), top), np.nan, np.float32)
    for row in np.flatnonzero(table.scored):
        logits = table.logits[row].astype(np.float64)
        best = np.argpartition(-logits, top - 1)[:top]
        ids[row] = best[np.lexsort((best, -logits[best]))]
        # Normalised by the row's own sum: rows on disk may be rounded, and their probabilities must still sum to 1.
        logprobs[row] = logits[ids[row]] - np.logaddexp.reduce(logits)
    return ids, logprobs


def arrow_schema(described: dict[str, Any]) -> Any:
    """The ``pyarrow.Schema`` of the layout, with its metadata."""
    pyarrow, _ = arrow()
    fields = [
        ("result", pyarrow.int32()),
        ("id", pyarrow.string()),
        ("side", pyarrow.string()),
        ("position", pyarrow.int32()),
        ("token_id", pyarrow.int32()),
        ("token", pyarrow.string()),
        ("kind", pyarrow.string()),
        ("logprob", pyarrow.float32()),
        ("logsumexp", pyarrow.float32()),
        ("top_ids", pyarrow.list_(pyarrow.int32())),
        ("top_logprobs", pyarrow.list_(pyarrow.float32())),
    ]
    return pyarrow.schema(fields, metadata={METADATA: json.dumps(described).encode()})


def arrow() -> tuple[Any, Any]:
    """``pyarrow`` and ``pyarrow.parquet``, or an error that says how to install them."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "arrow") from error
    return pyarrow, parquet


def _tables(result: Result, index: int, sides: Sequence[str]) -> Iterator[tuple[str, TokenTable]]:
    for side in SIDES:
        if side in sides:
            table = getattr(result, side)
            if table is None:
                raise ResultError(f"Result {index} has no {side} side: it was generated with prompt=False.")
            yield side, table


def _vocabulary(table: TokenTable, given: int | None) -> int | None:
    held = None if table.logits is None else table.logits.shape[1]
    if held is not None and given is not None and held != given:
        raise ResultError(f"vocabulary={given}, but the full rows have {held} tokens")
    return given if held is None else held


def _described(result: Result, top: int, vocabulary: int | None) -> dict[str, Any]:
    known = {key: result.meta.get(key) for key in ("model", "revision", "adapter", "dtype", "value_kind", "versions")}
    return {"format": FORMAT, "top": int(top), "vocabulary": vocabulary, **known}


def _rows(result: Result, index: int, side: str, table: TokenTable, top: int) -> list[dict[str, Any]]:
    ids, logprobs = top_columns(table, top)
    request = result.meta.get("id")
    return [
        {
            "result": index,
            "id": None if request is None else str(request),
            "side": side,
            "position": int(table.positions[row]),
            "token_id": int(table.ids[row]),
            "token": table.tokens[row],
            "kind": table.kinds[row],
            "logprob": float(table.logprobs[row]) if known else None,
            "logsumexp": float(table.logsumexp[row]) if known else None,
            "top_ids": ids[row].tolist() if known else None,
            "top_logprobs": logprobs[row].tolist() if known else None,
        }
        for row, known in enumerate(table.scored)
    ]


def _flush(writer: Any, pending: list[dict[str, Any]]) -> None:
    pyarrow, _ = arrow()
    writer.write_table(pyarrow.Table.from_pylist(pending, schema=writer.schema))
    pending.clear()
