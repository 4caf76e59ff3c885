"""Tables of requests: rows of data frames and data sets, and their cells as plain Python values.

pandas, polars, pyarrow and ``datasets`` are recognised by their methods and never imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from datetime import date, datetime, time
from difflib import get_close_matches
from typing import Any

import numpy as np

from vlmprobe.errors import MessageError
from vlmprobe.inputs.prompt_format import PROMPT_OPTIONS
from vlmprobe.probe.misplaced import require_not_misplaced

__all__ = [
    "COLUMNS",
    "IMAGES",
    "QUESTIONS",
    "further_columns",
    "is_table",
    "listed",
    "missing",
    "plain",
    "records_of",
    "require_carried",
    "rows_of",
    "scalar",
]

QUESTIONS = ("question", "prompt")
IMAGES = ("image", "images")
COLUMNS = (*QUESTIONS, *IMAGES, "candidates", "id", *PROMPT_OPTIONS)  # read; all others are carried into meta
# What results record themselves, of any engine.
RECORDED = frozenset(
    {
        "model",
        "revision",
        "adapter",
        "peft",
        "engine",
        "engine_version",
        "url",
        "dtype",
        "device",
        "versions",
        "resize",
        "image_sizes",
        "image_digests",
        "image_features",
        "value_kind",
        "generation_config",
        "logits_processor",
        "seed",
        "batch_size",
        "timings",
        "phases",
        "begin",
        "branch",
        "finish_reason",
        "logits_file",
        "server_reasoning",
        "text_of_ids",
        "prompt_positions",
        "logprobs_mode",
        "absent",
        "prefix",
    }
)
CHUNK = 64  # rows of an Arrow table that are converted at once


def is_table(source: Any) -> bool:
    """Whether something is a data frame or a data set, with columns."""
    return _columns(source) is not None


def records_of(source: Any) -> tuple[list[Any], Iterator[Mapping[str, Any]]] | None:
    """The columns of a table and its rows, whatever they are called; None for what is no table."""
    names = _columns(source)
    return None if names is None else (names, _records(source, names))


def rows_of(source: Any, caller: str) -> tuple[Iterator[Any], int | None]:
    """The requests of a list, an iterator or a table, and how many there are, if known.

    Args:
        source: a list or iterator of requests in any form, or a table, of which each row is a mapping.
        caller: name of the function, for error messages.

    Raises:
        MessageError: for anything else, or a table without a question column, or with a column that cannot be carried.
    """
    names = _columns(source)
    total = len(source) if isinstance(source, Sized) else None
    if names is not None:
        further_columns(names, "the table")
        return _records(source, names), total
    # Requests are told by their attributes, since the module of Request imports this one.
    single = isinstance(source, (str, bytes, Mapping)) or hasattr(source, "question")
    if not single and isinstance(source, Iterable):
        return iter(source), total
    remedy = "for a single request use generate"
    if isinstance(source, Mapping) and any(is_table(each) for each in source.values()):
        remedy = f"pass one of {', '.join(map(repr, source))} of it"
    elif hasattr(source, "collect"):
        remedy = "call its collect() first"
    raise MessageError(f"{caller} takes a list of requests or a table, not {type(source).__name__}; {remedy}")


def further_columns(names: Iterable[Any], what: str = "this one") -> list[str]:
    """The names of the columns that are carried into ``meta``.

    Args:
        names: of all columns of a table, or keys of a request.
        what: has them, for error messages.

    Raises:
        MessageError: without a question, with two names of the same, or for a column that cannot be carried: it is not
            named by a string, vlmprobe records one of that name itself, or it is likely a misnamed image or an option.
    """
    names = list(names)
    shown = ", ".join(repr(str(name)) for name in names) or "none"
    if not set(QUESTIONS) & set(names):
        known = [str(name) for name in names]
        likely = get_close_matches("question", known, n=1) or get_close_matches("prompt", known, n=1)
        which = repr(likely[0]) if likely else "the one with the questions"
        told = f"a request has a 'question' (or 'prompt'); the columns of {what} are {shown}."
        raise MessageError(f"{told} Rename {which} to 'question'.")
    for one, other in (QUESTIONS, IMAGES):
        if one in names and other in names:
            raise MessageError(f"{what} has {one!r} and {other!r}, which are the same: rename one of the two")
    repeated = {str(name) for name in names if names.count(name) > 1}
    if repeated:
        raise MessageError(f"{what} has several columns {', '.join(map(repr, sorted(repeated)))}: leave one of each")
    further = [name for name in names if name not in COLUMNS]
    require_carried(further)
    for name in further:
        require_not_misplaced(name, names, IMAGES)
    return further


def require_carried(names: Iterable[Any]) -> None:
    """Reject names of further columns that are not strings, or that vlmprobe records itself.

    Raises:
        MessageError: it names the column.
    """
    for name in names:
        if not isinstance(name, str):
            raise MessageError(f"column {name!r} is not named by a string: rename it, or leave it out")
        if name in RECORDED or name in COLUMNS:
            raise MessageError(f"column {name!r} has a name that vlmprobe records in meta itself: rename the column")


def missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, NaT or pandas' NA."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    kinds = (float, np.floating, np.datetime64, np.timedelta64)
    return isinstance(value, kinds) and bool(value != value)


def scalar(value: Any) -> Any:
    """A value as it is, but None for a missing one, and a Python scalar for one of NumPy or Arrow."""
    if missing(value):
        return None
    if isinstance(value, np.generic):
        return value.item()
    return value.as_py() if hasattr(value, "as_py") else value


def listed(value: Any) -> Any:
    """A value with the arrays of objects and strings in it, as pandas holds lists in cells, as lists."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        value = value.tolist()
    if isinstance(value, list):
        return [listed(each) for each in value]
    if isinstance(value, Mapping):
        return {key: listed(each) for key, each in value.items()}
    return scalar(value)


