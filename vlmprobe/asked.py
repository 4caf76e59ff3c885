"""What a caller asks for, checked before anything runs: requests, and the options of a call."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from os import PathLike
from typing import Any, TypeAlias

from vlmprobe.engines.base import KEEP, Options
from vlmprobe.errors import GenerationOptionError, MessageError, near
from vlmprobe.inputs.messages import Prompt
from vlmprobe.results.row_files import OnDisk

__all__ = ["Keep", "Request", "options_of", "request_of"]

ON_DISK = (OnDisk, PathLike)
ALTERNATIVES = 10  # K, unless the caller says

Keep: TypeAlias = "str | PathLike[str] | OnDisk | Collection[str | PathLike[str] | OnDisk]"


@dataclass(frozen=True)
class Request:
    """One question of :meth:`Probe.generate_many`; ``id`` comes back in ``result.meta["id"]``."""

    prompt: Prompt
    image: Any = None
    id: Any = None


def options_of(
    keep: Any, prompt: Any, alternatives: Any, seed: Any, generation: Mapping[str, Any], processors: Any = ()
) -> Options:
    """The arguments of :meth:`Probe.generate` as the options of an engine.

    Raises:
        GenerationOptionError: for what none of them can be.
    """
    listed = list(keep) if isinstance(keep, Collection) and not isinstance(keep, str) else [keep]
    stores = [each if isinstance(each, OnDisk) else OnDisk(each) for each in listed if isinstance(each, ON_DISK)]
    named = ["logits" if isinstance(each, ON_DISK) else each for each in listed]
    for each in named:
        if each not in KEEP:
            raise GenerationOptionError(
                f"keep must be of {', '.join(KEEP)}, or a pathlib.Path for full rows on disk, not {each!r}."
                f"{near(str(each), KEEP)}"
            )
    if len(stores) > 1:
        raise GenerationOptionError("keep names more than one place on disk; full rows go to one")
    demanded = {name for name, value in (("prompt", prompt), ("alternatives", alternatives)) if value is not None}
    prompt = True if prompt is None else prompt
    alternatives = ALTERNATIVES if alternatives is None else alternatives
    if not isinstance(prompt, bool):
        raise GenerationOptionError(
            "prompt is True or False (report the prompt side or not); the question comes first."
        )
    for name, value, least in (("alternatives", alternatives, 1), ("seed", seed, 0)):
        fits = isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < 2**63
        if not fits and not (name == "seed" and value is None):
            raise GenerationOptionError(f"{name} must be an integer of at least {least}, not {value!r}")
    own = tuple(processors) if isinstance(processors, Iterable) else (processors,)
    if not all(map(callable, own)) or callable(processors):
        raise GenerationOptionError("logits_processor is a list of transformers LogitsProcessor objects")
    drawn = None if seed is None else int(seed)
    return Options(
        frozenset(named),
        prompt,
        int(alternatives),
        drawn,
        dict(generation),
        own,
        next(iter(stores), None),
        demanded=frozenset(demanded),
    )


def request_of(raw: Any) -> Request:
    """A request in any form that :meth:`Probe.generate_many` takes.

    Raises:
        MessageError: for a mapping with other keys.
    """
    if isinstance(raw, Request):
        return raw
    if isinstance(raw, Mapping):
        unknown = set(raw) - {"prompt", "image", "id"}
        if unknown or "prompt" not in raw:
            raise MessageError(f"a request has 'prompt', 'image' and 'id'; got {', '.join(sorted(map(str, raw)))}")
        return Request(**raw)
    return Request(raw)
