"""A record of a row: its answer in numbers, or why it failed. No pixels; tokens as lists side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from vlmprobe.errors import VlmprobeError
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.table import TokenTable
from vlmprobe.runs.data import require_arrow
from vlmprobe.runs.fields import PROMPT, TOKENS, schema
from vlmprobe.runs.keys import Row

__all__ = ["answered", "column", "failed", "size_of", "table_of", "together"]

TOKEN_BYTES, ALTERNATIVE_BYTES = 200, 100  # of Python objects, about
ERROR_CHARACTERS = 2000  # of a message: those of some libraries hold whole tensors


def answered(row: Row, key: str, result: Result, scores: Scores | None, prompt: bool) -> dict[str, Any]:
    """The record of an answer, and of the scores of its candidates.

    Args:
        row: that was asked.
        key: of the row, or of this sample of it.
        result: the answer.
        scores: None without candidates.
        prompt: whether the tokens of the prompt are recorded.
    """
    output, meta = result.output, result.meta
    known = output.logprobs[output.scored]
    entropy = output.entropy[~np.isnan(output.entropy)]
    batch = int(meta.get("batch_size") or 1)
    seconds = sum(meta.get("timings", {}).values()) / batch
    if scores is not None:
        seconds += sum(scores.meta.get("timings", {}).values())
    found = _about(row, key, "ok", [list(map(int, each)) for each in meta.get("image_sizes", [])])
    found |= {
        "text": result.text,
        "finish_reason": meta.get("finish_reason"),
        "value_kind": meta.get("value_kind"),
        "confidence": _number(result.confidence),
        "logprob": _number(output.logprob),
        "n_tokens": len(output),
        "mean_entropy": _number(entropy.mean()) if len(entropy) else None,
        "lowest_logprob": _number(known.min()) if len(known) and not output.bounded else None,
        "prompt_sum": None if result.prompt is None else _number(result.prompt.logprob),
        "n_prompt": None if result.input_ids is None else len(result.input_ids),
        "seconds": seconds,
        "batch_size": batch,
        **_tokens(output, TOKENS),
    }
    if scores is not None:
        found |= {
            "best": scores.best if scores.decided and not np.isnan(scores.logprobs).all() else None,
            "candidates": scores.candidates,
            "candidate_logprobs": [_number(each) for each in scores.logprobs],
            "mass": _number(scores.mass),
        }
    if prompt and result.prompt is not None:
        found |= _tokens(result.prompt, PROMPT)
    return found


def failed(row: Row, key: str, error: BaseException) -> dict[str, Any]:
    """The record of a row that failed."""
    message = str(error).removeprefix(f"request {row.number}: ")[:ERROR_CHARACTERS].encode("utf-8", "replace").decode()
    kind = type(error).__name__ if isinstance(error, VlmprobeError) else _qualified(error)
    return _about(row, key, "failed", []) | {"error_type": kind, "error": message}


def size_of(record: Mapping[str, Any]) -> int:
    """About how many bytes a record takes in memory: texts by their length, tokens by their number."""
    texts = sum(len(value) for value in record.values() if type(value) is str)
    tokens = (record.get("n_tokens") or 0) + len(record.get("prompt_token") or ())
    alternatives = record["top_ids"].shape[1] if record.get("n_tokens") else 0
    return texts + tokens * (TOKEN_BYTES + alternatives * ALTERNATIVE_BYTES) + _size(record.get("carry"))


def table_of(records: Sequence[Mapping[str, Any]], prompt: bool = False) -> Any:
    """Records as a ``pyarrow.Table``: id and carried columns after the row's number."""
    pa = require_arrow()
    types = schema(prompt)
    columns = {field.name: _cells([each.get(field.name) for each in records], field.type) for field in types}
    own = {"id": column([each["id"] for each in records])}
    for name in dict.fromkeys(name for each in records for name in each["carry"]):
        own[name] = column([each["carry"].get(name) for each in records])
    first = {name: columns.pop(name) for name in ("key", "row")}
    return pa.table({**first, **own, **columns})


