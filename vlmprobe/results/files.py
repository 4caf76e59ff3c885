"""Loads results saved by this version of vlmprobe or an earlier one."""

from __future__ import annotations

import json
from pathlib import Path

from vlmprobe.errors import ResultError
from vlmprobe.results.grouped import GroupedScores, YesNo
from vlmprobe.results.layouts import require_readable
from vlmprobe.results.result import ARRAYS, DOCUMENT, FORMAT, Result, Scores

__all__ = ["load_result"]

KINDS: dict[str, type[Result] | type[Scores]] = {each.__name__: each for each in (Result, Scores, GroupedScores, YesNo)}


def load_result(path: str | Path) -> Result | Scores:
    """Load what :meth:`Result.save` or :meth:`Scores.save` wrote, in this version of vlmprobe or an earlier one.

    Raises:
        ResultError: if nothing is there, or it was not written by vlmprobe, or by a later version.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    path = Path(path)
    file = path / ARRAYS if path.is_dir() else path
    if not file.is_file():
        raise ResultError(f"No saved result at {path}: it has no {ARRAYS}." if path.is_dir() else f"No file at {path}.")
    damages = (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
    try:
        if path.is_dir():
            text = (path / DOCUMENT).read_text(encoding="utf-8")
        else:
            with safe_open(file, framework="np") as opened:
                text = (opened.metadata() or {}).get("vlmprobe", "")
        document = json.loads(text)
        layout = document["format"]  # vlmprobe 0.1 wrote it too
    except damages as error:
        raise _damaged(path, error) from error
    require_readable(path, layout, FORMAT)
    try:
        if not isinstance(document["meta"], dict):
            raise ResultError("its meta is not a mapping")
        return KINDS[document["type"]]._from_parts(load_file(file), document)
    except damages as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ResultError:
    return ResultError(f"{path} is not a result that vlmprobe saved ({type(error).__name__}: {error}).")
