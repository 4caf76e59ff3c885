"""Loads results saved by this version of vlmprobe or an earlier one; saves and loads folders of them."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL.Image import DecompressionBombError

from vlmprobe.errors import ResultError, VlmprobeWarning, outside
from vlmprobe.results.grouped import GroupedScores, YesNo
from vlmprobe.results.layouts import require_readable
from vlmprobe.results.result import ARRAYS, DOCUMENT, FORMAT, SECOND_ARRAYS, Result, Scores

__all__ = ["load_result", "load_results", "save_results"]

KINDS: dict[str, type[Result] | type[Scores]] = {each.__name__: each for each in (Result, Scores, GroupedScores, YesNo)}


def load_result(path: str | Path) -> Result | Scores:
    """Load what :meth:`Result.save` or :meth:`Scores.save` wrote, in this version of vlmprobe or an earlier one.

    Raises:
        ResultError: if nothing is there, or it was not written by vlmprobe, or by a later version.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import load_file

    path = Path(path)
    file = path / DOCUMENT if path.is_dir() else path
    if not file.is_file():
        told = f"No saved result at {path}: it has no {DOCUMENT}. load_results reads a folder of several."
        raise ResultError(told if path.is_dir() else f"No file at {path}.")
    misread = (ValueError, LookupError, TypeError, AttributeError, RecursionError)
    damages = (SafetensorError, OSError, DecompressionBombError, *misread)
    try:
        if path.is_dir():
            text = file.read_text(encoding="utf-8")
        else:
            with safe_open(file, framework="np") as opened:
                text = (opened.metadata() or {}).get("vlmprobe", "")
        document = json.loads(text)
        layout = document["format"]  # vlmprobe 0.1 wrote it too
        if path.is_dir():
            file = path / _arrays_of(document)
    except damages as error:
        raise _damaged(path, error) from error
    require_readable(path, layout, FORMAT)
    try:
        if not isinstance(document["meta"], dict):
            raise ResultError("its meta is not a mapping")
        return KINDS[document["type"]]._from_parts(load_file(file), document)
    except damages as error:
        raise _damaged(path, error) from error


def _arrays_of(document: dict[str, Any]) -> str:
    name = document.get("arrays", ARRAYS)  # layout 1 does not name it
    if name not in (ARRAYS, SECOND_ARRAYS):
        raise ValueError(f"arrays are in {name!r}")
    return str(name)


def save_results(results: Iterable[Result | Scores | Any], folder: str | Path) -> list[Path]:
    """Save results to a folder, one file each, as they come; :func:`load_results` reads them back in this order.

    A file is named after its place and the id of its request (:func:`file_name`). Failures cannot be saved; one
    warning counts them.

    Raises:
        ResultError: if the folder holds results already.
    """
    folder = Path(folder)
    if folder.is_dir() and any(_saved_in(folder)):
        raise ResultError(f"{folder} holds results already: save to another folder, or delete it.")
    written, failed = [], 0
    for place, result in enumerate(results):
        if isinstance(result, (Result, Scores)):
            name = file_name(place, result.meta.get("id"))
            written.append(result.save(folder / f"{name}.safetensors"))
        else:
            failed += 1
    if failed:
        warnings.warn(
            f"{failed} of {len(written) + failed} requests failed and were not saved.", VlmprobeWarning, outside()
        )
    return written


def file_name(place: int, id: Any = None) -> str:
    """A name for the file of the result at ``place``, such as ``000012-scene_3``, which leads out of no folder.

    Of the id only letters, digits, ``-``, ``_`` and ``.`` are kept, and at most 100 bytes.
    """
    kept = "" if id is None else re.sub(r"[^\w.-]+", "_", str(id)).encode()[:100].decode(errors="ignore").strip("._")
    return f"{place:06d}-{kept}" if kept else f"{place:06d}"


def load_results(folder: str | Path) -> Iterator[Result | Scores]:
    """Load the results saved in a folder one by one, in the order of their names.

    Raises:
        ResultError: if the folder is missing, or holds no results; while iterating, for one that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ResultError(f"There is no folder {folder}.")
    found = sorted(_saved_in(folder))
    if not found:
        raise ResultError(f"{folder} holds no saved results: no .safetensors files, and no folders with {DOCUMENT}.")
    return map(load_result, found)


def _saved_in(folder: Path) -> Iterator[Path]:
    if (folder / DOCUMENT).is_file():  # the folder of one result
        yield folder
        return
    for path in folder.iterdir():
        if path.name.startswith("."):  # unfinished
            continue
        if path.suffix == ".safetensors" or (path / DOCUMENT).is_file():
            yield path


def _damaged(path: Path, error: Exception) -> ResultError:
    return ResultError(f"{path} is not a result that vlmprobe saved ({type(error).__name__}: {error}).")
