"""Validates call arguments before anything runs: requests, candidates, images, and the options of a call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from os import PathLike
from typing import Any, TypeAlias

from vlmprobe.engines.base import KEEP, Options
from vlmprobe.engines.recorded_prompt import record
from vlmprobe.errors import GenerationOptionError, MessageError, near, renamed
from vlmprobe.inputs.messages import Conversation, Prompt, TextPart
from vlmprobe.results.row_files import OnDisk

__all__ = [
    "Converse",
    "Keep",
    "Request",
    "candidate_groups",
    "candidate_list",
    "images_to_remember",
    "options_of",
    "request_of",
    "with_meta",
]

ON_DISK = (OnDisk, PathLike)
ALTERNATIVES = 10  # default K
UNSET: Any = object()  # an argument that was not given; None is a valid value

# Builds a conversation from a question and its image.
Converse: TypeAlias = Callable[["Prompt | Conversation", Any], Conversation]
Keep: TypeAlias = "str | PathLike[str] | OnDisk | Collection[str | PathLike[str] | OnDisk]"


@dataclass(frozen=True, init=False)
class Request:
    """One question of :meth:`Probe.generate_many`; ``id`` is returned in ``result.meta["id"]``."""

    question: Prompt
    image: Any
    id: Any

    def __init__(self, question: Prompt = UNSET, image: Any = None, id: Any = None, *, prompt: Prompt = UNSET) -> None:
        """``prompt`` is a former name of ``question``."""
        if prompt is not UNSET:
            renamed("Request(prompt=)", "Request(question=)")
            question = prompt if question is UNSET else question
        if question is UNSET:
            raise TypeError("Request() needs a question")
        for name, value in (("question", question), ("image", image), ("id", id)):
            object.__setattr__(self, name, value)

    @property
    def prompt(self) -> Prompt:
        """Former name of :attr:`question`."""
        renamed("Request.prompt", "Request.question")
        return self.question


def options_of(
    keep: Any, prompt: Any, alternatives: Any, seed: Any, generation: Mapping[str, Any], processors: Any = ()
) -> Options:
    """The arguments of :meth:`Probe.generate` as engine options.

    Raises:
        GenerationOptionError: for an invalid value.
    """
    listed = list(keep) if isinstance(keep, Collection) and not isinstance(keep, str) else [keep]
    stores = [each if isinstance(each, OnDisk) else OnDisk(each) for each in listed if isinstance(each, ON_DISK)]
    named = ["logits" if isinstance(each, ON_DISK) else each for each in listed]
    for each in named:
        if each not in KEEP:
            raise GenerationOptionError(
                f"keep must be one of {', '.join(KEEP)}, or a pathlib.Path for full rows on disk, not {each!r}."
                f"{near(str(each), KEEP)}"
            )
    if len(stores) > 1:
        raise GenerationOptionError("keep names more than one place on disk; full rows go to one")
    demanded = {name for name, value in (("prompt", prompt), ("alternatives", alternatives)) if value is not None}
    prompt = True if prompt is None else prompt
    alternatives = ALTERNATIVES if alternatives is None else alternatives
    if not isinstance(prompt, bool):
        raise GenerationOptionError(
            "prompt must be True or False (report the prompt side or not); the question comes first."
        )
    for name, value, least in (("alternatives", alternatives, 1), ("seed", seed, 0)):
        fits = isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < 2**63
        if not fits and not (name == "seed" and value is None):
            raise GenerationOptionError(f"{name} must be an integer of at least {least}, not {value!r}")
    own = tuple(processors) if isinstance(processors, Iterable) else (processors,)
    if not all(map(callable, own)) or callable(processors):
        raise GenerationOptionError("logits_processor must be a list of transformers LogitsProcessor objects")
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
        given = dict(raw)
        if "prompt" in given and "question" not in given:  # a common column name
            given["question"] = given.pop("prompt")
        if set(given) - {"question", "image", "id"} or "question" not in given:
            raise MessageError(f"a request has 'question', 'image' and 'id'; got {', '.join(sorted(map(str, raw)))}")
        return Request(**given)
    return Request(raw)


def candidate_groups(candidates: Mapping[Any, Any]) -> dict[str, list[str]]:
    """Validates the answer groups of :meth:`Probe.score`.

    Raises:
        MessageError: for no groups, a name or spelling that is not a string, or an empty or shared spelling.
    """
    if not candidates:
        raise MessageError("candidates is empty: give at least one answer to score")
    groups: dict[str, list[str]] = {}
    for name, spellings in candidates.items():
        if not isinstance(name, str):
            raise MessageError(f"The name of an answer must be a string, not {name!r}")
        groups[name] = candidate_list([spellings] if isinstance(spellings, str) else spellings)
        for other, texts in list(groups.items())[:-1]:
            if shared := set(texts) & set(groups[name]):
                raise MessageError(
                    f"{min(shared)!r} is a spelling of both {other!r} and {name!r}: it can belong to one only"
                )
    return groups


def candidate_list(candidates: Any) -> list[str]:
    """Validates the candidates of :meth:`Probe.score`.

    Raises:
        MessageError: for none, or an empty, repeated or non-string one.
    """
    if isinstance(candidates, str) or not isinstance(candidates, Iterable):
        raise MessageError("candidates must be a list of strings, such as ['yes', 'no']")
    listed = list(candidates)
    if not listed:
        raise MessageError("candidates is empty: give at least one answer to score")
    for place, each in enumerate(listed):
        if not isinstance(each, str):
            raise MessageError(f"candidate {place} is {type(each).__name__}, not a string")
        TextPart(each)  # rejects text that no tokenizer can encode
        if not each:
            raise MessageError(f"candidate {place} is empty: an answer without text has no tokens to score")
        if each in listed[:place]:
            raise MessageError(f"candidate {place} repeats candidate {listed.index(each)}: {each!r}")
    return listed


def images_to_remember(images: Any) -> int:
    """Validates how many images a session caches.

    Raises:
        GenerationOptionError: unless it is an integer of at least 1.
    """
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise GenerationOptionError(f"images, the number to cache, must be an integer of at least 1, not {images!r}")
    return images


def with_meta(result: Any, meta: Mapping[str, Any], conversation: Conversation, **more: Any) -> Any:
    """The result with the model, the question and the images recorded in its ``meta``."""
    return replace(result, meta={**meta, **record(conversation), **result.meta, **more})
