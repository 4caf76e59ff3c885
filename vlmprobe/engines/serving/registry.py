"""The engines that are installed: entry points of the group ``vlmprobe.engines``, ours too."""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from vlmprobe._version import DISTRIBUTION
from vlmprobe.engines.serving.base import ServedEngine
from vlmprobe.errors import VlmprobeWarning

__all__ = ["clear", "engines"]

GROUP = "vlmprobe.engines"


@lru_cache(maxsize=1)
def engines() -> dict[str, type[ServedEngine]]:
    """Every installed engine by name. A plug-in that cannot be imported is left out with a warning that names it."""
    found: dict[str, type[ServedEngine]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (not _is_ours(point), point.name)):
        origin = point.dist.name if point.dist else "an unknown package"
        if point.name in found:
            _left_out(f"{origin} publishes an engine named {point.name!r}, which is taken. Its author must rename it.")
            continue
        try:
            engine = point.load()
        except Exception as error:  # a plug-in may fail in any way and must not take the others along
            if _is_ours(point):
                raise
            _left_out(f"engine {point.name!r} of {origin} is broken: {error!r}.")
            continue
        if not (isinstance(engine, type) and issubclass(engine, ServedEngine)):
            _left_out(f"{point.value} of {origin} is no subclass of vlmprobe.engines.serving.ServedEngine.")
            continue
        engine.name = point.name
        found[point.name] = engine
    return found


def clear() -> None:
    """Forget what was found, so that the next call looks again (after an installation, and in tests)."""
    engines.cache_clear()


def _left_out(why: str) -> None:
    warnings.warn(f"An engine is left out: {why}", VlmprobeWarning, stacklevel=4)


def _is_ours(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == DISTRIBUTION