def plain(value: Any, name: str) -> Any:
    """A cell as data that a result can keep: None, strings, numbers, and lists and mappings of them.

    Args:
        value: a missing one becomes None, a date its ISO text, an array or tensor a list.
        name: of the column, for error messages.

    Raises:
        MessageError: for anything else, such as an image.
    """
    if missing(value):
        return None
    if isinstance(value, (str, bool, int, float)) and not isinstance(value, np.generic):
        return value
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, np.datetime64):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist") or hasattr(value, "as_py"):
        held = value.tolist() if hasattr(value, "tolist") else value.as_py()
        if type(held) is not type(value):
            return plain(held, name)
    if isinstance(value, Mapping):
        return {str(key): plain(each, name) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each, name) for each in value]
    raise MessageError(
        f"column {name!r} holds {type(value).__name__}, which a result cannot keep: leave the column out, or make it "
        "strings or numbers (images are read from 'image')"
    )


def _columns(source: Any) -> list[Any] | None:
    """The column names of a table; None if it is no table, or does not know them."""
    if hasattr(source, "itertuples"):  # pandas
        return [*source.columns, "id"] if _index_is_id(source) else list(source.columns)
    if hasattr(source, "iter_rows"):  # polars
        return list(source.columns)
    if hasattr(source, "to_batches") or hasattr(source, "features"):  # a pyarrow table, a data set
        names = getattr(source, "column_names", None)
        return None if names is None or isinstance(names, Mapping) else list(names)
    if hasattr(source, "to_pylist") and hasattr(source, "schema"):  # a pyarrow record batch
        return list(source.schema.names)
    return None


def _records(source: Any, names: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    if hasattr(source, "itertuples"):
        rows: Iterator[tuple[Any, ...]] = source.itertuples(index=False, name=None)
        if _index_is_id(source):
            rows = ((*row, id) for row, id in zip(rows, source.index.get_level_values("id"), strict=True))
        return (dict(zip(names, row, strict=True)) for row in rows)
    if hasattr(source, "iter_rows"):
        return (dict(zip(names, row, strict=True)) for row in source.iter_rows())
    if hasattr(source, "to_pylist"):
        starts = range(0, source.num_rows, CHUNK)
        return (row for start in starts for row in source.slice(start, CHUNK).to_pylist())
    return iter(source)


def _index_is_id(frame: Any) -> bool:
    """Whether the ids of a pandas frame are in its index, as ``set_index("id")`` puts them there."""
    return "id" in getattr(getattr(frame, "index", None), "names", ()) and "id" not in list(frame.columns)
