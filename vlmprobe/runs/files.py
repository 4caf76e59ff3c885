"""Files that appear whole under their names, also if the power goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

__all__ = ["UNFINISHED", "put_in_place", "sync_folder"]

UNFINISHED = ".part"


def put_in_place(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` write a file that then takes the name ``path``, and make both the file and its name last.

    The file is written in the same folder, under a name that begins with a dot and ends in ``.part``; its mode is that
    of the umask. If anything fails before it is renamed, what was at ``path`` is still there.
    """
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        unfinished.unlink(missing_ok=True)
        write(unfinished)
        descriptor = os.open(unfinished, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last; where folders cannot be synced, as on Windows, their system does."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
