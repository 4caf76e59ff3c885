"""Scores candidates of one token by the likeliest tokens at the first position of the answer.

This is what engines can do that list those tokens and cannot score given text. A candidate that is listed has its
log-probability. Of another one a bound is known: an unlisted token is at most as likely as the least likely listed one,
and as what the listed ones leave together.

Without the model's tokenizer it is not known whether a candidate is one token. A listed token that reads as the
candidate shows that it is; otherwise its first token may be any listed one that it begins with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vlmprobe.adapter import EncodedPrompt
from vlmprobe.engines.base import Options
from vlmprobe.engines.serving.answer import Abilities, Answer, Scored
from vlmprobe.engines.serving.rows import Alternative, Row
from vlmprobe.engines.serving.tokens import NEEDED, Tokens
from vlmprobe.engines.serving.value_kind import FLOOR, Meaning
from vlmprobe.errors import AdapterError, CapabilityError, EngineResponseError, MessageError
from vlmprobe.inputs.image_spans import ImageSpan, placeholder_runs
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.detokenize import Detokenizer

if TYPE_CHECKING:
    from vlmprobe.adapter import Adapter

__all__ = [
    "HOW",
    "MANY",
    "Listed",
    "Sought",
    "first_token_candidates",
    "may_begin",
    "rows_in_full",
    "sought",
]

HOW = "listed tokens"  # how candidates were scored, in meta
MANY = 1000  # alternatives that are requested of an engine without a limit
ROUNDING = 1e-4  # probability by which rounded numbers may sum to more than they should
CERTAIN = 1e-6
SHOWN = 8  # tokens that an error names
SPACES = ("Ġ", "▁")  # how tokenizers write a space at the start of a piece
PARTIAL = "\N{REPLACEMENT CHARACTER}"  # in the text of a token that is a piece of a character


class Lists(Protocol):
    """What this module needs of an engine."""

    abilities: Abilities
    tokens: Tokens
    meaning: Meaning | None

    @property
    def title(self) -> str:
        """The engine's display name."""

    async def first_answer(self, conversation: Conversation, options: Options) -> Answer:
        """One token with its alternatives."""


@dataclass(frozen=True)
class Sought:
    """A candidate, and its tokens if the tokenizer is known."""

    text: str
    ids: tuple[int, ...] = ()  # empty if the tokenizer is not known
    first: str = ""  # the text of the first of them
    merged: int = 0  # tokens at the end of the prompt that the tokenizer merges with it


@dataclass(frozen=True)
class Found:
    """What is known of a candidate."""

    rows: list[Row]
    why: str = ""  # it has no log-probability
    begun: bool = False  # it may begin with a token that is listed


@dataclass(frozen=True)
class Listed:
    """The tokens that an engine lists at one position."""

    tokens: tuple[Alternative, ...]  # best first
    unlisted: float  # the greatest probability of all the others together
    at_most: float  # nats, the greatest log-probability of each of the others

    @classmethod
    def of(cls, row: Row) -> Listed:
        """From the row of the token that was drawn there, whose alternatives are the likeliest without gaps."""
        told = row.value is not None and row.value > FLOOR
        drawn = (Alternative(row.value, row.id, row.text),) if told and row.value is not None else ()
        tokens = row.top if any(_same(each, row) for each in row.top) else (*row.top, *drawn)
        held = math.fsum(math.exp(min(each.value, 0.0)) for each in tokens)
        unlisted = min(max(1.0 - held, 0.0) + ROUNDING, 1.0)
        # Some engines list the token that was drawn in place of the last one, which is then likelier.
        likely = row.top[:-1] if len(row.top) > 1 and _same(row.top[-1], row) else row.top
        least = min((each.value for each in likely), default=0.0)
        return cls(tokens, unlisted, min(least, math.log(unlisted), 0.0))

    def named(self, token: int | None, text: str) -> list[Alternative]:
        """The listed tokens of an id, where ids are known, or of a text."""
        return [
            each
            for each in self.tokens
            if (each.id == token if each.id is not None and token is not None else text in _readings(each.text))
        ]

    def record(self, candidates: Sequence[str], found: Sequence[Found]) -> dict[str, Any]:
        """What ``meta["listed"]`` holds, for :mod:`vlmprobe.results.bounds`."""
        pairs = list(zip(candidates, found, strict=True))
        return {
            "tokens": len(self.tokens),
            "unlisted": self.unlisted,
            "begun": [text for text, each in pairs if each.begun],
            "absent": {text: each.why for text, each in pairs if each.why},
        }

    def shown(self, detokenizer: Detokenizer | None) -> str:
        """The likeliest of them, for an error."""
        texts = [
            detokenizer.alone(each.id) if detokenizer is not None and each.id is not None else each.text
            for each in self.tokens[:SHOWN]
        ]
        pairs = zip(texts, self.tokens, strict=False)
        shown = ", ".join(f"{text!r} {math.exp(each.value):.3f}" for text, each in pairs)
        return f"{shown}, ..." if len(self.tokens) > SHOWN else shown