def _cells(values: list[Any], kind: Any) -> Any:
    """Cells of a known type as a ``pyarrow.Array``; lists may be arrays, [T] or, of lists in lists, [T, K]."""
    pa = require_arrow()
    held = [each for each in values if isinstance(each, np.ndarray)]
    if not held:
        return pa.array(values, kind)
    leaf = kind.value_type.value_type if held[0].ndim == 2 else kind.value_type
    inner = pa.array(np.concatenate([each.ravel() for each in held])).cast(leaf)
    if held[0].ndim == 2:
        widths = np.repeat([each.shape[1] for each in held], list(map(len, held)))
        inner = pa.ListArray.from_arrays(_offsets(widths), inner)
    lengths = [0 if each is None else len(each) for each in values]
    return pa.ListArray.from_arrays(_offsets(lengths), inner, mask=pa.array([each is None for each in values]))


def _offsets(lengths: Any) -> Any:
    """Where lists of these lengths begin and end in their elements."""
    return require_arrow().array(np.concatenate([[0], np.cumsum(lengths)]), "int32")


def column(values: list[Any]) -> Any:
    """Cells as a ``pyarrow.Array``: of their own type, or texts (JSON of what is no text) if they have several."""
    pa = require_arrow()
    if all(each is None for each in values):
        return pa.array(values, pa.string())
    numbers = {type(each) for each in values if each is not None}
    if numbers <= {int, float} and len(numbers) == 2:
        values = [None if each is None else float(each) for each in values]
    try:
        found = pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        return pa.array([_text(each) for each in values], pa.string())
    return found if not _holds_null(found.type) else pa.array([_text(each) for each in values], pa.string())


def together(tables: Iterable[Any]) -> Any:
    """Tables of records as one; a column that has several types becomes texts.

    Args:
        tables: ``pyarrow.Table`` each.
    """
    pa = require_arrow()
    listed = list(tables)
    try:
        return pa.concat_tables(listed, promote_options="permissive")
    except pa.ArrowException:
        names = dict.fromkeys(name for each in listed for name in each.column_names)
        for name in names:
            kinds = {each.schema.field(name).type for each in listed if name in each.column_names}
            if not _agree(kinds):
                listed = [_as_text(each, name) for each in listed]
        return pa.concat_tables(listed, promote_options="permissive")


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) + 8 if isinstance(value, (list, tuple)) else 8


def _about(row: Row, key: str, status: str, sizes: Sequence[Sequence[int]]) -> dict[str, Any]:
    known: list[Any] = [*sizes]
    shapes = known if len(known) == len(row.images) else [(None, None)] * len(row.images)
    return {
        "key": key,
        "row": row.number,
        "id": row.id,
        "carry": row.carry,
        "status": status,
        "question": row.question.encode("utf-8", "replace").decode(),
        "images": [
            {"path": seen.path, "bytes": seen.bytes, "hash": seen.hash, "width": width, "height": height}
            for seen, (width, height) in zip(row.images, shapes, strict=True)
        ],
        "at": datetime.fromtimestamp(time.time(), UTC),
    }


def _tokens(table: TokenTable, columns: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Columns of a table; arrays as they are, since lists of numbers are many objects to make and to keep."""
    found = {name: getattr(table, of) for name, (of, _) in columns.items()}
    for name in ("top_tokens", "prompt_top_tokens"):
        if name in found:
            found[name] = [list(each) for each in found[name]]
    return found


def _number(value: Any) -> float | None:
    """A number, or None for NaN; SQL treats NaN as greater than any number."""
    number = float(value)
    return number if number == number else None


def _qualified(error: BaseException) -> str:
    kind = type(error)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace").decode()


def _holds_null(kind: Any) -> bool:
    """Whether a type is unknown somewhere inside, as that of a list that is empty in all rows."""
    return "null" in str(kind)


def _agree(kinds: set[Any]) -> bool:
    pa = require_arrow()
    try:
        pa.unify_schemas([pa.schema([("it", kind)]) for kind in kinds], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _as_text(table: Any, name: str) -> Any:
    if name not in table.column_names:
        return table
    pa = require_arrow()
    place = table.column_names.index(name)
    texts = pa.array([_text(each) for each in table.column(place).to_pylist()], pa.string())
    return table.set_column(place, name, texts)
