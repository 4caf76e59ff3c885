"""Protocols of what can be displayed, so that display depends on none of the classes that it shows.

``TokenTable``, ``Result``, ``Scores`` and ``Choices`` of :mod:`vlmprobe.results` implement them, and so do the classes
of :mod:`vlmprobe.analysis`; mypy checks it where they call display. Anything else that fits can be shown too.
"""

# ruff: noqa: D102 - the comment beside each property says what it holds

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL.Image import Image

from vlmprobe.inputs.image_spans import ImageSpan

__all__ = [
    "Shown",
    "ShownAnswer",
    "ShownChoices",
    "ShownExample",
    "ShownGallery",
    "ShownInterval",
    "ShownMcNemar",
    "ShownMetric",
    "ShownPaired",
    "ShownReliability",
    "ShownResult",
    "ShownRiskCoverage",
    "ShownScores",
    "ShownTable",
    "ShownThought",
    "ShownThreshold",
]


class ShownTable(Protocol):
    """T tokens with K likeliest tokens each; a missing number is NaN, a missing rank -1."""

    def __len__(self) -> int: ...
    @property
    def ids(self) -> Any: ...  # int64 [T], or None if an engine gives none
    @property
    def tokens(self) -> Sequence[str]: ...  # [T]
    @property
    def kinds(self) -> Sequence[str]: ...  # [T] "text", "special" or "image"
    @property
    def positions(self) -> np.ndarray: ...  # int64 [T], position in the model's own sequence
    @property
    def logprobs(self) -> np.ndarray: ...  # float32 [T], nats
    @property
    def logprobs_at_most(self) -> np.ndarray | None: ...  # float32 [T], nats: bounds, where a number is not known
    @property
    def entropy(self) -> np.ndarray: ...  # float32 [T], nats
    @property
    def ranks(self) -> np.ndarray: ...  # int64 [T]
    @property
    def scores(self) -> np.ndarray | None: ...  # float32 [T], nats, after processors
    @property
    def mass_allowed(self) -> np.ndarray | None: ...  # float32 [T], probability of what a constraint allowed
    @property
    def top_ids(self) -> np.ndarray: ...  # int64 [T, K]
    @property
    def top_logprobs(self) -> np.ndarray: ...  # float32 [T, K], nats
    @property
    def top_tokens(self) -> Sequence[Sequence[str]]: ...  # [T][K]
    @property
    def image_spans(self) -> Sequence[ImageSpan]: ...
    @property
    def logprob(self) -> float: ...  # nats, of all tokens together
    @property
    def perplexity(self) -> float: ...


class Shown(Protocol):
    """What an answer and scored candidates have in common."""

    @property
    def meta(self) -> Mapping[str, Any]: ...  # model, question, ...
    @property
    def images(self) -> Sequence[Image]: ...


@runtime_checkable
class ShownResult(Shown, Protocol):
    """An answer, with statistics of every token."""

    @property
    def prompt(self) -> ShownTable | None: ...
    @property
    def output(self) -> ShownTable: ...


@runtime_checkable
class ShownScores(Shown, Protocol):
    """C candidate answers and how likely each is."""

    @property
    def candidates(self) -> Sequence[str]: ...  # [C]
    @property
    def tables(self) -> Sequence[ShownTable]: ...  # [C], of the candidates' tokens
    @property
    def boundaries(self) -> Sequence[str | None]: ...  # [C], what was done at the end of the prompt
    @property
    def logprobs(self) -> np.ndarray: ...  # float64 [C], nats
    @property
    def means(self) -> np.ndarray: ...  # float64 [C], nats per token
    @property
    def per_byte(self) -> np.ndarray: ...  # float64 [C], nats per UTF-8 byte
    @property
    def probabilities(self) -> np.ndarray: ...  # float64 [C], among the candidates
    @property
    def mass(self) -> float: ...  # probability of all candidates together
    @property
    def bounded(self) -> bool: ...  # whether some are only known to be at most so likely
    @property
    def logprob_bounds(self) -> np.ndarray: ...  # float64 [C, 2], nats
    @property
    def probability_bounds(self) -> np.ndarray: ...  # float64 [C, 2], of probabilities


