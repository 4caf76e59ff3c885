"""Hashes of image files from one run to the next, so that a start reads none of a million images again."""

from __future__ import annotations

from pathlib import Path

from vlmprobe.runs.data import require_arrow
from vlmprobe.runs.files import put_in_place
from vlmprobe.runs.images import Known
from vlmprobe.runs.shards import Part

__all__ = ["FOLDER", "read_known", "write_known"]

FOLDER = "images"


def read_known(folder: Path) -> dict[str, Known]:
    """What all parts remember; what cannot be read is hashed again."""
    pa = require_arrow()
    from pyarrow import parquet

    found: dict[str, Known] = {}
    for path in folder.glob("*.parquet"):
        try:
            columns = parquet.read_table(path).to_pydict()
            states = zip(columns["size"], columns["time"], columns["hash"], strict=True)
            found.update(zip(columns["path"], states, strict=True))
        except (OSError, LookupError, pa.ArrowException):
            continue
    return found


def write_known(folder: Path, part: Part, known: dict[str, Known]) -> None:
    """Remember what this part knows."""
    pa = require_arrow()
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    sizes, times, hashes = list(zip(*known.values(), strict=True)) or ((), (), ())
    columns = {
        "path": pa.array([path.encode("utf-8", "replace").decode() for path in known], pa.string()),
        "size": pa.array(sizes, pa.int64()),
        "time": pa.array(times, pa.int64()),
        "hash": pa.array(hashes, pa.string()),
    }
    put_in_place(
        folder / f"{part.name}.parquet",
        lambda unfinished: parquet.write_table(pa.table(columns), unfinished, compression="zstd"),
    )
