"""Trust in what is stored: some answered rows are asked again, and must give the same numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vlmprobe.errors import RunError
from vlmprobe.runs.asking import Question, answers
from vlmprobe.runs.keys import Row
from vlmprobe.runs.shards import RESULTS, read_records

__all__ = ["TOLERANCES", "require_same_numbers"]

# Nats by which a token's log-probability may differ between two batches, by dtype of the model.
TOLERANCES = {"float64": 1e-6, "float32": 1e-3}
OTHER = 0.05


def require_same_numbers(
    probe: Any, rows: Iterator[Row], folder: Path, count: int, options: Mapping[str, Any], samples: int | None
) -> Iterator[Row]:
    """Ask the first ``count`` rows again that have an answer, and return all rows.

    Raises:
        RunError: for a row with other tokens, or a log-probability that moved beyond the tolerance of the model's
            dtype, or that fails now.
    """
    columns = ["key", "row", "status", "at", "token_id", "token", "token_logprob"]
    stored = {each["key"]: each for each in read_records(folder / RESULTS, columns).to_pylist()}
    read: list[Row] = []
    chosen: list[Question] = []
    sample = None if samples is None else 0
    for row in rows:
        read.append(row)
        key = row.key if sample is None else f"{row.key}-{sample}"
        if key in stored and stored[key]["status"] == "ok":
            chosen.append(Question(row, row.request(), sample))
            if len(chosen) >= count:
                break
    tolerance = TOLERANCES.get(str(probe.meta.get("dtype")), OTHER)
    for asked in answers(probe, [_unscored(each) for each in chosen], options, "auto", samples is not None):
        where = f"row {asked.question.row.number}"
        if asked.result is None:
            raise RunError(f"{where} was answered before, and fails now: {asked.error}") from asked.error
        before = stored[asked.question.key]
        tokens, logprobs = asked.result.output.tokens, asked.result.output.logprobs
        if list(tokens) != before["token"]:
            raise RunError(
                f"{where} has another answer now: {''.join(before['token'])!r} before, {asked.result.text!r} now"
            )
        moved = np.nanmax(np.abs(np.array(before["token_logprob"], dtype=np.float64) - logprobs), initial=0.0)
        if moved > tolerance:
            raise RunError(
                f"{where}: a log-probability moved by {moved:.3g} nats since it was stored, more than {tolerance:g}; "
                "the model, its libraries or its device compute other numbers"
            )
    return chain(read, rows)


def _unscored(question: Question) -> Question:
    """The same without candidates, which need not be scored again."""
    from dataclasses import replace

    from vlmprobe.probe.request import Request

    request = question.request
    return replace(question, request=Request(request.question, request.image, **request.prompt_options))