async def first_token_candidates(
    engine: Lists, conversation: Conversation, candidates: Sequence[str], options: Options
) -> tuple[list[Scored], dict[str, Any]]:
    """The rows of each candidate, and what to record in ``meta``.

    ``options.alternatives`` tokens are requested if the caller set it, else as many as the engine lists.

    Raises:
        CapabilityError: if no candidate is listed, or the engine's numbers are no log-probabilities.
    """
    count = _count(engine.abilities, options)
    if not count:
        raise CapabilityError(f"{engine.title} cannot score candidates: {engine.abilities.no_alternatives}.")
    answer = await engine.first_answer(conversation, replace(options, prompt=False, alternatives=count))
    if not answer.output:
        raise EngineResponseError(
            f"{engine.title} sent no token: an answer that ends at once has none on this route, so nothing is known of "
            "the candidates."
        )
    meaning = answer.meaning or engine.meaning or Meaning()
    row = answer.output[0]
    _require_logprobs(engine.title, row, meaning, count)
    listed = Listed.of(row)
    found = [found_in(listed, each, row.top) for each in sought(engine.tokens, conversation, candidates)]
    start = -1 if answer.prompt_ids is None else len(answer.prompt_ids)
    more = _more(engine, count, len(row.top))
    if all(each.why for each in found):
        raise CapabilityError(
            f"{engine.title} lists {len(listed.tokens)} tokens at the start of the answer, and none of "
            f"{', '.join(map(repr, candidates))} is one of them: {listed.shown(engine.tokens.detokenizer)}. The "
            f"tokens that are not listed hold "
            f"at most {listed.unlisted:.2g} of the probability together. {more}"
        )
    told = listed.record(candidates, found) | {"more": more}
    return [Scored(each.rows, start) for each in found], {"candidates": HOW, "listed": told}


def sought(tokens: Tokens, conversation: Conversation, candidates: Sequence[str]) -> list[Sought]:
    """The candidates, with their ids directly after the prompt if the tokenizer is known."""
    adapter = tokens.adapter
    if adapter is None:
        return [Sought(text) for text in candidates]
    try:
        written = adapter.render([conversation])[0]
    except (AdapterError, MessageError):  # the server has a template, and the processor has none that fits
        return [Sought(text) for text in candidates]
    ids = np.array(adapter.tokenize(written), dtype=np.int64)
    runs = placeholder_runs(ids, tokens.image_ids)
    prompt = EncodedPrompt(ids, tuple(ImageSpan(0, tile, *run) for tile, run in enumerate(runs)), written)
    return [_sought(adapter, prompt, text) for text in candidates]


def _sought(adapter: Adapter, prompt: EncodedPrompt, text: str) -> Sought:
    try:
        found = adapter.continuation(prompt, text)
    except AdapterError:
        return Sought(text)
    first = str(adapter.tokenizer.decode(list(found.ids[:1]), clean_up_tokenization_spaces=False))
    piece = str(adapter.tokenizer.convert_ids_to_tokens(found.ids[0]))
    if piece[:1] in SPACES and not first.startswith(" "):  # of a token alone some tokenizers strip the space
        first = f" {first}"
    return Sought(text, found.ids, first, len(prompt.ids) - found.shared)


