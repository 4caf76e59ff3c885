"""Who computes: one module per engine behind one protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlmprobe.messages import Conversation
from vlmprobe.result import Result, Scores

__all__ = ["KEEP", "Engine", "Options"]

KEEP = ("stats", "logits", "hidden")


@dataclass(frozen=True)
class Options:
    """What to compute and what to keep of it, the same for every engine."""

    keep: frozenset[str] = frozenset({"stats"})
    prompt: bool = True  # whether the prompt side is reported
    alternatives: int = 10  # K of top_ids and top_logprobs
    seed: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)  # arguments of transformers' GenerationConfig


class Engine(Protocol):
    """What a :class:`vlmprobe.Probe` asks of whoever computes."""

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Raise what is wrong with a request before anything runs."""

    def batch_size(self, wanted: int, options: Options) -> int:
        """The largest batch up to ``wanted`` in which every request gives the numbers that it gives alone."""

    def generate(self, conversations: Sequence[Conversation], options: Options) -> list[Result]:
        """Answer the conversations as one batch."""

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score each candidate as the answer to the conversation."""
