"""What is understood of a data set, told from its first row before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmprobe.errors import MessageError
from vlmprobe.runs.columns import Naming
from vlmprobe.runs.data import Data
from vlmprobe.runs.images import Images
from vlmprobe.runs.keys import Reader

__all__ = ["understood"]

LONGEST = 60  # characters of a cell


def understood(data: Data, naming: Naming) -> list[str]:
    """Lines that say how the first row is read.

    Raises:
        MessageError: for a data set without rows or questions.
    """
    reader = Reader(naming, Images(data.root), data.unkept)
    if data.names is not None:
        reader.columns(data.names)
    raw = next(data.rows(), None)
    if raw is None:
        raise MessageError(f"The {data.what} has no rows.")
    if isinstance(raw, Exception):
        raise MessageError(f"The first row of the {data.what} cannot be read: {raw}")
    columns = reader.columns(raw)
    row = reader.row(0, raw)
    size = "" if data.total is None else f", {data.total:,} rows"
    told = [f"{data.what[:1].upper()}{data.what[1:]}{size}. The first row:"]
    template = " (from the template)" if naming.template is not None else f" ({columns.of['question']})"
    told.append(f"  question{template}: {_short(row.question)}")
    if row.images or "image" in columns.of:
        named = ", ".join(_short(seen.path or "pixels") for seen in row.images) or "none"
        told.append(f"  image ({columns.of.get('image', 'messages')}): {named}{_unread(row, data.root)}")
    if "candidates" in columns.of:
        told.append(f"  candidates ({columns.of['candidates']}): {_short(raw[columns.of['candidates']])}")
    told.append(f"  id: {_short(row.id)}" if "id" in columns.of else "  id: none; rows are known by their number")
    carried = [f"{name} {_short(value)}" for name, value in row.carry.items()]
    if carried:
        told.append(f"  kept with the answer: {', '.join(carried)}")
    if columns.left_out:
        told.append(f"  left out, for they hold bytes: {', '.join(columns.left_out)}")
    try:
        row.request()
    except Exception as error:  # noqa: BLE001 - of this row, the others may do
        told.append(f"  This row cannot be asked: {error}")
    return told


def _unread(row: Any, root: Path | None) -> str:
    missing = [seen for seen in row.images if seen.hash.startswith("unread:")]
    return f" - cannot be read, looked for in {root}" if missing else ""


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
