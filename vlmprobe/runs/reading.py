"""The rows of a data set that a process takes: one by one, or in blocks where they are of the common kind."""

from __future__ import annotations

from collections.abc import Iterator

from vlmprobe.runs.block_keys import Keyed, keyed
from vlmprobe.runs.data import Data
from vlmprobe.runs.keys import Reader, Row
from vlmprobe.runs.shards import Part

__all__ = ["blocks_of", "rows_of"]


def rows_of(data: Data, reader: Reader, part: Part, limit: int | None) -> Iterator[Row]:
    """The rows of a part, of the first ``limit``."""
    for number, raw in enumerate(data.rows()):
        if limit is not None and number >= limit:
            return
        if part.takes(number):
            yield reader.row(number, raw)


def blocks_of(data: Data, reader: Reader, part: Part, limit: int | None) -> Iterator[Row | Keyed]:
    """The same rows in the same order, many at once where that gives the same keys."""
    if data.blocks is None:
        yield from rows_of(data, reader, part, limit)
        return
    number = 0  # of the block's first row
    for block in data.blocks():
        if limit is not None and number + len(block) > limit:
            block = block.first(limit - number)
        places = range((part.number - number) % part.of, len(block), part.of)
        found = keyed(reader, block, number, places)
        if found is not None:
            yield found
        elif places:
            rows = block.rows()
            yield from (reader.row(number + place, rows[place]) for place in places)
        number += len(block)
        if number == limit:
            return
