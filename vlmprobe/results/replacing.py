"""``replacing``: a file appears whole under its name, or not at all."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A sibling of ``path`` to write to, with the mode of the umask; it takes the place of ``path`` once it is written.

    If writing fails or is interrupted, what was at ``path`` before is still there, whole.

    Raises:
        OSError: it names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.unfinished")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        yield unfinished
        unfinished.chmod(mode)  # safetensors writes files that only their owner can read
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
