"""``GroupedScores``: answers with several spellings, each scored, their probabilities summed; ``YesNo`` of two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from typing import Any, NoReturn, TypeVar

import numpy as np

from vlmprobe.display.view import LITTLE
from vlmprobe.errors import CapabilityError, MessageError
from vlmprobe.results.bounds import at_most, listed_in, open_mass
from vlmprobe.results.choices import read_only
from vlmprobe.results.first_token import held_little
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.nested import Path, path_of
from vlmprobe.results.result import Scores
from vlmprobe.results.thought import Thought

__all__ = ["Answer", "GroupedScores", "YesNo", "grouped"]

YES = ("yes", "Yes", "YES", " yes", " Yes", " YES")
NO = ("no", "No", "NO", " no", " No", " NO")

Groups = Mapping[str, Sequence[str]]


@dataclass(frozen=True, eq=False, repr=False)
class GroupedScores(Scores):
    """How likely each of G answers is, in any of its spellings.

    ``candidates`` are the names of the answers, ``tables`` those of their likeliest spellings. A spelling covers every
    continuation of it, so one that extends another spelling of its answer adds nothing and is left out.

    From an engine that lists only the likeliest tokens, the numbers are those of the spellings that it lists, and
    ``logprob_bounds`` and ``probability_bounds`` say what the others may add.
    """

    spellings: Scores = field(kw_only=True)  # of all C spellings
    members: list[list[int]] = field(kw_only=True)  # [G] indices into ``spellings`` to sum, as far as they are known
    left_out: dict[str, str] = field(kw_only=True)  # spellings that do not count, and why

    @cached_property
    def logprobs(self) -> np.ndarray:
        """float64 [G], nats: log of the summed probabilities of each answer's spellings; NaN if none is listed."""
        return read_only(self._summed())

    def _summed(self) -> np.ndarray:
        each = self.spellings.logprobs
        known = [each[places][~np.isnan(each[places])] for places in self.members]
        summed = np.array([np.logaddexp.reduce(told) if len(told) else np.nan for told in known])
        for answer, places in enumerate(self.longer):
            if places:  # a rounded difference may come out below 0
                rest = -np.expm1(np.logaddexp.reduce(each[places]) - summed[answer])
                summed[answer] = summed[answer] + np.log(rest) if rest > 0 else -np.inf
        return summed

    @cached_property
    def longer(self) -> list[list[int]]:
        """[G] indices into ``spellings`` to subtract: those of other answers that begin with one of this answer."""
        paths = {place: path_of(self.spellings.tables[place]) for places in self.members for place in places}
        begins_with = _nearest(paths)
        return [[place for place, shorter in begins_with.items() if shorter in places] for places in self.members]

    @property
    def mass(self) -> float:
        """Probability that the answer begins with a spelling that counts; none of these begins with another."""
        return float(np.nansum(np.exp(self.logprobs)))

    @property
    def means(self) -> np.ndarray:
        """NaN [G]: spellings of different lengths have no mean."""
        return np.full(len(self.candidates), np.nan)

    per_byte = means

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per spelling: answer, spelling, logprob, and whether it counts."""
        answer = {place: name for name, places in zip(self.candidates, self.members, strict=True) for place in places}
        listed = self.spellings.candidates
        columns = {
            "answer": [answer.get(place) for place in range(len(listed))],
            "spelling": listed,
            "logprob": self.spellings.logprobs,
            "left_out": [self.left_out.get(each) for each in listed],
        }
        bounds = {"logprob_at_most": self.spellings.logprob_bounds[:, 1]} if self.spellings.bounded else {}
        return data_frame(columns | bounds)

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        texts, tables = self.spellings.candidates, self.spellings.tables
        found = [open_mass({texts[place]: tables[place] for place in places}, self.meta) for places in self.members]
        tail, other = np.array(found, dtype=np.float64).reshape(-1, 2).T
        return tail, other

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, document = self.spellings._parts()
        return arrays, document | {
            "meta": self.meta,
            "groups": {"names": self.candidates, "members": self.members, "left_out": self.left_out} | self._more(),
        }

    def _more(self) -> dict[str, Any]:
        """What else is saved, ready for JSON; :meth:`_read` turns it back into arguments of the class."""
        return {}

    @classmethod
    def _read(cls, groups: dict[str, Any]) -> dict[str, Any]:
        return {}

    @classmethod
    def _from_parts(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> GroupedScores:
        groups = document["groups"]
        spellings = Scores._from_parts(arrays, document)
        more = cls._read(groups)
        known = range(len(spellings.candidates))
        if (
            len(groups["names"]) != len(groups["members"])
            or not all(groups["members"])
            or not all(place in known for places in groups["members"] for place in places)
        ):
            raise ValueError("its groups do not fit its candidates")
        return _build(cls, groups["names"], spellings, groups["members"], groups["left_out"], **more)


@dataclass(frozen=True, eq=False, repr=False)
class Answer(GroupedScores):
    """An answer of a kind that was asked for. It prints as a person reads it, such as ``yes 0.93``."""

    thought: Thought | None = field(kw_only=True, default=None)  # that it was scored after, if the model was let think

    @property
    def said(self) -> str:
        """The likeliest answer and its probability among the answers: ``"yes 0.93"``."""
        return f"{self.best} {_share(float(np.nanmax(self.probabilities)))}"

    @property
    def note(self) -> str:
        """One sentence if the answers hold less than a tenth of what the model would say, with what it would rather
        begin with; empty otherwise."""
        opened = bool((self.meta.get("thought") or {}).get("opened"))
        return held_little(self.tables[0], self.mass, self._together, opened) if self.mass < LITTLE else ""

    @property
    def _together(self) -> str:
        return f"the {len(self.candidates)} answers together hold"

    def at(self, threshold: Any) -> str:
        """The likeliest answer if its probability among the answers reaches a threshold, else ``"unsure"``.

        Args:
            threshold: above 0, at most 1; or an object with a ``value``, as those of
                :mod:`vlmprobe.analysis.gating`.

        Raises:
            ValueError: for another number.
            TypeError: for what is no number.
        """
        return self.best if float(np.nanmax(self.probabilities)) >= _threshold(threshold) else "unsure"

    def __bool__(self) -> NoReturn:
        """An answer is never simply true.

        Raises:
            TypeError: always; it says what to write.
        """
        raise TypeError(
            f"an answer ({self.said}) is neither true nor false: write answer.at(0.9), which may be 'unsure', or "
            f"{'answer.says_yes' if isinstance(self, YesNo) else 'answer.best'}"
        )

    def _document(self) -> dict[str, Any]:
        told = {} if self.thought is None else {"thought": self.thought.to_dict()}
        return {"answer": self.said, "note": self.note, **super()._document(), **told}

    def _parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, document = super()._parts()
        own, told = ({}, None) if self.thought is None else self.thought.parts()
        return arrays | own, document | ({"thought": told} if told else {})

    @classmethod
    def _from_parts(cls, arrays: dict[str, np.ndarray], document: dict[str, Any]) -> GroupedScores:
        answer = super()._from_parts(arrays, document)
        told = document.get("thought")
        return replace(answer, thought=Thought.from_parts(arrays, told)) if told else answer  # type: ignore[call-arg]

    def __str__(self) -> str:
        told = [f"mass {self.mass:.2g}"] if self.mass < LITTLE else []
        told += [self.thought.short] if self.thought is not None else []
        return f"{self.said} ({', '.join(told)})" if told else self.said

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"


@dataclass(frozen=True, eq=False, repr=False)
class YesNo(Answer):
    """Scores of the two answers ``"yes"`` and ``"no"``, in that order."""

    @property
    def _together(self) -> str:
        return "yes and no together hold"

    @property
    def says_yes(self) -> bool:
        """Whether yes is likelier than no."""
        return self.probability > 0.5 if np.isnan(self.logprobs).any() else bool(self.logprobs[0] > self.logprobs[1])

    @property
    def probability(self) -> float:
        """Of yes, given that the answer is yes or no; ``mass`` says how probable that is.

        It is that of the spellings that the engine lists, 0 or 1 if it lists those of one answer only; :attr:`bounds`
        say how far it can be from that of all.
        """
        return float(np.nan_to_num(self.probabilities[0], nan=0.0))

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest that :attr:`probability` can be with all spellings; both are it if all are known.

        An interval that holds 0.5 is never wider than :data:`~vlmprobe.results.bounds.WIDEST`: that is an error.
        """
        low, high = self.probability_bounds[0].tolist()
        return low, high

    @property
    def margin(self) -> float:
        """Log-odds of yes against no, nats; NaN if the engine lists no spelling of one of them."""
        return float(self.logprobs[0] - self.logprobs[1])


