"""``written``: text to a file of its own kind, and to no other."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vlmprobe.errors import ResultError
from vlmprobe.results.replacing import replacing

__all__ = ["ELSEWHERE", "written"]

HEAD = 4096  # bytes of a file that say what it is
KINDS = {"html": "an HTML page", "json": "JSON"}
ELSEWHERE = {  # ending of a file: what writes such a file
    ".json": "to_json(path)",
    ".html": "to_html(path)",
    ".htm": "to_html(path)",
    ".csv": "to_pandas().to_csv(path)",
    ".parquet": "to_pandas().to_parquet(path)",
    ".xlsx": "to_pandas().to_excel(path)",
}


def written(text: str, path: str | Path | None, kind: Literal["html", "json"]) -> str | Path:
    """The text, or the path that it was written to, whole or not at all.

    Args:
        text: of a page, or JSON.
        path: a file that does not exist yet, is empty, or holds the same kind; None writes none.
        kind: of the text.

    Raises:
        ResultError: for a file that holds something else, such as the image that was asked about.
        OSError: if it cannot be written.
    """
    if path is None:
        return text
    path = Path(path)
    if path.is_file() and not _is_of_kind(path, kind):
        raise ResultError(f"{path} exists and is not {KINDS[kind]}: name another file, or remove it.")
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def _is_of_kind(path: Path, kind: str) -> bool:
    with path.open("rb") as file:
        head = file.read(HEAD).lstrip(b"\xef\xbb\xbf").strip().lower()
    if not head:
        return True
    return head[:1] in (b"{", b"[") if kind == "json" else b"<html" in head or b"<!doctype html" in head
