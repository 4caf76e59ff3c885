"""Who computes: one module per engine behind one protocol, :class:`Engine`.

``local.py`` is the engine of transformers models in this process; ``serving/`` holds what engines behind a server
share, and one small file for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlmprobe.errors import CapabilityError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.row_files import OnDisk

__all__ = ["KEEP", "Engine", "Options", "ability"]

KEEP = ("stats", "logits", "hidden")


@dataclass(frozen=True)
class Options:
    """What to compute and what to keep of it, the same for every engine."""

    keep: frozenset[str] = frozenset({"stats"})
    prompt: bool = True  # whether the prompt side is reported
    alternatives: int = 10  # K of top_ids and top_logprobs
    seed: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)  # arguments of transformers' GenerationConfig
    processors: tuple[Any, ...] = ()  # the caller's own logits processors, in order
    store: OnDisk | None = None  # where full rows go; in memory where None
    begin: tuple[int, ...] = ()  # ids that the answer begins with; it is generated from there on
    # What the caller asked for by name. Of an engine that cannot give it, the rest is absent, and this an error.
    demanded: frozenset[str] = frozenset({"prompt", "alternatives"})


class Engine(Protocol):
    """What a :class:`vlmprobe.Probe` asks of whoever computes.

    Some engines can more (``stream``, ``rank``, ``answers``, ...): :func:`ability` finds it, or says who has it.
    """

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Raise what is wrong with a request before anything runs."""

    def batch_size(self, wanted: int, options: Options) -> int:
        """The largest batch up to ``wanted`` in which every request gives the numbers that it gives alone."""

    def generate(self, conversations: Sequence[Conversation], options: Options) -> list[Result]:
        """Answer the conversations as one batch."""

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score each candidate as the answer to the conversation."""


def ability(engine: Engine, name: str, need: str) -> Any:
    """A method that not every engine has.

    Args:
        engine: of a probe.
        name: of the method.
        need: what it needs of an engine, for the message.

    Raises:
        CapabilityError: where the engine lacks it.
    """
    found = getattr(engine, name, None)
    if found is None:
        raise CapabilityError(
            f"This needs {need}, which {type(engine).__name__} does not give: open the checkpoint with vlmprobe.load."
        )
    return found