Kind = TypeVar("Kind", bound=GroupedScores)
Key = TypeVar("Key")


def grouped(
    groups: Groups,
    scores: Scores,
    *,
    strict: bool = True,
    kind: type[Kind] = GroupedScores,  # type: ignore[assignment]
    longest: bool = False,
    **more: Any,
) -> Kind:
    """Group the scores of spellings into answers.

    Args:
        groups: spellings by the name of their answer.
        scores: of all of them.
        strict: whether a spelling that the tokenizer cannot encode is an error; otherwise it is left out.
        kind: the class to return.
        longest: of two answers of which one begins with the other, whether what begins with the longer one counts for
            that alone (``"red"`` is then red, and not followed by car, beside ``"red car"``); otherwise it is an error.
        **more: further fields of ``kind``.

    Raises:
        MessageError: if two answers collide (one is a prefix of the other, or their tokens are the same), or an answer
            has no spelling that counts.
        CapabilityError: if the engine lists too few tokens to tell which answer is likeliest.
    """
    place_of = {text: place for place, text in enumerate(scores.candidates)}
    groups = {name: list(dict.fromkeys(texts)) for name, texts in groups.items()}
    left_out: dict[str, str] = {}
    for text, place in place_of.items():
        if read := _misread(scores, place):
            if strict:
                raise MessageError(
                    f"{text!r} cannot be encoded by this tokenizer: it decodes to {read!r}. Leave it out."
                )
            left_out[text] = f"the tokenizer encodes it as {read!r}"
        elif np.isnan(scores.logprobs[place]) and not np.isfinite(at_most(scores.tables[place])):
            left_out[text] = listed_in(scores.meta).get("absent", {}).get(text, "it has no log-probability")
    paths = {text: path_of(scores.tables[place]) for text, place in place_of.items() if text not in left_out}
    start = _common_start(groups, paths, left_out)
    for text, path in list(paths.items()):
        if path[0] != start:
            left_out[text] = "the tokenizer merges the end of the prompt differently than for the other spellings"
            del paths[text]
    owner = {text: name for name, texts in groups.items() for text in texts if text in paths}
    for text, shorter in _nearest({text: paths[text] for text in owner}).items():
        known = not np.isnan(scores.logprobs[place_of[text]])
        if owner[shorter] == owner[text]:
            left_out[text] = f"its probability is part of that of {shorter!r}"
        elif not (longest and known and paths[shorter] != paths[text]):
            raise _collision(text, shorter, owner, same=paths[shorter] == paths[text])
    members = [[place_of[text] for text in texts if text not in left_out] for texts in groups.values()]
    found = _build(kind, list(groups), scores, members, left_out, **more)
    _require_decided(found)
    return found


