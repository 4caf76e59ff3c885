"""Layouts of saved files: each file gives its own by number, so that a later vlmprobe knows how to read it."""

from __future__ import annotations

from os import PathLike
from typing import Any

from vlmprobe._version import __version__
from vlmprobe.errors import ResultError

__all__ = ["require_readable"]


def require_readable(path: str | PathLike[str], found: Any, newest: int, *, oldest: int = 1) -> None:
    """Refuse a file whose layout this vlmprobe does not know, before anything else of it is read.

    Args:
        path: of the file, for the message.
        found: the number that the file gives.
        newest: that this vlmprobe writes; it reads every one from ``oldest`` on.
        oldest: 0 where vlmprobe 0.1 wrote files of this kind without a number.

    Raises:
        ResultError: for a later layout, or what is no layout at all.
    """
    if isinstance(found, bool) or not isinstance(found, int) or found < oldest:
        raise ResultError(f"{path} has layout {found!r}, which no vlmprobe writes: the file is damaged.")
    if found > newest:
        raise ResultError(
            f"{path} has layout {found}, and vlmprobe {__version__} reads layouts up to {newest}: a later vlmprobe "
            "saved it. Update vlmprobe."
        )
