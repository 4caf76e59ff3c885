"""Validates call arguments before anything runs: requests, candidates, images, and the options of a call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from os import PathLike
from typing import Any, TypeAlias

from vlmprobe.engines.base import KEEP, Options
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
ALTERNATIVES = 10  # K, unless the caller says
UNSET: Any = object()  # an argument that was not given; None is a value

Converse: TypeAlias = Callable[[Prompt, Any], Conversation]  # a question and its image as a conversation
Keep: TypeAlias = "str | PathLike[str] | OnDisk | Collection[str | PathLike[str] | OnDisk]"


@dataclass(frozen=True, init=False)
class Request:
    """One question of :meth:`Probe.generate_many`; ``id`` comes back in ``result.meta["id"]``."""

    question: Prompt
    image: Any
    id: Any

    def __init__(self, question: Prompt = UNSET, image: Any = None, id: Any = None, *, prompt: Prompt = UNSET) -> None:
        """``prompt`` is the former name of ``question``."""
        if prompt is not UNSET:
            renamed("Request(prompt=)", "Request(question=)")
            question = prompt if question is UNSET else question
        if question is UNSET:
            raise TypeError("Request() lacks its question")
        for name, value in (("question", question), ("image", image), ("id", id)):
            object.__setattr__(self, name, value)

    @property
    def prompt(self) -> Prompt:
        """The former name of :attr:`question`."""
        renamed("Request.prompt", "Request.question")
        return self.question


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
        given = dict(raw)
        if "prompt" in given and "question" not in given:  # a common name of the column
            given["question"] = given.pop("prompt")
        if set(given) - {"question", "image", "id"} or "question" not in given:
            raise MessageError(f"a request has 'question', 'image' and 'id'; got {', '.join(sorted(map(str, raw)))}")
        return Request(**given)
    return Request(raw)


def candidate_groups(candidates: Mapping[Any, Any]) -> dict[str, list[str]]:
    """Groups as :meth:`Probe.score` takes them, checked before anything runs.

    Raises:
        MessageError: for no group, a name or spelling that is no text, an empty one, or one of two answers.
    """
    if not candidates:
        raise MessageError("candidates is empty: give at least one answer to score")
    groups: dict[str, list[str]] = {}
    for name, spellings in candidates.items():
        if not isinstance(name, str):
            raise MessageError(f"The name of an answer is a string, not {name!r}")
        groups[name] = candidate_list([spellings] if isinstance(spellings, str) else spellings)
        for other, texts in list(groups.items())[:-1]:
            if shared := set(texts) & set(groups[name]):
                raise MessageError(
                    f"{min(shared)!r} is a spelling of both {other!r} and {name!r}: it can be of one only"
                )
    return groups


def candidate_list(candidates: Any) -> list[str]:
    """Candidates as :meth:`Probe.score` takes them, checked before anything runs.

    Raises:
        MessageError: for none, or an empty, repeated or non-string one.
    """
    if isinstance(candidates, str) or not isinstance(candidates, Iterable):
        raise MessageError("candidates is a list of strings, such as ['yes', 'no']")
    listed = list(candidates)
    if not listed:
        raise MessageError("candidates is empty: give at least one answer to score")
    for place, each in enumerate(listed):
        if not isinstance(each, str):
            raise MessageError(f"candidate {place} is {type(each).__name__}, not a string")
        TextPart(each)  # refuses what no tokenizer can read
        if not each:
            raise MessageError(f"candidate {place} is empty: an answer without text has no tokens to score")
        if each in listed[:place]:
            raise MessageError(f"candidate {place} repeats candidate {listed.index(each)}: {each!r}")
    return listed


def images_to_remember(images: Any) -> int:
    """How many images a session remembers.

    Raises:
        GenerationOptionError: for no integer of at least 1.
    """
    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise GenerationOptionError(f"images, how many are remembered, is an integer of at least 1, not {images!r}")
    return images


def with_meta(result: Any, meta: Mapping[str, Any], conversation: Conversation, **more: Any) -> Any:
    """The result with what is known of the model and the question put into its ``meta``."""
    sizes = [list(image.size) for image in conversation.images]
    asked = {"question": conversation.question, **({"image_sizes": sizes} if sizes else {})}
    return replace(result, meta={**meta, **asked, **result.meta, **more})
