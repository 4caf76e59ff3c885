"""The protocol of inference engines, :class:`Engine`, one for each ability that only some have, and a call's options.

``local/`` is the engine of transformers models in this process; ``serving/`` holds what engines behind a server share,
``providers/`` one module or folder for each of them.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from vlmprobe.errors import CapabilityError, VlmprobeError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.row_files import OnDisk
from vlmprobe.results.table import TokenTable

if TYPE_CHECKING:
    import numpy as np

    from vlmprobe.adapter import Adapter
    from vlmprobe.engines.stream import Stream

__all__ = [
    "ABILITIES",
    "KEEP",
    "ONE_STEP",
    "AnswersConcurrently",
    "Engine",
    "GivesPromptIds",
    "HasAdapter",
    "MixesImages",
    "Options",
    "Ranks",
    "ReadsLayers",
    "ReadsSecondPrompt",
    "RemembersImages",
    "ScoresIds",
    "Streams",
    "TokenisesAnswers",
    "abilities",
    "require",
]

KEEP = ("stats", "logits", "hidden")
ONE_STEP = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1}  # where a prompt is read and nothing written


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
    """What a :class:`vlmprobe.Probe` asks of an engine. What only some can is a protocol of its own, below."""

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Raise what is wrong with a request before anything runs."""

    def batch_size(self, wanted: int, options: Options) -> int:
        """The largest batch up to ``wanted`` in which every request gives the numbers that it gives alone."""

    def generate(self, conversations: Sequence[Conversation], options: Options) -> list[Result]:
        """Answer the conversations as one batch."""

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score each candidate as the answer to the conversation."""


# -- what some engines can; the first line of each says what one lacks that cannot --------------------


@runtime_checkable
class Streams(Protocol):
    """Tokens as they are generated."""

    def stream(self, conversation: Conversation, options: Options) -> Stream:
        """The answer to a conversation, token by token."""


@runtime_checkable
class AnswersConcurrently(Protocol):
    """Many requests in flight at once."""

    def answers(
        self,
        conversations: Iterable[Conversation | VlmprobeError],
        options: Options,
        *,
        keep_errors: bool = False,
        together: int | None = None,
    ) -> Generator[Any, None, None]:
        """Results in the order of the conversations; closing the generator ends the work that is left."""


@runtime_checkable
class RemembersImages(Protocol):
    """Image features that are remembered between calls."""

    memory: Any  # of the features; None outside a session

    def remembering(self, images: int) -> Engine:
        """The same engine with a memory of the features of that many images (or sets of images) used last."""

    def forget(self) -> None:
        """Let go of all features."""


@runtime_checkable
class MixesImages(Protocol):
    """Conversations with different numbers of images in one batch."""

    @property
    def mixes_images(self) -> bool:
        """Whether they can share one."""


@runtime_checkable
class GivesPromptIds(Protocol):
    """The ids of a prompt."""

    def prompt_ids(self, conversation: Conversation) -> np.ndarray:
        """int64 [S]: a conversation's prompt in the model's own sequence, image placeholders included."""


@runtime_checkable
class TokenisesAnswers(Protocol):
    """The token ids of a text."""

    def answer_ids(self, conversation: Conversation, text: str) -> list[int]:
        """Ids of a text written right after the prompt of a conversation."""


@runtime_checkable
class ScoresIds(Protocol):
    """The numbers of the tokens of a given answer."""

    def score_ids(
        self, conversations: Sequence[Conversation], ids: Sequence[int], options: Options
    ) -> list[TokenTable]:
        """The tables of the same answer ids after each of the conversations, which have equally many images."""


@runtime_checkable
class ReadsLayers(Protocol):
    """The states of every decoder layer."""

    def layers(
        self, conversation: Conversation, options: Options, **what: Any
    ) -> tuple[Result | None, TokenTable, Any]:
        """What each decoder layer says of the tokens of an answer, or of a prompt."""


@runtime_checkable
class ReadsSecondPrompt(Protocol):
    """A model in this process."""

    def second_prompt(self, conversation: Conversation) -> Any:
        """Another prompt of this model, to be fed an answer's tokens while that is generated."""


@runtime_checkable
class Ranks(Protocol):
    """Relevance of documents from a reranker."""

    def rank(
        self, query: Conversation, documents: Sequence[Conversation], *, activation: bool = True
    ) -> Sequence[float]:
        """The relevance of each document to the query; the difference of two logits without activation."""


@runtime_checkable
class HasAdapter(Protocol):
    """The adapter of a model that is open here."""

    adapter: Adapter


ABILITIES: tuple[type, ...] = (  # those that a user would ask for
    Streams,
    AnswersConcurrently,
    RemembersImages,
    GivesPromptIds,
    TokenisesAnswers,
    ScoresIds,
    ReadsLayers,
    ReadsSecondPrompt,
    Ranks,
)
Ability = TypeVar("Ability")


def abilities(engine: type) -> dict[str, bool]:
    """Whether the engines of a class have each ability; the keys are the first lines of :data:`ABILITIES`."""
    attributes = {*dir(engine), *(name for each in engine.__mro__ for name in getattr(each, "__annotations__", ()))}
    return {_first_line(each): attributes >= _members(each) for each in ABILITIES}


def _members(protocol: type) -> set[str]:
    return {name for name in (*vars(protocol), *protocol.__annotations__) if not name.startswith("_")}


def _first_line(protocol: type) -> str:
    return (protocol.__doc__ or "").partition("\n")[0].rstrip(".")


def require(engine: Engine, ability: type[Ability]) -> Ability:
    """The engine as one that has an ability.

    Raises:
        CapabilityError: where the engine lacks it.
    """
    if not isinstance(engine, ability):
        need = _first_line(ability)
        raise CapabilityError(
            f"This needs {need[:1].lower()}{need[1:]}, which {type(engine).__name__} does not give: open the "
            "checkpoint with vlmprobe.load."
        )
    return engine
