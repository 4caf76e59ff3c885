"""Loads results saved by this version of vlmprobe or an earlier one; saves and loads folders of them."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, overload

from PIL.Image import DecompressionBombError

from vlmprobe.errors import ResultError, VlmprobeWarning, outside
from vlmprobe.results.asked import Answers, Choice, Rating
from vlmprobe.results.failure import ENDING, Failure, load_failure, save_failure
from vlmprobe.results.grouped import GroupedScores, YesNo
from vlmprobe.results.layouts import require_readable
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.saved import ARRAYS, DOCUMENT, FORMAT, SECOND_ARRAYS, Saved

__all__ = ["load_result", "load_results", "save_results"]

KINDS: dict[str, type[Result] | type[Scores] | type[Answers]] = {
    each.__name__: each for each in (Result, Scores, GroupedScores, YesNo, Choice, Rating, Answers)
}


def load_result(path: str | Path) -> Result | Scores | Answers:
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


def save_results(results: Iterable[Result | Scores | Answers | Failure | Any], folder: str | Path) -> list[Path]:
    """Save results to a folder, one file each, as they come; :func:`load_results` reads them back in this order.

    A file is named after its place and the id of its request (:func:`file_name`). Of a failure its error and its
    request are kept; one warning counts them. The folder is there afterwards, also if there was nothing to save.

    Returns:
        The files of the results, without those of failures.

    Raises:
        ResultError: if the folder holds results already, or for what is no list of results.
    """
    if isinstance(results, (Saved, Failure, str, bytes)) or not isinstance(results, Iterable):
        single = "a single result is saved with result.save(path)" if isinstance(results, Saved) else "put it into one"
        raise ResultError(f"save_results takes a list of results, not {type(results).__name__}: {single}")
    folder = Path(folder)
    if folder.is_dir() and any(_saved_in(folder, failures=True)):
        raise ResultError(f"{folder} holds results already: save to another folder, or delete it.")
    folder.mkdir(parents=True, exist_ok=True)
    written, failed = [], 0
    for place, result in enumerate(results):
        if isinstance(result, (Result, Scores, Answers)):
            name = file_name(place, result.meta.get("id"))
            written.append(result.save(folder / f"{name}.safetensors"))
        elif isinstance(result, Failure):
            save_failure(result, folder / f"{file_name(place, result.id)}{ENDING}")
            failed += 1
        else:
            raise ResultError(f"save_results takes results, and number {place} is {type(result).__name__}")
    if failed:
        warnings.warn(
            f"{failed} of {len(written) + failed} requests failed: load_results(folder, failures=True) reads them back "
            "as Failure, and without that leaves them out.",
            VlmprobeWarning,
            outside(),
        )
    return written


def file_name(place: int, id: Any = None) -> str:
    """A name for the file of the result at ``place``, such as ``000012-scene_3``, which leads out of no folder.

    Of the id only letters, digits, ``-``, ``_`` and ``.`` are kept, and at most 100 bytes.
    """
    kept = "" if id is None else re.sub(r"[^\w.-]+", "_", str(id)).encode()[:100].decode(errors="ignore").strip("._")
    return f"{place:06d}-{kept}" if kept else f"{place:06d}"


@overload
def load_results(folder: str | Path, *, failures: Literal[False] = ...) -> Iterator[Result | Scores | Answers]: ...
@overload
def load_results(folder: str | Path, *, failures: bool) -> Iterator[Result | Scores | Answers | Failure]: ...
def load_results(folder: str | Path, *, failures: bool = False) -> Iterator[Any]:
    """Load the results saved in a folder one by one, in the order of their names.

    Args:
        folder: of :func:`save_results`, or any folder of saved results. An empty one holds none.
        failures: whether to yield a :class:`~vlmprobe.Failure` for each request that failed, in its place.

    Raises:
        ResultError: if the folder is missing, or holds other files only; while iterating, for one that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ResultError(f"There is no folder {folder}.")
    found = sorted(_saved_in(folder, failures=failures))
    if not found and any(folder.iterdir()) and not any(_saved_in(folder, failures=True)):
        raise ResultError(f"{folder} holds no saved results: no .safetensors files, and no folders with {DOCUMENT}.")
    return map(_load, found)  # which goes on after an error, as a generator would not


def _load(path: Path) -> Result | Scores | Answers | Failure:
    return load_failure(path) if path.name.endswith(ENDING) else load_result(path)


def _saved_in(folder: Path, failures: bool) -> Iterator[Path]:
    if (folder / DOCUMENT).is_file():  # the folder of one result
        yield folder
        return
    for path in folder.iterdir():
        if path.name.startswith("."):  # unfinished
            continue
        if path.suffix == ".safetensors" or (path / DOCUMENT).is_file() or (failures and path.name.endswith(ENDING)):
            yield path


def _damaged(path: Path, error: Exception) -> ResultError:
    return ResultError(f"{path} is not a result that vlmprobe saved ({type(error).__name__}: {error}).")
