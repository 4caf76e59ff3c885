"""Versioned layouts of saved files: each file states its version, so that a later vlmprobe can read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from vlmprobe._version import __version__
from vlmprobe.errors import ResultError
from vlmprobe.results.replacing import replacing

__all__ = ["load_json", "require_readable", "save_json"]

Made = TypeVar("Made")


def require_readable(path: str | PathLike[str], found: Any, newest: int, *, oldest: int = 1) -> None:
    """Reject a file whose layout this vlmprobe does not know, before reading the rest of it.

    Args:
        path: of the file, for the message.
        found: the version that the file states.
        newest: the version that this vlmprobe writes; it reads all from ``oldest`` on.
        oldest: 0 if vlmprobe 0.1 wrote files of this kind without a version.

    Raises:
        ResultError: for a later layout, or an invalid one.
    """
    if isinstance(found, bool) or not isinstance(found, int) or found < oldest:
        raise ResultError(f"{path} has layout {found!r}, which no vlmprobe writes: the file is damaged.")
    if found > newest:
        raise ResultError(
            f"{path} has layout {found}, and vlmprobe {__version__} reads layouts up to {newest}: a later vlmprobe "
            "saved it. Update vlmprobe."
        )


def save_json(path: str | PathLike[str], layout: int, held: Mapping[str, Any]) -> Path:
    """Write a JSON file of a layout, for :func:`load_json`."""
    path = Path(path)
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps({"format": layout, **held}, indent=1) + "\n", encoding="utf-8")
    return path


def load_json(path: str | PathLike[str], layout: int, what: str, make: Callable[[dict[str, Any]], Made]) -> Made:
    """What :func:`save_json` wrote.

    Args:
        path: of the file.
        layout: the newest that this vlmprobe reads.
        what: the file is or holds, for errors: ``"is no threshold"``.
        make: what the file is turned into; a ``ValueError``, ``TypeError``, ``LookupError`` or ``AttributeError`` of it
            says what is wrong with the file.

    Raises:
        ResultError: for a file that is missing, or is not what it should be, or was written by a later vlmprobe.
    """
    path = Path(path)
    if not path.is_file():
        raise ResultError(f"No file at {path}.")
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        found = known.pop("format")
        made = make(known) if found == layout else None
    except OSError as error:
        raise ResultError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ResultError(f"{path} {what} that vlmprobe saved ({type(error).__name__}: {error}).") from error
    require_readable(path, found, layout)
    assert made is not None, "there is one layout, and each later one is refused"
    return made
