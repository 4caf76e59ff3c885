"""Loads the entry points of adapters and engines by one set of rules: ours first; a broken one affects no other."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from typing import TypeVar

from vlmprobe._version import DISTRIBUTION
from vlmprobe.errors import VlmprobeWarning

__all__ = ["is_ours", "load"]

Base = TypeVar("Base")


def load(points: Iterable[EntryPoint], base: type[Base], noun: str) -> dict[str, type[Base]]:
    """The classes of entry points, by the names under which they are published.

    A third party's class is left out, with a warning that names it, if it cannot be imported, is not a subclass of
    ``base``, is already there under another name, or its name is taken; ours come first.

    Args:
        points: of one group.
        base: what every class derives from; it has a ``name``, which is set.
        noun: what the group holds, for messages.

    Raises:
        Exception: whatever one of ours raises.
    """
    found: dict[str, type[Base]] = {}
    for point in sorted(points, key=lambda point: (not is_ours(point), point.name)):
        origin = point.dist.name if point.dist else "an unknown package"
        if point.name in found:
            _warn(
                f"{origin} publishes an {noun} named {point.name!r}, which is taken: it is left out. "
                "Its author must rename it."
            )
            continue
        try:
            loaded = point.load()
        except Exception as error:  # a plug-in may fail in any way and must not affect the others
            if is_ours(point):
                raise
            _warn(f"{noun} {point.name!r} of {origin} is broken and left out: {error!r}")
            continue
        if not (isinstance(loaded, type) and issubclass(loaded, base)):
            _warn(f"{point.value} of {origin} is not a subclass of {base.__module__}.{base.__name__}: left out")
        elif loaded in found.values():
            known = next(name for name, each in found.items() if each is loaded)
            _warn(f"{point.name!r} of {origin} is the {noun} {known!r} again: left out")
        else:
            loaded.name = point.name  # type: ignore[attr-defined]
            found[point.name] = loaded
    return found


def is_ours(point: EntryPoint) -> bool:
    """Whether an entry point is published by vlmprobe itself."""
    return point.dist is not None and point.dist.name == DISTRIBUTION


def _warn(message: str) -> None:
    warnings.warn(message, VlmprobeWarning, stacklevel=4)
