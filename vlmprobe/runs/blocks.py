"""Rows of a data set many at a time: as columns where a file has columns, so that no row is made that is not asked."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Protocol

__all__ = ["Batch", "Block", "Listed"]


class Block(Protocol):
    """Rows that follow one another."""

    def __len__(self) -> int:
        """How many."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """The columns; None if the rows have different ones."""

    def column(self, name: str) -> list[Any]:
        """The cells of a column."""

    def rows(self) -> list[Any]:
        """All rows, as :attr:`Data.rows` gives them."""

    def row(self, place: int) -> Any:
        """One of them."""

    def first(self, count: int) -> Block:
        """The first of them."""


class Listed:
    """Rows as they were read one by one."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def names(self) -> tuple[str, ...] | None:
        """The columns, if every row has the same in the same order."""
        kinds = {tuple(row) if isinstance(row, Mapping) else None for row in self._rows}
        return kinds.pop() if len(kinds) == 1 else None

    def column(self, name: str) -> list[Any]:
        """The cells of a column."""
        return [row[name] for row in self._rows]

    def rows(self) -> list[Any]:
        """All rows."""
        return self._rows

    def row(self, place: int) -> Any:
        """One of them."""
        return self._rows[place]

    def first(self, count: int) -> Listed:
        """The first of them."""
        return Listed(self._rows[:count])


class Batch:
    """Rows of a ``pyarrow.RecordBatch``.

    Args:
        batch: that holds them.
        empty: whether a cell without text holds nothing, as in CSV.
    """

    def __init__(self, batch: Any, empty: bool = False) -> None:
        self._batch, self._empty = batch, empty

    def __len__(self) -> int:
        return len(self._batch)

    @property
    def names(self) -> tuple[str, ...] | None:
        """The columns; None if two have one name."""
        names = tuple(self._batch.schema.names)
        return names if len(set(names)) == len(names) else None

    def column(self, name: str) -> list[Any]:
        """The cells of a column."""
        cells: list[Any] = _cells(self._batch.column(name))
        return [None if cell == "" else cell for cell in cells] if self._empty else cells

    def rows(self) -> list[Any]:
        """All rows, as mappings."""
        found: list[Any] = self._batch.to_pylist()
        if self._empty:
            return [{name: None if cell == "" else cell for name, cell in row.items()} for row in found]
        return found

    def row(self, place: int) -> Any:
        """One of them."""
        return Batch(self._batch.slice(place, 1), self._empty).rows()[0]

    def first(self, count: int) -> Batch:
        """The first of them."""
        return Batch(self._batch.slice(0, count), self._empty)


def _cells(column: Any) -> list[Any]:
    """``column.to_pylist()``; lists of texts, which it makes one element at a time, in less time."""
    import pyarrow as pa

    kind = column.type
    if not isinstance(kind, pa.ListType) or kind.value_type != pa.string():
        found: list[Any] = column.to_pylist()
        return found
    texts, starts = column.values.to_pylist(), column.offsets.to_pylist()
    lists: list[Any] = [texts[start:end] for start, end in pairwise(starts)]
    if column.null_count:
        lists = [each if held else None for each, held in zip(lists, column.is_valid().to_pylist(), strict=True)]
    return lists
