"""Typed questions: yes or no, one of several options, a level of a scale, or several of them on one prefix.

Options may be listed in the prompt, each with a letter. Models prefer some letters whatever stands behind them. Asked
in every cyclic order of the options, each option has had each letter once, and in the average of its probabilities that
preference counts for all alike (Zheng, Zhou, Meng, Zhou & Huang 2024, "Large Language Models Are Not Robust Multiple
Choice Selectors": the cyclic permutations that their PriDe is compared with).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from vlmprobe.display.view import LITTLE
from vlmprobe.engines.base import HasAdapter, Options
from vlmprobe.errors import (
    GenerationOptionError,
    ImageError,
    MessageError,
    VlmprobeError,
    VlmprobeWarning,
    near,
    outside,
)
from vlmprobe.inputs.messages import Conversation, ImagePart, Message, TextPart
from vlmprobe.inputs.prompt_format import PROMPT_OPTIONS
from vlmprobe.probe.failure import Failure, named
from vlmprobe.probe.question_kinds import Kind, kind_of
from vlmprobe.probe.request import Request, options_of
from vlmprobe.probe.score_many import score_many
from vlmprobe.probe.think import Thinking, Thoughtful, ends_within_thought, thinking_of, thoughtful
from vlmprobe.results.asked import Answer, Answers, Rating
from vlmprobe.results.first_token import THOUGHT, cause_of
from vlmprobe.results.result import Scores
from vlmprobe.results.thought import Thought

__all__ = ["CLOSE", "answer_many", "ask", "require_arguments", "warn_of_first_token"]

CLOSE = 0.2  # difference of the two greatest probabilities up to which rotate="close" asks in the other orders too
KEYS = ("question", "image", "options", "levels", "by", "none_of_these", "rotate")
ARGUMENTS = (*KEYS, "think", "think_end")
_TOLD: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()  # by model: causes that were warned of


@dataclass(frozen=True)
class Asked:
    """A question with the kind of its answer."""

    conversation: Conversation
    kind: Kind

    def prompt(self, order: Sequence[int]) -> Conversation:
        """The question: the conversation with the options in an order, if they are listed."""
        return _with_lines(self.conversation, self.kind.listed(order)) if self.kind.letters else self.conversation


def require_arguments(given: Iterable[str]) -> None:
    """Reject arguments that :meth:`Probe.ask` does not have.

    Raises:
        TypeError: it names the nearest one.
    """
    known = (*ARGUMENTS, *PROMPT_OPTIONS)
    for name in given:
        if name not in PROMPT_OPTIONS:
            likely = " Options go into options=." if name in ("candidates", "choices") else near(name, known)
            raise TypeError(f"ask() has no argument {name!r}; it has {', '.join(known)}.{likely}")


def ask(
    probe: Any, question: Any, image: Any, think: Any = None, think_end: Any = None, **kind: Any
) -> Answer | Answers:
    """The answer to a question, or those to several; see :meth:`Probe.ask`.

    Args:
        probe: to query.
        question, image, think, think_end: as there.
        **kind: ``options``, ``levels``, ``by``, ``none_of_these`` and ``rotate``, as there.
    """
    thinking = thinking_of(think, think_end)
    if isinstance(question, Mapping):
        asked = {}
        shared = _Shared(probe, image)
        for name, each in _named(question).items():
            try:
                asked[name] = _asked(shared, *_read(each, image, kind))
            except VlmprobeError as error:
                raise named(error, f"question {name!r}") from error
        answers = _answered(probe, list(asked.values()), list(asked), thinking)
        return Answers(dict(zip(asked, answers, strict=True)))
    if isinstance(question, (list, tuple)) and any(isinstance(each, str) for each in question):
        raise MessageError(
            "a list of questions has no names for the answers: pass a mapping, such as ask({'person': 'Is there a "
            "person?'}, image)"
        )
    asked_one = _asked(_Shared(probe, image), question, image, kind_of(**kind))
    (answer,) = _answered(probe, [asked_one], [None], thinking)
    return answer


def answer_many(
    probe: Any, requests: Any, candidates: Any, kind: Kind, run: Options, *how: Any
) -> Iterator[Answer | Failure]:
    """Which option, or which level, is the answer to each of many requests; see :meth:`Probe.score_many`.

    Args:
        probe: to query.
        requests, candidates: as there.
        kind: of all answers, from the further arguments there.
        run: options of the engine.
        *how: ``batch_size``, ``progress`` and ``on_error``, as there.

    Raises:
        GenerationOptionError: for candidates beside the options.
    """
    given = "levels=" if kind.answer is Rating else "options="
    if candidates is not None:
        raise GenerationOptionError(f"candidates= and {given} both say what is scored: give one of them")
    order = kind.orders[0]

    def converse(question: Any, image: Any = None, **prompt: Any) -> Conversation:
        return _of_kind(probe.conversation(question, image, **prompt), kind).prompt(order)

    scored = score_many(probe, requests, kind.candidates(order), run, *how, given=given, converse=converse)
    return (each if isinstance(each, Failure) else kind.read([each], [order]) for each in scored)


def _named(questions: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Validates the mapping of several questions."""
    if not questions:
        raise MessageError("there is no question: give at least one, by a name for its answer")
    if "question" in questions and set(questions) & {"options", "levels"}:
        raise MessageError("one question is asked as ask(question, image, options=...); a mapping names several")
    if {"role", "content"} <= set(questions):
        raise MessageError("this is a chat message: put it into a list")
    for name in questions:
        if not isinstance(name, str) or not name.strip():
            raise MessageError(f"the name of a question must be a text, not {name!r}")
    return questions


