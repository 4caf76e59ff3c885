"""What an engine's numbers mean: log-probabilities or logits, raw or after temperature and filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["FLOOR", "KINDS", "Kind", "Meaning", "judge", "judge_constrained"]

Kind = Literal["raw", "tempered", "filtered", "constrained", "unknown"]
KINDS: tuple[Kind, ...] = ("raw", "tempered", "filtered", "unknown")  # of all answers
FLOOR = -9990.0  # engines write -9999, or the lowest float, where a probability is zero or not reported
HOT = 2.0  # the temperature of the probe request
LEAST_SPAN = 0.02  # nats between the first and last alternative, below which a temperature cannot be detected
LARGEST_VOCABULARY = 2**20


@dataclass(frozen=True)
class Meaning:
    """How to read the numbers of one server.

    ``kind`` is what they are if a call samples with temperature and filters: ``"raw"`` (untouched), ``"tempered"``
    (after temperature and penalties), ``"filtered"`` (after top-k and top-p too), ``"unknown"``; of a constrained
    answer (:meth:`constrained`) also ``"constrained"``: after what its schema or grammar rules out.
    """

    kind: Kind = "unknown"
    logits: bool = False  # they are logits, not log-probabilities
    clamped: bool = True  # at the floor means "at most the floor"; else only "not among those listed"

    def of(self, processing: str) -> Kind:
        """The kind of the numbers of one call, given what was done to its distribution."""
        if self.kind in ("unknown", "raw", "constrained"):
            return self.kind
        if processing == "none":
            return "raw"
        return "tempered" if self.kind == "tempered" or processing == "tempered" else "filtered"

    def constrained(self, kind: Kind) -> Meaning:
        """Of the same server, for a constrained answer, whose numbers are of a ``kind``."""
        return replace(self, kind=kind)

    @property
    def mode(self) -> str:
        """The name of this meaning, as in vLLM's ``--logprobs-mode``."""
        side = {"raw": "raw", "unknown": "unknown"}.get(self.kind, "processed")
        return f"{side}_{'logits' if self.logits else 'logprobs'}"


def judge(plain: Sequence[float], hot: Sequence[float], cut: Sequence[float]) -> Meaning:
    """Infer the meaning of an engine's numbers from the top values of one token drawn in three ways.

    Args:
        plain: drawn greedily; best first.
        hot: drawn with temperature :data:`HOT`, no filter.
        cut: drawn with a ``top_p`` that leaves one token.
    """
    known = [value for value in plain if value > FLOOR]
    heated = [value for value in hot if value > FLOOR][: len(known)]
    left = [value for value in cut if value > FLOOR]
    logits = _are_logits(known) or _are_logits(heated)
    if len(known) < 2 or known[0] - known[-1] < LEAST_SPAN or len(heated) < 2 or not left:
        return Meaning("unknown", logits)
    shared = min(len(known), len(heated))
    ratio = (heated[0] - heated[shared - 1]) / max(known[0] - known[shared - 1], LEAST_SPAN)
    tempered = abs(ratio - 1 / HOT) < abs(ratio - 1)
    alone = len(left) == 1 or (not logits and left[0] > -1e-4 and known[0] < -1e-3)
    return Meaning("filtered" if alone else "tempered" if tempered else "raw", logits)


def judge_constrained(drawn: str, listed: Sequence[str]) -> Kind:
    """Infer what the numbers of constrained answers are from the first token of one that must be a JSON object.

    Args:
        drawn: its text.
        listed: the texts of the likeliest tokens of the same position.
    """
    if not _may_begin_an_object(drawn) or not listed:
        return "unknown"  # the constraint may not reach this token, such as one of a thought
    return "constrained" if all(map(_may_begin_an_object, listed)) else "raw"


def _may_begin_an_object(text: str) -> bool:
    return text.strip()[:1] in ("", "{")


def _are_logits(values: Sequence[float]) -> bool:
    """Whether values cannot be log-probabilities: they sum to more than 1, or all are below uniform."""
    if not values:
        return False
    over = values[0] > 1e-4 or math.fsum(math.exp(min(value, 1.0)) for value in values) > 1 + 1e-3
    return over or values[0] < -math.log(LARGEST_VOCABULARY)
