"""Versioned layouts of saved files: each file states its version, so that a later vlmprobe can read it."""

from __future__ import annotations

from os import PathLike
from typing import Any

from vlmprobe._version import __version__
from vlmprobe.errors import ResultError

__all__ = ["require_readable"]


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