def _read(given: Any, image: Any, defaults: Mapping[str, Any]) -> tuple[Any, Any, Kind]:
    """One of several questions: itself, its image, and its kind; ``defaults`` are for those that have none."""
    own: dict[str, Any] = {"question": given}
    if isinstance(given, Mapping):
        own = dict(given)
        if unknown := sorted(map(repr, set(own) - set(KEYS))):
            raise MessageError(f"it has {unknown[0]}; the keys of a question are {', '.join(KEYS)}")
        if "question" not in own:
            raise MessageError(f"it has no 'question', only {', '.join(map(repr, own)) or 'nothing'}")
    elif isinstance(given, tuple) and not all(isinstance(each, Mapping) for each in given):  # else chat messages
        if len(given) != 2:
            raise MessageError(f"a question that is a tuple is (question, options); this one has {len(given)} parts")
        own = {"question": given[0], "levels" if isinstance(given[1], range) else "options": given[1]}
    question, image = own.pop("question"), own.pop("image", image)
    if own.get("options") is None and own.get("levels") is None:
        own |= {name: defaults.get(name) for name in ("options", "levels")}
    about = [name for name in ("options", "levels") if own.get(name) is not None]
    further = {"options": ("by", "rotate", "none_of_these"), "levels": ("by", "rotate")}
    inherited = [name for kind in about for name in further[kind] if name in defaults]
    return question, image, kind_of(**{**{name: defaults[name] for name in inherited}, **own})


class _Shared:
    """Builds the conversations of several questions about one image, or several, which are read once."""

    def __init__(self, probe: Any, image: Any) -> None:
        self.probe, self.image = probe, image

    @cached_property
    def parts(self) -> tuple[ImagePart, ...]:
        """The images as parts of a message."""
        about: Conversation = self.probe.conversation("about", self.image)
        return about.image_parts

    def conversation(self, question: Any, image: Any) -> Conversation:
        """As that of the probe."""
        if image is None or image is not self.image or not isinstance(question, str):
            made: Conversation = self.probe.conversation(question, image)
            return made
        made = self.probe.conversation(question, [])
        (asked,) = made.messages
        return replace(made, messages=(Message("user", (*self.parts, *asked.parts)),))


def _asked(shared: _Shared, question: Any, image: Any, kind: Kind) -> Asked:
    """The question as a conversation.

    Raises:
        MessageError: for options given in place of the image.
    """
    try:
        conversation = shared.conversation(question, image)
    except ImageError as error:
        if isinstance(image, (list, tuple)) and all(isinstance(each, str) and "." not in each for each in image):
            raise MessageError(f"{error} Options go in by name: ask(question, image, options=[...]).") from error
        raise
    return _of_kind(conversation, kind)


def _of_kind(conversation: Conversation, kind: Kind) -> Asked:
    """The question of a conversation, with the kind of its answer."""
    if kind.letters and conversation.format.raw_prompt:
        raise GenerationOptionError(
            "by='letters' writes the options below the question, and a raw prompt is written by you: write them into "
            "it, and score the letters, options={'red': ['A', ' A'], ...}"
        )
    return Asked(conversation, kind)


def _with_lines(conversation: Conversation, lines: str) -> Conversation:
    """The conversation with lines below the text of the last user message."""
    messages = list(conversation.messages)
    place = next((place for place in reversed(range(len(messages))) if messages[place].role == "user"), None)
    if place is None:
        raise MessageError("by='letters' writes the options below the question, and no message is of the user: add one")
    parts = list(messages[place].parts)
    at = next((at for at in reversed(range(len(parts))) if isinstance(parts[at], TextPart)), None)
    if at is None:
        parts.append(TextPart(lines.lstrip("\n")))
    else:
        parts[at] = TextPart(f"{parts[at].text.rstrip()}{lines}")  # type: ignore[union-attr]
    messages[place] = Message("user", tuple(parts), messages[place].further)
    return replace(conversation, messages=tuple(messages))