def _build(
    kind: type[Kind],
    names: list[str],
    scores: Scores,
    members: list[list[int]],
    left_out: dict[str, str],
    **more: Any,
) -> Kind:
    sums = np.nan_to_num(scores.logprobs, nan=-np.inf)
    likeliest = [max(places, key=lambda place: float(sums[place])) for places in members]
    return kind(
        candidates=list(names),
        tables=[scores.tables[place] for place in likeliest],
        boundaries=[scores.boundaries[place] for place in likeliest],
        meta=scores.meta,
        images=scores.images,
        spellings=scores,
        members=[list(places) for places in members],
        left_out=dict(left_out),
        **more,
    )


def _require_decided(scores: GroupedScores) -> None:
    """Raise :class:`CapabilityError` where the answers that an engine does not list may change which is likeliest."""
    if not scores.bounded or scores.decided:
        return
    best = int(np.nanargmax(scores.logprobs if not np.isnan(scores.logprobs).all() else scores.logprob_bounds[:, 1]))
    low, high = scores.probability_bounds[best]
    listed, table = listed_in(scores.meta), scores.tables[best]
    likely = zip(table.top_tokens[0], np.exp(table.top_logprobs[0]), strict=True)
    top = ", ".join(f"{text!r} {value:.3f}" for text, value in likely if value == value)
    raise CapabilityError(
        f"The engine lists too little to tell the answers apart: the probability of {scores.candidates[best]!r} is "
        f"between {low:.3f} and {high:.3f}, given that it is one of {', '.join(map(repr, scores.candidates))}. The "
        f"{listed.get('tokens', len(table.top_tokens[0]))} tokens listed begin with {top}. {listed.get('more', '')}"
    )


