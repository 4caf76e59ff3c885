"""Follows what a coordinate could have become: the tree of its tokens, and boxes drawn from the model.

Every continuation runs on the prefilled prompt and the answer before it, so a number of three digits costs about 1,100
short sequences at most, and those that are unlikely are not followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from vlmprobe.analysis.box_numbers import PIECE, Outcomes, Range, Tally, after, range_of
from vlmprobe.engines.base import HasAdapter, ReadsContinuations, require
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.detokenize import Detokenizer

__all__ = ["Follower", "Place"]

Path: TypeAlias = tuple[int, ...]

DEEPEST = 12  # tokens of a number
TRIES = 5  # times that a number is drawn until it is one
NEGLECTED = 1e-3  # of the least probability that is followed: what is below it is not even told apart
KNOWN = 4096  # texts of which is kept what may come next
BLANKS = "\u0120\u010a\u0109\u010d\u2581"  # as byte-level vocabularies write white space, and SentencePiece a space
PIECES = frozenset("0123456789.-" + BLANKS)  # what tokens of a number are made of, as vocabularies write them


@dataclass(frozen=True)
class Place:
    """Where a number stands in an answer, and what may stand there."""

    first: int  # row of its first token
    last: int  # row of its last one
    lead: str  # text of the first token before the number
    tail: str  # text of the last token after it
    greatest: float
    step: float


class _Next(NamedTuple):
    """What may come after the text of a number."""

    choices: list[tuple[int, Range | None]]  # columns of tokens that go on with it, or end it as it was written
    enders: list[int]  # columns of tokens that begin something else
    end: Range | None  # the number if it ends here


@dataclass
class Follower:
    """The answer of a model, to be followed where its numbers could have been others."""

    probe: Any
    conversation: Conversation
    ids: Sequence[int]  # of the answer
    least: float  # probability, among the numbers in the image, below which one is not followed further
    _tokens: dict[str, tuple[list[int], list[str]]] = field(default_factory=dict)
    _known: dict[Any, _Next] = field(default_factory=dict)

    def __post_init__(self) -> None:
        engine = self.probe.engine
        self._after = require(engine, ReadsContinuations).continuations(self.conversation)
        self._reader = Detokenizer(require(engine, HasAdapter).adapter.tokenizer)

    def outcomes(self, place: Place) -> Outcomes:
        """What the number could have become, given all that stands before it."""
        ids, texts = self._number_tokens(place.lead)
        kind = place.lead, place.greatest, place.step
        tally = Tally()
        waiting: list[tuple[Path, str, float]] = [((), "", 1.0)]
        least = 0.0
        for depth in range(DEEPEST):
            if not waiting:
                break
            rows = np.exp(self._after.logprobs(self.ids[: place.first], [path for path, *_ in waiting], ids))
            further = []
            for (path, text, mass), row in zip(waiting, rows, strict=True):
                tally.add(after(text, "", *kind), mass * max(0.0, 1.0 - float(row.sum())))
                small = row * mass < least * NEGLECTED
                tally.add(range_of(text, *kind), mass * float(row[small].sum()))
                for column in np.flatnonzero(~small).tolist():
                    found, reached = after(text, texts[column], *kind), mass * float(row[column])
                    if found is None or found.ended:
                        tally.add(found, reached)
                    else:
                        further.append(((*path, ids[column]), text + (texts[column] or PIECE), reached))
            # Probabilities are those of numbers in the image, however unlikely one is at all.
            begun = [reached for _, text, reached in further if after(text, "", *kind) is not None]
            least = self.least * max(sum(begun), tally.ended)
            waiting = []
            for each in further:
                if each[2] < least or depth == DEEPEST - 1:
                    tally.add(range_of(each[1], *kind), each[2])
                else:
                    waiting.append(each)
        return tally.outcomes(place.greatest)

    def draws(self, places: Sequence[Place], count: int, random: np.random.Generator) -> np.ndarray | None:
        """Numbers drawn one after another, each given those drawn before it and the structure between them as written.

        A number that leaves the image, or becomes none, is drawn again.

        Args:
            places: of the numbers of a box, K of them.
            count: how many boxes to draw.
            random: what draws.

        Returns:
            float64 [count, K]; NaN where no number in the image could be drawn. None if one token holds parts of two
            numbers.
        """
        if any(one.last >= other.first for one, other in pairwise(places)):
            return None
        begin = self.ids[: places[0].first]
        paths: list[Path] = [()] * count
        values = np.full((count, len(places)), np.nan)
        alive = list(range(count))
        for number, place in enumerate(places):
            drawn = self._drawn(place, begin, {each: paths[each] for each in alive}, random)
            alive = list(drawn)
            between: Path = ()
            if number + 1 < len(places):
                between = tuple(map(int, self.ids[place.last + 1 : places[number + 1].first]))
            for each, (path, value) in drawn.items():
                paths[each], values[each, number] = path + between, value
        return values

    def _drawn(
        self, place: Place, begin: Sequence[int], starts: dict[int, Path], random: np.random.Generator
    ) -> dict[int, tuple[Path, float]]:
        """A number after each path, and the path with it; what leads to none again and again is missing."""
        ids, texts = self._number_tokens(place.lead)
        done: dict[int, tuple[Path, float]] = {}
        open_ = {each: (path, "") for each, path in starts.items()}  # and the text of the number so far
        for _ in range(TRIES * DEEPEST):
            if not open_:
                break
            together: dict[tuple[Path, str], list[int]] = {}
            for each, state in open_.items():
                together.setdefault(state, []).append(each)
            rows = np.exp(self._after.logprobs(begin, [path for path, _ in together], ids))
            for ((path, text), several), row in zip(together.items(), rows, strict=True):
                choices, enders, end = self._next(place, text)
                likely = row[[column for column, _ in choices]]
                ending = 0.0 if end is None else max(0.0, 1.0 - float(row.sum())) + float(row[enders].sum())
                neither = max(0.0, 1.0 - float(likely.sum()) - ending)
                weights = np.array([*likely, ending, neither])
                drawn = random.choice(len(weights), size=len(several), p=weights / weights.sum())
                for each, choice in zip(several, drawn.tolist(), strict=True):
                    if choice < len(choices):
                        column, found = choices[choice]
                        grown = (*path, ids[column])
                        open_[each] = grown, text + (texts[column] or PIECE)
                    elif choice == len(choices):
                        grown, found = path, end
                    else:
                        open_[each] = starts[each], ""
                        continue
                    if found is not None:
                        done[each] = grown, found.low
                        del open_[each]
        return dict(sorted(done.items()))

    def _next(self, place: Place, text: str) -> _Next:
        """What may come after the text of a number."""
        key = place.lead, place.tail, place.greatest, place.step, text
        if key not in self._known:
            _, texts = self._number_tokens(place.lead)
            kind = place.lead, place.greatest, place.step
            end = after(text, "", *kind) if not place.tail else None
            choices: list[tuple[int, Range | None]] = []
            enders = []
            for column, token in enumerate(texts):
                found = after(text, token, *kind)
                if found is not None and not found.ended:
                    choices.append((column, None))
                elif found is not None and place.tail and (text + token).endswith(place.tail):
                    choices.append((column, found))
                elif found is not None and end is not None and found.low == end.low:
                    enders.append(column)  # it ends the number, whatever else it begins
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[key] = _Next(choices, enders, end)
        return self._known[key]

    def _number_tokens(self, lead: str) -> tuple[list[int], list[str]]:
        """The tokens that a number, with what leads to it, can be made of, and their texts."""
        if lead not in self._tokens:
            tokenizer = self._reader.tokenizer
            known = list(range(len(tokenizer)))
            pieces = tokenizer.convert_ids_to_tokens(known)
            maybe = PIECES | frozenset(lead)
            found = [
                (each, text)
                for each, piece in zip(known, pieces, strict=True)
                if isinstance(piece, str)
                and (not maybe.isdisjoint(piece) or not piece.strip())
                and _leads_on(text := self._reader.alone(each), lead)
            ]
            self._tokens[lead] = [each for each, _ in found], [text for _, text in found]
        return self._tokens[lead]


def _leads_on(text: str, lead: str) -> bool:
    """Whether a token may be part of a number or of what leads to it."""
    bare = text.lstrip()
    if not bare:
        return bool(text)
    for start in range(len(lead) + 1):
        rest = lead[start:]
        if rest.startswith(bare) or (bare.startswith(rest) and bare[len(rest) :].lstrip()[:1] in {*"0123456789.", ""}):
            return True
    return False
