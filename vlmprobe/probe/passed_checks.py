"""Cache of passed quick checks, one small JSON file per model in the user's cache directory.

Nothing here can fail a load: if the cache cannot be read or written, the checks run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["fingerprint", "folder", "passed", "remember"]

FORMAT = 1  # version of the layout; 0.1 wrote none, which is read as 0 and has the same layout


def folder() -> Path:
    """The cache directory: ``$XDG_CACHE_HOME/vlmprobe/checked``, by default under ``~/.cache``."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification ignores relative paths; expanduser keeps "~" if there is no home directory.
    return (given if given.is_absolute() else Path(os.path.expanduser("~/.cache"))) / "vlmprobe" / "checked"


def fingerprint(adapter: type, meta: Mapping[str, Any], config: Mapping[str, Any], checkpoint: str) -> str:
    """A hash of everything that the outcome depends on; a change to any of it reruns the checks.

    That is the configuration, the revision or the state of the folder's files, the adapter and the state of its
    source files, dtype, device type, versions and what resizes the images.
    """
    source = getattr(sys.modules.get(adapter.__module__), "__file__", None)
    record = {
        "config": config,
        "meta": {key: meta.get(key) for key in ("model", "revision", "adapter", "dtype", "versions", "resize")},
        "device": str(meta.get("device")).partition(":")[0],
        "files": _state(Path(checkpoint).glob("*")),
        "adapter": _state(Path(source).parent.glob("*.py")) if source else [],
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest()


def passed(model: str, known: str) -> bool:
    """Whether the model passed in exactly this state. A later vlmprobe's record is ignored: the checks rerun."""
    try:
        held = json.loads(_file(model).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and held.get("format", 0) in range(FORMAT + 1) and held.get("passed") == known


def remember(model: str, known: str) -> None:
    """Record that the model passed in this state, replacing an earlier record."""
    file = _file(model)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Write to a temporary file, then rename: another process must never read a partial file.
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".part", delete=False, encoding="utf-8") as part:
            json.dump({"format": FORMAT, "model": model, "passed": known}, part)
        try:
            os.replace(part.name, file)
        except OSError:
            os.unlink(part.name)


def _file(model: str) -> Path:
    local = Path(model).expanduser()
    name = str(local.resolve()) if local.exists() else model
    return folder() / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json"


def _state(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Name, size and modification time of each accessible file."""
    found = []
    for file in sorted(files):
        with suppress(OSError):
            known = file.stat()
            found.append((file.name, known.st_size, known.st_mtime_ns))
    return found
