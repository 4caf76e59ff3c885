"""The installed serving engines: entry points of the group ``vlmprobe.engines``, including ours."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import entry_points

from vlmprobe.engines.serving.base import ServedEngine
from vlmprobe.engines.serving.facts import Facts, Server
from vlmprobe.errors import EngineError, MessageError, near
from vlmprobe.plugins import load

__all__ = ["clear", "detect", "engines"]

GROUP = "vlmprobe.engines"


@lru_cache(maxsize=1)
def engines() -> dict[str, type[ServedEngine]]:
    """Every installed engine by name. A plug-in that cannot be imported is left out with a warning that names it."""
    return load(entry_points(group=GROUP), ServedEngine, "engine")


def clear() -> None:
    """Clear the cache, so that the next call searches again (after an installation, and in tests)."""
    engines.cache_clear()


async def detect(
    facts: Facts, engines: Iterable[type[ServedEngine]], wanted: str = "auto"
) -> tuple[type[ServedEngine], Server]:
    """The engine that recognises a server; generic ones are tried last.

    Raises:
        EngineError: if none does, or not the wanted one.
    """
    listed = sorted(engines, key=lambda engine: engine.generic)
    if wanted != "auto":
        known = {engine.name: engine for engine in listed}
        if wanted not in known:
            raise MessageError(
                f"No serving engine is named {wanted!r}.{near(str(wanted), known)} There are: {', '.join(known)}."
            )
        listed = [known[wanted]]
    for engine in listed:
        server = await engine.recognise(facts)
        if server is not None:
            return engine, server
    names = ", ".join(engine.title for engine in listed)
    raise EngineError(
        f"The server at {facts.client.url} is not recognised as {names}. Check the address (without a path such as "
        "/v1/chat/completions), and that the server has finished starting; engine= selects one."
    )
