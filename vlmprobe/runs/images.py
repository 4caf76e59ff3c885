"""Images of rows: where their files are, confined to a folder, and a hash of what they hold."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from vlmprobe.errors import ImageError
from vlmprobe.inputs.images import DEFAULT_LIMITS, SCHEME, digest, is_encoded, is_file, load_image

__all__ = ["Images", "Known", "Seen"]

LONGEST = 300  # characters of a path or an address that are kept
RECENT = 10_000  # images that are looked at once, though many rows are about them
UNNAMED = ("", ".", "..")  # ends of paths that are no names
FRESH = 2.0  # seconds: a file that was written so recently may be written again at the same time, as clocks count


class Seen(NamedTuple):
    """What is known of an image before it is decoded."""

    path: str | None  # as the data set names it
    bytes: int | None  # of its file
    hash: str  # of its file's bytes; with a prefix, of something else: an address, pixels, or what cannot be read


# What a file was when its hash was taken: size, time of the last change in ns, and the hash. A plain tuple, of which a
# start makes a million in half the time that a named one takes.
Known: TypeAlias = tuple[int, int, str]


class Images:
    """Finds and hashes images; hashes are remembered by path, size and time of the last change.

    With a ``root``, relative paths start there, and a path that leads out of it, also by a link, is an error.
    """

    def __init__(self, root: Path | None = None, known: Mapping[str, Known] | None = None) -> None:
        self.root = None if root is None else os.path.realpath(root)
        self.known = dict(known or {})
        self.hashed = 0  # files that were read
        self._folders: dict[str, str] = {}  # their real paths
        self._recent: dict[str, Seen] = {}  # by path as given

    def source(self, given: Any) -> Any:
        """What to read an image from: paths from the root.

        Raises:
            ImageError: for a path that leaves it.
        """
        if is_encoded(given):
            return given if given.get("bytes") is not None else {**given, "path": self.source(given.get("path"))}
        return self._path(given) if _is_path(given) else given

    def seen(self, given: Any) -> Seen:
        """The hash of an image; it never fails, since a row that cannot be read has a key too."""
        if type(given) is str and ":" not in given:
            if (seen := self._recent.get(given)) is None:
                if len(self._recent) >= RECENT:
                    self._recent.clear()
                seen = self._recent[given] = self._file(given)
            return seen
        if is_encoded(given):
            path = given.get("path")
            if given.get("bytes") is None:
                return self.seen(path)
            return Seen(path if isinstance(path, str) else None, len(given["bytes"]), _hash(given["bytes"]))
        if isinstance(given, (bytes, bytearray, memoryview)):
            return Seen(None, len(given), _hash(given))
        if _is_path(given):
            return self._file(os.fspath(given))
        if isinstance(given, str):
            shown = given.partition(",")[0] if given[:5].lower() == "data:" else given
            return Seen(shown[:LONGEST], None, f"address:{_hash(given.encode('utf-8', 'surrogatepass'))}")
        try:
            if is_file(given):
                place = given.tell()
                given.seek(0)
                held = given.read(DEFAULT_LIMITS.max_bytes + 1)
                given.seek(place)
                return Seen(None, len(held), _hash(held))
            return Seen(None, None, f"pixels:{digest(load_image(given))}")
        except Exception as error:  # noqa: BLE001 - told when the row is asked
            return Seen(None, None, f"unread:{type(given).__name__}:{error}"[:200])

    def hashes(self, paths: Iterable[str]) -> dict[str, str]:
        """The hashes of :meth:`seen` of many paths; of files that are known, with as little as possible of each."""
        found = {}
        known, folders, recent = self.known, self._folders, self._recent
        for text in paths:
            head, _, name = text.rpartition("/")
            folder = folders.get(head)
            plain = not (name in UNNAMED or ":" in text or "\\" in text or text[0] == "~")
            if folder is not None and plain and text not in recent:
                held = known.get(path := folder + name)
                if held is not None and _is_still(path, held):
                    found[text] = held[2]
                    continue
            found[text] = self.seen(text).hash
        return found

    def _fast(self, text: str) -> tuple[str, os.stat_result] | None:
        """Path and state of a plain file below the root, with one look at it; None for what needs a closer one."""
        head, _, name = text.rpartition("/")
        if self.root is None or name in UNNAMED or "\\" in text or text[0] == "~":
            return None
        folder = self._folders.get(head)
        if folder is None:
            real = os.path.realpath(os.path.join(self.root, head or ("/" if text[0] == "/" else "")))
            if not self._is_inside(real):
                return None
            folder = self._folders[head] = real.rstrip(os.sep) + os.sep
        path = folder + name
        state = os.lstat(path)
        return (path, state) if stat.S_ISREG(state.st_mode) else None

    def _is_inside(self, real: str) -> bool:
        return self.root is not None and (real == self.root or real.startswith(self.root.rstrip(os.sep) + os.sep))

    def _path(self, given: Any) -> str:
        """The real path of a file.

        Raises:
            ImageError: if it leaves the root.
        """
        text = os.fspath(given)
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            raise ImageError(f"the image path {text!r} is none")
        if self.root is None:
            return os.path.expanduser(text)
        found = os.path.realpath(os.path.join(self.root, text))
        if not self._is_inside(found):
            raise ImageError(
                f"the image {text[:200]!r} is outside of the folder of the data set: pass --root (root= in Python) "
                "with a folder that holds all images"
            )
        return found

    def _file(self, text: str) -> Seen:
        try:
            path, state = self._fast(text) or self._closer(text)
            if not stat.S_ISREG(state.st_mode) or state.st_size > DEFAULT_LIMITS.max_bytes:
                return _unread(text)
            known = self.known.get(path)
            if known is None or known[:2] != (state.st_size, state.st_mtime_ns):
                with open(path, "rb") as file:
                    known = (state.st_size, state.st_mtime_ns, _hash(file.read()))
                self.hashed += 1
                if time.time() - state.st_mtime > FRESH:
                    self.known[path] = known
            return Seen(text, known[0], known[2])
        except (ImageError, OSError, ValueError, IndexError):
            return _unread(text)

    def _closer(self, text: str) -> tuple[str, os.stat_result]:
        path = self._path(text)
        return path, os.stat(path)


def _is_still(path: str, known: Known) -> bool:
    """Whether a file is what it was when its hash was taken."""
    try:
        state = os.lstat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(state.st_mode) and (state.st_size, state.st_mtime_ns) == known[:2]


def _unread(text: str) -> Seen:
    return Seen(
        text[:LONGEST], None, f"unread:{text if len(text) <= LONGEST else _hash(text.encode(errors='replace'))}"
    )


def _is_path(given: Any) -> bool:
    return isinstance(given, os.PathLike) or (isinstance(given, str) and SCHEME.match(given.strip()) is None)


def _hash(held: Any) -> str:
    return hashlib.blake2b(held, digest_size=16).hexdigest()