class ShownThought(Protocol):
    """What a model wrote before its answer."""

    @property
    def text(self) -> str: ...
    @property
    def told(self) -> str: ...  # how long it is, how it ended, how sure
    @property
    def output(self) -> ShownTable: ...


@runtime_checkable
class ShownAnswer(ShownScores, Protocol):
    """C possible answers to a question of a kind."""

    @property
    def said(self) -> str: ...  # the likeliest one, as a person reads it
    @property
    def note(self) -> str: ...  # what is to be known of it; may be empty
    @property
    def thought(self) -> ShownThought | None: ...  # that it comes after


class ShownChoices(Protocol):
    """N choices, ordered by step and, within one, likeliest first."""

    @property
    def steps(self) -> np.ndarray: ...  # int64 [N]
    @property
    def tokens(self) -> Sequence[str]: ...  # [N]
    @property
    def probabilities(self) -> np.ndarray: ...  # float32 [N]
    @property
    def chosen(self) -> np.ndarray: ...  # bool [N], whether this is the chosen token
    @property
    def k(self) -> int: ...  # number of top tokens per step


class ShownReliability(Protocol):
    """Answers in B bins of confidence."""

    @property
    def confidence(self) -> np.ndarray: ...  # float64 [B]
    @property
    def accuracy(self) -> np.ndarray: ...  # float64 [B]
    @property
    def count(self) -> np.ndarray: ...  # int64 [B]
    @property
    def ece(self) -> float: ...


class ShownRiskCoverage(Protocol):
    """Share of wrong answers among those kept, for M shares kept."""

    @property
    def coverage(self) -> np.ndarray: ...  # float64 [M]
    @property
    def risk(self) -> np.ndarray: ...  # float64 [M]
    @property
    def area(self) -> float: ...


class ShownThreshold(Protocol):
    """A confidence threshold, from which on answers are kept."""

    @property
    def value(self) -> float: ...
    @property
    def coverage(self) -> float: ...  # share of the answers kept
    @property
    def kept(self) -> int: ...
    @property
    def wrong(self) -> int: ...  # of those kept


class ShownExample(Protocol):
    """A question with one answer, or the answers of A and of B."""

    @property
    def id(self) -> Any: ...
    @property
    def gold(self) -> Any: ...  # the right answer, or None
    @property
    def questions(self) -> Sequence[str]: ...  # [1 or 2]
    @property
    def images(self) -> Sequence[Image]: ...
    @property
    def answers(self) -> Sequence[Shown]: ...  # [1 or 2]
    @property
    def texts(self) -> Sequence[str]: ...  # of each answer
    @property
    def confidences(self) -> Sequence[float]: ...  # of each answer, from 0 to 1
    @property
    def correct(self) -> Sequence[bool]: ...  # of each answer; empty if unknown


class ShownGallery(Protocol):
    """Examples to look at."""

    @property
    def title(self) -> str: ...
    @property
    def examples(self) -> Sequence[ShownExample]: ...
    @property
    def names(self) -> Sequence[str]: ...  # of the answers
    @property
    def total(self) -> int: ...  # how many examples there are, of which these are the first


class ShownInterval(Protocol):
    """A number with its interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def level(self) -> float: ...


class ShownMetric(Protocol):
    """One metric of A and of B."""

    @property
    def a(self) -> float: ...
    @property
    def b(self) -> float: ...
    @property
    def difference(self) -> ShownInterval: ...  # B minus A
    @property
    def p(self) -> float: ...  # NaN without a test


class ShownMcNemar(Protocol):
    """McNemar's test."""

    @property
    def only_a(self) -> int: ...  # pairs in which only A is right
    @property
    def only_b(self) -> int: ...
    @property
    def p(self) -> float: ...


class ShownPaired(Protocol):
    """Metrics of A and of B over the same questions."""

    @property
    def n(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def names(self) -> Sequence[str]: ...  # [2]
    @property
    def metrics(self) -> Mapping[str, ShownMetric]: ...
    @property
    def mcnemar(self) -> ShownMcNemar: ...