def found_in(listed: Listed, each: Sought, top: tuple[Alternative, ...]) -> Found:
    """A candidate among the tokens that are listed at its first position, ``top`` the likeliest of them."""
    if each.merged:
        why = f"the tokenizer merges it with {each.merged} token(s) at the end of the prompt"
        return Found([Row(id=one) for one in each.ids], why, begun=True)
    first = each.ids[0] if each.ids else None
    same = listed.named(first, each.first if each.ids else each.text)
    further = [Row(id=one, at_most=0.0) for one in each.ids[1:]]
    by_id = first is not None and same[:1] != [] and same[0].id == first
    if len(same) == 1 and (by_id or PARTIAL not in (same[0].text or "")):
        row = Row(same[0].value, first if same[0].id is None else same[0].id, same[0].text, top=top)
        why = f"it is {len(each.ids)} tokens, and only the first is listed" if further else ""
        return Found([row, *further], why, begun=bool(further))
    others = [one for one in listed.tokens if _may_be(one, each)]
    most = max([listed.at_most, *(one.value for one in (*same, *others))])
    why = f"it is not among the {len(listed.tokens)} tokens that are listed"
    if same:
        why = f"{len(same)} of the tokens that are listed read so"
    elif others:
        why += f", and may begin with {others[0].text!r}, which is"
    row = Row(None, first, None if each.ids else each.text, top=top, at_most=most)
    return Found([row, *further], why, begun=bool(same or others))


def rows_in_full(each: Sought, row: Row) -> list[Row]:
    """The rows of a candidate at a position of which the whole vocabulary is known.

    Raises:
        CapabilityError: if the candidate's tokens are not known.
    """
    if not each.ids or row.full is None:
        raise CapabilityError(f"The tokens of {each.text!r} after this prompt are not known: {NEEDED}.")
    if each.merged:
        return [Row(id=one) for one in each.ids]
    first = Row(float(row.full[each.ids[0]]), each.ids[0], full=row.full)
    return [first, *(Row(id=one, at_most=0.0) for one in each.ids[1:])]


def _may_be(token: Alternative, each: Sought) -> bool:
    """Whether a listed token, which is not known to be the first of a candidate, may be."""
    if not each.ids:
        return may_begin(token.text, each.text)
    if token.id is not None:
        return False
    # Without ids: a piece of a character, or a token whose space the engine strips.
    piece = PARTIAL in (token.text or "") and may_begin(token.text, each.text)
    return piece or (each.first.startswith(" ") and token.text == each.first[1:])


def may_begin(token: str | None, text: str) -> bool:
    """Whether a text of several tokens can begin with a token, given as an engine writes it."""
    return any(_may_begin(reading, text) for reading in _readings(token))


def _may_begin(token: str, text: str) -> bool:
    known, piece, _ = token.partition(PARTIAL)
    if not text.startswith(known) or text == token:
        return False
    return not text[len(known) : len(known) + 1].isascii() if piece else bool(token)


def _readings(token: str | None) -> set[str]:
    """What a token can read: some engines write the tokenizer's own piece, in which a space is another character."""
    text = token or ""
    return {text, " " + text[1:]} if text[:1] in SPACES else {text}


def _count(abilities: Abilities, options: Options) -> int:
    """How many alternatives to request."""
    most = MANY if abilities.alternatives is None else abilities.alternatives
    return options.alternatives if "alternatives" in options.demanded else most


def _more(engine: Lists, count: int, listed: int) -> str:
    """What would list more tokens than the ``listed`` ones of the ``count`` that were requested."""
    most = engine.abilities.alternatives
    if listed < count:
        how = f"{engine.title} lists no more."
    elif most is None or count < most:
        how = f"alternatives={10 * count if most is None else most} lists more."
    else:
        how = f"{engine.title} lists at most {most}: {engine.abilities.no_alternatives}."
    why = engine.abilities.one_token
    return f"{how} Candidates of several tokens cannot be had: {why}." if why else how


def _require_logprobs(title: str, row: Row, meaning: Meaning, count: int) -> None:
    """Raise :class:`CapabilityError` for numbers that say nothing of the model's distribution."""
    if meaning.logits:
        raise CapabilityError(
            f"{title} sends logits of a few tokens, and a candidate's log-probability takes those of all: start the "
            "server so that it sends log-probabilities (vLLM: --logprobs-mode raw_logprobs)."
        )
    if count > 1 and len(row.top) < 2 and row.value is not None and row.value > -CERTAIN:
        raise CapabilityError(
            f"{title} lists one token with probability 1 where {count} were requested: these are probabilities after "
            "its filters, which say nothing of the candidates."
        )


def _same(each: Alternative, row: Row) -> bool:
    return each.id == row.id if each.id is not None and row.id is not None else each.text == row.text
