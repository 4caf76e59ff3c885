"""The installed serving engines: entry points of the group ``vlmprobe.engines``, including ours."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import entry_points

from vlmprobe.engines.serving.base import ServedEngine
from vlmprobe.engines.serving.facts import Facts, Server
from vlmprobe.errors import CapabilityError, EngineError, MessageError, near
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
) -> tuple[type[ServedEngine], Server, str]:
    """The engine that recognises a server, generic ones last; or the wanted one, unless the server is another.

    The last item is what to warn of, or empty.

    A wanted engine is taken at its name where nothing can be recognised: a proxy before it may hide what it is.

    Raises:
        EngineError: if none does, or the server is another than the wanted one.
        CapabilityError: if the server is one that sends no log-probabilities.
    """
    listed = sorted(engines, key=lambda engine: engine.generic)
    known = {engine.name: engine for engine in listed}
    if wanted != "auto" and wanted not in known:
        raise MessageError(
            f"No serving engine is named {wanted!r}.{near(str(wanted), known)} There are: {', '.join(known)}."
        )
    first = [] if wanted == "auto" else [known[wanted]]
    for engine in [*first, *(each for each in listed if each not in first and not (first and each.generic))]:
        if engine.generic:
            await _refuse_transformers(facts)
        server = await engine.recognise(facts)
        if server is None:
            continue
        if first and engine not in first:
            raise EngineError(
                f"The server at {facts.client.url} is not recognised as {first[0].title}: it is {engine.title} "
                f"({await facts.seen()})."
            )
        return engine, server, ""
    seen = await facts.seen()
    if first:
        await _refuse_transformers(facts)
        names = tuple(str(each["id"]) for each in await facts.models() if "id" in each)
        unsure = (
            f"The server at {facts.client.url} does not say that it is {first[0].title}, and is taken for it as "
            f"engine={wanted!r} says: {seen}."
        )
        return first[0], Server(models=names), unsure
    refused = next((each for each in facts.failed.values() if each.status in (401, 403)), None)
    if refused is not None:
        raise refused
    raise EngineError(
        f"The server at {facts.client.url} is not recognised as {', '.join(engine.title for engine in listed)}: "
        f"{seen}. Check the address (without a path such as /v1/chat/completions), and that the server has finished "
        "starting; engine= and model= together connect to one that does not say what it is."
    )


async def _refuse_transformers(facts: Facts) -> None:
    """Raise :class:`CapabilityError` for ``transformers serve``, which ignores ``logprobs`` without a word."""
    described = await facts.get("/openapi.json")
    paths = described.get("paths") if isinstance(described, dict) else None
    if not isinstance(paths, dict) or not {"/load_model", "/v1/chat/completions"} <= set(paths):
        return
    names = {str(each["id"]): each.get("status") for each in await facts.models() if "id" in each}
    loaded = [name for name, status in names.items() if status == {"value": "loaded"}] or list(names)
    how = f", vlmprobe.load({loaded[0]!r})," if len(loaded) == 1 else " with vlmprobe.load,"
    raise CapabilityError(
        f"The server at {facts.client.url} is transformers serve, which sends no log-probabilities: load the same "
        f"folder here{how} which gives every number."
    )
