"""What kind of answer a question wants: yes or no, one of several options, or a level of a scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from numbers import Real
from string import ascii_uppercase
from typing import Any, Literal, TypeAlias

import numpy as np

from vlmprobe.errors import GenerationOptionError, MessageError, near
from vlmprobe.inputs.messages import TextPart
from vlmprobe.probe.request import candidate_groups
from vlmprobe.results.asked import Answer, Choice, Rating, YesNo
from vlmprobe.results.grouped import NO, YES, grouped
from vlmprobe.results.result import Scores

__all__ = ["INSTRUCTION", "NONE_OF_THESE", "By", "Kind", "Rotate", "kind_of"]

By: TypeAlias = Literal["texts", "letters"]
Rotate: TypeAlias = Literal["close", "all"] | None

INSTRUCTION = "Answer with the option's letter from the given choices directly."  # as LLaVA 1.5 was trained on
NONE_OF_THESE = "none of these"
BYS, ROTATIONS = ("texts", "letters"), ("close", "all")


@dataclass(frozen=True)
class Kind:
    """A kind of answer: its options with their spellings, and how they are asked."""

    options: Mapping[str, Sequence[str]]  # [N] spellings of each, in order
    answer: type[Answer]
    letters: bool = False
    rotate: Rotate = None
    strict: bool = False  # whether every spelling must be one that the tokenizer can encode
    further: Mapping[str, Any] = field(default_factory=dict)  # fields of the answer

    @property
    def orders(self) -> list[list[int]]:
        """Every cyclic order of the options: which option is in which place."""
        count = len(self.options)
        return [[(place + shift) % count for place in range(count)] for shift in range(count)]

    def listed(self, order: Sequence[int]) -> str:
        """The lines that tell the options in an order, each with its letter, and how to answer."""
        names = list(self.options)
        lines = [f"{ascii_uppercase[place]}. {names[each]}" for place, each in enumerate(order)]
        return "\n".join(["", *lines, INSTRUCTION])

    def spellings(self, order: Sequence[int]) -> dict[str, list[str]]:
        """What is scored for each option, in the order of the options."""
        if not self.letters:
            return {name: list(texts) for name, texts in self.options.items()}
        letters = {each: ascii_uppercase[place] for place, each in enumerate(order)}
        return {name: [letters[place], f" {letters[place]}"] for place, name in enumerate(self.options)}

    def candidates(self, order: Sequence[int]) -> list[str]:
        """All that is scored."""
        return [text for texts in self.spellings(order).values() for text in texts]

    def read(self, scores: Sequence[Scores], orders: Sequence[Sequence[int]]) -> Answer:
        """The answer from the scores [O] of its spellings in each of the orders [O].

        Raises:
            MessageError: for options that the model would spell with the same tokens.
        """
        further = dict(self.further)
        if self.letters:
            further["orders"] = [list(order) for order in orders]
        longest = issubclass(self.answer, Choice)
        found = [
            grouped(self.spellings(order), each, strict=self.strict, kind=self.answer, longest=longest, **further)
            for each, order in zip(scores, orders, strict=True)
        ]
        if len(found) == 1:
            return found[0]
        return replace(found[0], by_order=np.stack([each.logprobs for each in found]))  # type: ignore[call-arg]


def kind_of(
    options: Any = None, levels: Any = None, by: Any = "texts", none_of_these: Any = None, rotate: Any = None
) -> Kind:
    """Validates the arguments of :meth:`Probe.ask` that say what is asked for.

    Raises:
        MessageError: for options or levels that cannot be chosen from.
        GenerationOptionError: for an unknown ``by`` or ``rotate``, or arguments that do not fit together.
    """
    _require_choice("by", by, BYS)
    if rotate is not None:
        _require_choice("rotate", rotate, ROTATIONS)
    if options is not None and levels is not None:
        raise GenerationOptionError("options= and levels= are two kinds of answers: give one of them")
    if options is None and levels is None:
        given = [name for name, value in (("rotate", rotate), ("none_of_these", none_of_these)) if value]
        if given := (["by"] if by != "texts" else []) + given:
            raise GenerationOptionError(f"{given[0]}= is about options, and without options= a question is yes or no")
        return Kind({"yes": YES, "no": NO}, YesNo)
    letters = by == "letters"
    if rotate is not None and not letters:
        raise GenerationOptionError(
            "rotate= changes the order in which the prompt lists the options, and by='texts' lists none: pass "
            "by='letters' too"
        )
    if levels is not None:
        if none_of_these:
            raise GenerationOptionError("none_of_these= is no level of a scale: it goes with options=")
        values = _levels(levels)
        names, answer, further = list(values), Rating, {"values": np.array(list(values.values()), dtype=np.float64)}
        return Kind(_spelled(names, letters), answer, letters, rotate, further=further)
    own = _own_spellings(options, letters)
    names = list(own) or _texts(options, "option", "options=['red', 'blue']")
    if none_of_these:
        names.append(_none_of_these(none_of_these, names))
    _require_several(names, "option", " (or none_of_these=True)")
    if not own:
        return Kind(_spelled(names, letters), Choice, letters, rotate)
    added = {name: each for name, each in _spelled(names, letters).items() if name not in own}
    return Kind(candidate_groups({**own, **added}), Choice, strict=True)


def _require_choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise GenerationOptionError(
            f"{name} must be {' or '.join(map(repr, known))}, not {value!r}.{near(str(value), known)}"
        )


def _own_spellings(options: Any, letters: bool) -> dict[str, list[str]]:
    """Those of a mapping; none for a list of options."""
    if not isinstance(options, Mapping):
        return {}
    if letters:
        raise GenerationOptionError("by='letters' scores letters, so spellings are not used: pass options as a list")
    return candidate_groups(options)


def _texts(given: Any, what: str, example: str) -> list[str]:
    """A list of distinct texts of one line."""
    if isinstance(given, (str, bytes, Mapping, Set)) or not isinstance(given, Iterable):
        why = ", which has an order" if isinstance(given, Set) else ""
        raise MessageError(f"{what}s must be a list{why}, such as {example}, not {type(given).__name__}")
    listed = list(given)
    for place, each in enumerate(listed):
        if not isinstance(each, str):
            remedy = "; numbers on a scale go into levels=" if _is_number(each) and what == "option" else ""
            raise MessageError(f"{what} {place} is {type(each).__name__}, not a string{remedy}")
        TextPart(each)  # rejects text that no tokenizer can encode
        if not each.strip():
            raise MessageError(f"{what} {place} is empty")
        if len(each.splitlines()) > 1:
            raise MessageError(f"{what} {place} has several lines: give texts of one line")
        if each.strip() in [other.strip() for other in listed[:place]]:
            raise MessageError(f"{what} {place} repeats an earlier one: {each!r}")
    return listed


def _levels(given: Any) -> dict[str, float]:
    """Names and values of levels: numbers and texts of numbers have their own values, other texts 1 to N."""
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping, Set)):
        given = [f"{each:g}" if _is_number(each) else each for each in given]
    names = _texts(given, "level", "levels=['blurry', 'fair', 'sharp'] or range(1, 6)")
    _require_several(names, "level")
    try:
        values = [float(name) for name in names]
    except ValueError:
        return dict(zip(names, map(float, range(1, len(names) + 1)), strict=True))
    steps = np.diff(values)
    if not (np.all(steps > 0) or np.all(steps < 0)):
        raise MessageError(f"levels must be in order, from one end of the scale to the other, not {', '.join(names)}")
    return dict(zip(names, values, strict=True))


def _none_of_these(given: Any, names: Sequence[str]) -> str:
    if given is not True and not isinstance(given, str):
        raise GenerationOptionError(f"none_of_these must be True or the text of that option, not {given!r}")
    (text,) = _texts([NONE_OF_THESE if given is True else given], "none_of_these", "")
    if text in names:
        raise MessageError(f"none_of_these repeats the option {text!r}")
    return text


def _require_several(names: Sequence[str], what: str, more: str = "") -> None:
    if len(names) < 2:
        found = "there is no" if not names else "there is one"
        raise MessageError(f"{found} {what}: give at least two{more}, for one alone is always the likeliest")


def _spelled(names: Sequence[str], letters: bool) -> dict[str, list[str]]:
    """How each option may be written: as it is, with a capital or a small first letter, and after a space.

    A spelling that is another option as it is belongs to that one alone.
    """
    if letters:
        if len(names) > len(ascii_uppercase):
            raise MessageError(f"{len(names)} options have no letters, of which there are {len(ascii_uppercase)}")
        return {name: [] for name in names}
    stripped = [name.strip() for name in names]
    found = {}
    for name, text in zip(names, stripped, strict=True):
        ways = dict.fromkeys((text, text[0].upper() + text[1:], text[0].lower() + text[1:]))
        own = [way for way in ways if way == text or way not in stripped]
        found[name] = [*own, *(f" {way}" for way in own)]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
