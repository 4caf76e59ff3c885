"""Files that appear whole under their names, also if the power goes; and locks that end with their process."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vlmprobe.errors import RunError, VlmprobeError

__all__ = ["UNFINISHED", "locked", "put_in_place", "sync_folder"]

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


def locked(path: Path, what: str, seconds: float = 0) -> Any:
    """A lock that ends with the process.

    Raises:
        RunError: if another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise RunError(
            f"another process is writing {what} of {path.parent}: wait until it has ended, or divide the rows with "
            "--part 0/2 and --part 1/2 (part= in Python)"
        ) from error
    except OSError as error:
        raise VlmprobeError(f"{path} cannot be locked: {error}") from error
    stack = ExitStack()
    stack.callback(lock.release)
    return stack
