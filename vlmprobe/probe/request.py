"""Validates call arguments before anything runs: requests, candidates, images, and the options of a call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from os import PathLike
from typing import Any, TypeAlias, Unpack

import numpy as np

from vlmprobe.engines.base import KEEP, Options
from vlmprobe.engines.constraint import constraint_of
from vlmprobe.engines.recorded_prompt import record
from vlmprobe.errors import GenerationOptionError, MessageError, near, renamed
from vlmprobe.inputs.image_names import is_named_like_an_image
from vlmprobe.inputs.messages import Conversation, Prompt, TextPart, shows_images
from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT, PROMPT_OPTIONS, PromptOptions
from vlmprobe.probe.misplaced import require_no_image, require_no_option
from vlmprobe.probe.tables import IMAGES, QUESTIONS, further_columns, listed, missing, plain, require_carried, scalar
from vlmprobe.results.row_files import OnDisk

__all__ = [
    "Converse",
    "Keep",
    "Numbered",
    "Request",
    "Requests",
    "bytes_to_keep",
    "candidate_groups",
    "candidate_list",
    "carrying",
    "id_of",
    "images_to_remember",
    "options_of",
    "request_of",
    "with_meta",
]

ON_DISK = (OnDisk, PathLike)
ALTERNATIVES = 10  # default K
OF_TEMPLATES = ("enable_thinking", "thinking", "thinking_budget", "reasoning_effort")  # which many chat templates read
UNSET: Any = object()  # an argument that was not given; None is a valid value

Converse: TypeAlias = Callable[..., Conversation]  # builds one as Probe.conversation does
Requests: TypeAlias = "Iterable[Request | Prompt | tuple[Prompt, Any] | Mapping[str, Any]] | Any"  # or a table
Keep: TypeAlias = "str | PathLike[str] | OnDisk | Collection[str | PathLike[str] | OnDisk]"


@dataclass(frozen=True, init=False)
class Request:
    """One question of many, as :meth:`Probe.generate_many` and other functions take them.

    ``id``, ``candidates`` and the columns of ``carry`` are returned in ``result.meta``.
    """

    question: Prompt
    image: Any
    id: Any
    candidates: tuple[str, ...] | None  # scored by functions that score, else only recorded
    carry: Mapping[str, Any] = field(hash=False)  # further columns, as data that a result can keep
    prompt_options: PromptOptions = field(hash=False)  # how this one's prompt is written

    def __init__(
        self,
        question: Prompt = UNSET,
        image: Any = None,
        id: Any = None,
        *,
        candidates: Sequence[str] | None = None,
        carry: Mapping[str, Any] | None = None,
        prompt: Prompt = UNSET,
        **prompt_options: Unpack[PromptOptions],
    ) -> None:
        """``prompt`` is a former name of ``question``.

        Raises:
            MessageError: for invalid candidates, or a column of ``carry`` that vlmprobe records itself or cannot keep.
            GenerationOptionError: for an invalid option of the prompt.
        """
        if prompt is not UNSET:
            renamed("Request(prompt=)", "Request(question=)")
            question = prompt if question is UNSET else question
        if question is UNSET:
            raise TypeError("Request() needs a question")
        require_carried(carry or ())
        AS_BY_DEFAULT.updated(prompt_options)
        object.__setattr__(self, "question", question)
        object.__setattr__(self, "image", image)
        object.__setattr__(self, "id", scalar(id))
        object.__setattr__(self, "candidates", _candidates(candidates))
        object.__setattr__(self, "carry", {name: plain(value, name) for name, value in (carry or {}).items()})
        object.__setattr__(self, "prompt_options", prompt_options)

    @property
    def prompt(self) -> Prompt:
        """Former name of :attr:`question`."""
        renamed("Request.prompt", "Request.question")
        return self.question

    @property
    def told(self) -> dict[str, Any]:
        """What ``meta`` records of it: ``id`` and ``candidates`` if it has them, and the carried columns."""
        own = {"id": self.id, "candidates": None if self.candidates is None else list(self.candidates)}
        return {**{name: value for name, value in own.items() if value is not None}, **self.carry}


@dataclass(frozen=True)
class Numbered:
    """A request with its row in a longer list, by which errors name it."""

    row: int
    request: Request


def options_of(
    keep: Any, prompt: Any, alternatives: Any, seed: Any, generation: Mapping[str, Any], processors: Any = ()
) -> Options:
    """The arguments of :meth:`Probe.generate` as engine options.

    Raises:
        GenerationOptionError: for an invalid value.
    """
    generation = dict(generation)
    constraint = constraint_of(generation)
    _require_generation(generation)
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
        generation,
        own,
        constraint,
        next(iter(stores), None),
        demanded=frozenset(demanded),
    )


def _require_generation(generation: Mapping[str, Any]) -> None:
    for name in generation:
        if name == "image":  # of generate_many, since generate has that argument
            raise GenerationOptionError(
                "image= is not of the whole call: each request has its own, in a tuple (question, image) or a column "
                "'image'; for one image use probe.session(image).generate_many(...)"
            )
        if name in PROMPT_OPTIONS:
            raise GenerationOptionError(
                f"{name} is no option of generation: it says how a prompt is written. Pass it to generate, stream, "
                "score, yes_no or generate_many, to probe.session, or to vlmprobe.load, wrap or connect for all."
            )
        if name in OF_TEMPLATES:
            raise GenerationOptionError(
                f"{name} is no option of generation but of the chat template, if it reads it: pass "
                f"chat_template_kwargs={{{name!r}: {generation[name]!r}}}."
            )
        if is_named_like_an_image(name):
            raise GenerationOptionError(f"There is no option {name!r}: pass an image, or a list of images, as image=")


def request_of(raw: Any) -> Request:
    """A request in any form that :meth:`Probe.generate_many` takes: a tuple is ``(question, image)``.

    Raises:
        MessageError: for a mapping without a question, a column that cannot be carried, or another tuple.
    """
    if isinstance(raw, Request):
        return raw
    if isinstance(raw, tuple) and not all(isinstance(each, Mapping) for each in raw):  # else chat messages
        if len(raw) != 2:
            raise MessageError(f"a request that is a tuple is (question, image); this one has {len(raw)} parts")
        return Request(_question(raw[0]), _image(raw[1]))
    if not isinstance(raw, Mapping):
        return Request(_question(raw))
    further = further_columns(raw)
    question = _question(next(raw[name] for name in QUESTIONS if name in raw))
    shown = bool(set(IMAGES) & set(raw)) or shows_images(question)
    for name in further:
        require_no_option(name, raw[name])
        if not shown:
            require_no_image(name, raw[name])
    return Request(
        question,
        _image(next((raw[name] for name in IMAGES if name in raw), None)),
        raw.get("id"),
        candidates=scalar(raw.get("candidates")),
        carry={name: raw[name] for name in further},
        **{name: listed(raw[name]) for name in PROMPT_OPTIONS if name in raw},
    )


def id_of(raw: Any) -> Any:
    """The id of a request in any form, also of one that cannot be read; None if it has none."""
    return raw.id if isinstance(raw, Request) else scalar(raw.get("id")) if isinstance(raw, Mapping) else None


def _question(cell: Any) -> Any:
    if missing(cell):
        raise MessageError("the question is missing (None or NaN): give a string, or chat messages")
    return listed(cell)


def _image(cell: Any) -> Any:
    """An image, or a list of images, from a cell; None from a missing one."""
    return None if missing(cell) else listed(cell) if isinstance(cell, np.ndarray) else cell


def _candidates(given: Any) -> tuple[str, ...] | None:
    listing = listed(given)
    return None if listing is None or listing == [] or listing == () else tuple(candidate_list(listing))


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
    if isinstance(candidates, (str, Mapping)) or not isinstance(candidates, Iterable):
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


def bytes_to_keep(gigabytes: Any) -> int:
    """Validates how many GB a session keeps, and gives them in bytes.

    Raises:
        GenerationOptionError: unless it is a finite number of at least 0.
    """
    if isinstance(gigabytes, bool) or not isinstance(gigabytes, (int, float)) or not 0 <= gigabytes < float("inf"):
        raise GenerationOptionError(f"prefix_cache_gb must be a number of at least 0, not {gigabytes!r}")
    return int(gigabytes * 2**30)


def with_meta(result: Any, meta: Mapping[str, Any], conversation: Conversation) -> Any:
    """The result with the model, the question and the images recorded in its ``meta``."""
    return replace(result, meta={**meta, **record(conversation), **result.meta})


def carrying(result: Any, request: Request) -> Any:
    """The result with the request's id, candidates and further columns in its ``meta``.

    Raises:
        MessageError: for a column whose name ``meta`` has already; an adapter of one's own may record further names.
    """
    told = request.told
    if "candidates" in result.meta:  # how a server scored them: the scores hold the candidates themselves
        told.pop("candidates", None)
    for name in told:
        if name in result.meta:
            raise MessageError(f"column {name!r} has a name that vlmprobe records in meta itself: rename the column")
    return replace(result, meta={**result.meta, **told}) if told else result