def _answered(
    probe: Any, asked: Sequence[Asked], names: Sequence[str | None], thinking: Thinking | None
) -> list[Answer]:
    """The answers to all questions: in one call, and in a second one those that are close, in other orders."""
    orders = [each.kind.orders if each.kind.rotate == "all" else each.kind.orders[:1] for each in asked]
    scored = _scored(probe, asked, names, orders, thinking)
    scores = [[each for each, _ in found] for found in scored]
    answers = [each.kind.read(found, own) for each, found, own in zip(asked, scores, orders, strict=True)]
    close = [place for place, each in enumerate(asked) if each.kind.rotate == "close" and _is_close(answers[place])]
    rest = [asked[place].kind.orders[1:] for place in close]
    again = _scored(probe, [asked[place] for place in close], [names[place] for place in close], rest, thinking)
    for place, further, order in zip(close, again, rest, strict=True):
        both = [*scores[place], *(each for each, _ in further)]
        answers[place] = asked[place].kind.read(both, [*orders[place], *order])
    answers = [replace(answer, thought=found[0][1]) for answer, found in zip(answers, scored, strict=True)]
    for place, answer in enumerate(answers):
        if thinking is None and answer.mass < LITTLE:
            answers[place] = answer = _opened_or_not(probe.engine, asked[place], answer)
        warn_of_first_token(probe.engine, answer)
    return answers


def _opened_or_not(engine: Any, asked: Asked, answer: Answer) -> Answer:
    """The answer, told that it was scored within a thought if the prompt opens one."""
    if not ends_within_thought(engine, asked.prompt(asked.kind.orders[0])):
        return answer
    return replace(answer, meta={**answer.meta, "thought": {"opened": True}})


def _scored(
    probe: Any,
    asked: Sequence[Asked],
    names: Sequence[str | None],
    orders: Sequence[Sequence[Sequence[int]]],
    thinking: Thinking | None,
) -> list[list[tuple[Scores, Thought | None]]]:
    """The scores of each question in each of its orders, and the thought that they come after."""
    every = [(each, order, name) for each, name, own in zip(asked, names, orders, strict=True) for order in own]
    prompts = [each.prompt(order) for each, order, _ in every]
    if thinking is None or not prompts:
        thoughts = [Thoughtful(prompt) for prompt in prompts]
    else:
        thoughts = thoughtful(probe, prompts, [name for *_, name in every], thinking)
    requests = [
        Request(
            prompt.conversation,  # type: ignore[arg-type]
            [],  # its images are in it, and none of a session are added
            name,
            candidates=each.kind.candidates(order),
        )
        for (each, order, name), prompt in zip(every, thoughts, strict=True)
    ]
    found: Iterator[Scores] = iter(())
    if len(requests) == 1:
        found = iter([probe.score(requests[0].question, requests[0].candidates, requests[0].image)])
    elif requests:
        options = options_of("stats", None, None, None, {})
        found = score_many(probe, requests, None, options, "auto", False, "raise", what="questions")
    both = list(zip(every, thoughts, found, strict=True))
    for _, one, scores in both:
        one.require_scored_after(scores)
    told = iter([(_without_spellings(each, name, one.meta), one.thought) for (*_, name), one, each in both])
    return [[next(told) for _ in own] for own in orders]


def _without_spellings(scores: Scores, name: str | None, further: Mapping[str, Any]) -> Scores:
    """The scores with the name of their question as id, without their candidates in ``meta``, and with ``further``."""
    meta = {key: value for key, value in scores.meta.items() if key != "candidates"} | dict(further)
    return replace(scores, meta=meta if name is None else meta | {"id": name})


def _is_close(answer: Answer) -> bool:
    last, best = np.sort(np.nan_to_num(answer.probabilities))[-2:]
    return bool(best - last <= CLOSE)


def warn_of_first_token(engine: Any, answer: Answer) -> None:
    """Say why the answers hold little of what the model would say, once for a model and a reason."""
    opened = "opened" in (answer.meta.get("thought") or {})
    cause = (THOUGHT if opened else cause_of(answer.tables[0])) if answer.mass < LITTLE else None
    told = _TOLD.setdefault(engine.adapter.model if isinstance(engine, HasAdapter) else engine, set())
    if cause is None or cause in told:
        return
    told.add(cause)
    warnings.warn(f"{answer.note} (Said once of this model; answer.note says it of each.)", VlmprobeWarning, outside())