def _nearest(paths: Mapping[Key, Path]) -> dict[Key, Key]:
    """For each spelling whose tokens begin with those of another, or equal them, the longest of these others.

    Of two spellings with the same tokens, the second begins with the first.
    """
    first: dict[Path, Key] = {}
    for key, path in paths.items():
        first.setdefault(path, key)
    found = {}
    for key, path in paths.items():
        stops = range(len(path) if first[path] != key else len(path) - 1, 1, -1)  # a path begins with its position
        shorter = next((first[path[:stop]] for stop in stops if path[:stop] in first), None)
        if shorter is not None:
            found[key] = shorter
    return found


def _collision(text: str, shorter: str, owner: Mapping[str, str], *, same: bool) -> MessageError:
    remedy = "Drop one." if same else f"Make the shorter one longer, such as {shorter + '.'!r}, or drop one."
    return MessageError(
        f"The answers {owner[text]!r} and {owner[shorter]!r} collide: whatever begins with {text!r} begins with "
        f"{shorter!r} too. {remedy}"
    )


def _threshold(given: Any) -> float:
    value = getattr(given, "value", given)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"a threshold is a number above 0 and at most 1, such as 0.9, not {given!r}")
    if not 0 < float(value) <= 1:
        raise ValueError(f"a threshold is a probability above 0 and at most 1, such as 0.9, not {given!r}")
    return float(value)


def _share(probability: float) -> str:
    """A probability to two decimals, never rounded to certainty."""
    return ">0.99" if 0.995 <= probability < 1 else f"{probability:.2f}"


def _misread(scores: Scores, place: int) -> str | None:
    """What a spelling decodes to, if it contains a token without text (an unknown one)."""
    table, text = scores.tables[place], scores.candidates[place]
    read = "".join(table.tokens)
    return read if "special" in table.kinds and read.strip() != text.strip() else None


def _common_start(groups: Groups, paths: Mapping[str, Path], left_out: Mapping[str, str]) -> int:
    """The first position at which every answer has a spelling.

    Raises:
        MessageError: if there is none.
    """
    for name, texts in groups.items():
        if not any(text in paths for text in texts):
            reasons = "; ".join(f"{text!r}: {left_out[text]}" for text in texts)
            raise MessageError(f"The answer {name!r} has no spelling that counts ({reasons}).")
    for start in sorted({path[0] for path in paths.values()}):
        if all(any(text in paths and paths[text][0] == start for text in texts) for texts in groups.values()):
            return int(start)
    raise MessageError(
        "The tokenizer merges the end of the prompt with some answers and not with others, so their probabilities are "
        "at different positions: give each answer a spelling with a leading space, and one without."
    )
