"""The protocol of inference engines, :class:`Engine`, one protocol per optional ability, and a call's options.

``local/`` runs transformers models in this process; ``serving/`` holds what server-backed engines share, ``providers/``
one module or folder for each serving engine.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from vlmprobe.engines.constraint import Constraint
from vlmprobe.errors import CapabilityError
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
    "MadeForOneConversation",
    "MixesImages",
    "Options",
    "Ranks",
    "ReadsContinuations",
    "ReadsLayers",
    "ReadsSecondPrompt",
    "RemembersImages",
    "ScoresConcurrently",
    "ScoresIds",
    "ScoresTogether",
    "Streams",
    "TokenisesAnswers",
    "abilities",
    "require",
]

KEEP = ("stats", "logits", "hidden")
ONE_STEP = {"max_new_tokens": 1, "do_sample": False, "num_beams": 1}  # for prefill only


@dataclass(frozen=True)
class Options:
    """What to compute and what to keep, the same for every engine."""

    keep: frozenset[str] = frozenset({"stats"})
    prompt: bool = True  # whether to report the prompt side
    alternatives: int = 10  # K of top_ids and top_logprobs
    seed: int | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)  # arguments of transformers' GenerationConfig
    processors: tuple[Any, ...] = ()  # the caller's own logits processors, in order
    constraint: Constraint | None = None  # what the answer must obey
    store: OnDisk | None = None  # where full rows are written; in memory if None
    begin: tuple[int, ...] = ()  # ids forced as the start of the answer; generation continues from them
    # What the caller requested explicitly: an error where the engine cannot provide it; anything else is left out.
    demanded: frozenset[str] = frozenset({"prompt", "alternatives"})

    @property
    def told(self) -> dict[str, Any]:
        """What ``meta`` of an answer records of them, beside the generation config."""
        told: dict[str, Any] = {"seed": self.seed}
        if self.processors:
            told["logits_processor"] = [type(each).__name__ for each in self.processors]
        if self.constraint is not None:
            told["constraint"] = self.constraint.told
        if self.begin:
            told["begin"] = list(self.begin)
        return told


class Engine(Protocol):
    """What :class:`vlmprobe.Probe` requires of every engine; each optional ability is a protocol of its own, below."""

    def check(self, conversations: Sequence[Conversation], options: Options) -> None:
        """Validate a request before anything runs."""

    def batch_size(self, wanted: int, options: Options) -> int:
        """The largest batch size up to ``wanted`` at which every request gives the same numbers as alone."""

    def generate(self, conversations: Sequence[Conversation], options: Options) -> list[Result]:
        """Answer the conversations as one batch."""

    def score(self, conversation: Conversation, candidates: Sequence[str], options: Options) -> Scores:
        """Score each candidate as the answer to the conversation."""


# -- optional abilities; the first docstring line of each names it in errors and tables ----------------


@runtime_checkable
class Streams(Protocol):
    """Token-by-token streaming."""

    def stream(self, conversation: Conversation, options: Options) -> Stream:
        """Stream the answer to a conversation, token by token."""


@runtime_checkable
class AnswersConcurrently(Protocol):
    """Concurrent requests."""

    def answers(
        self,
        conversations: Iterable[Conversation | tuple[Conversation, int] | Exception],
        options: Options,
        *,
        keep_errors: bool = False,
        together: int | None = None,
    ) -> Generator[Any, None, None]:
        """Results in the order of the conversations, some of them with seeds of their own; closing the generator
        cancels the remaining work."""


@runtime_checkable
class ScoresTogether(Protocol):
    """Candidates of several conversations in one batch."""

    def score_together(self, requests: Sequence[tuple[Conversation, Sequence[str]]], options: Options) -> list[Scores]:
        """Score the candidates of each conversation; they can share a batch."""


@runtime_checkable
class AnswersAndScores(Engine, Protocol):
    """Answers, and scores of candidates on the prefill of each."""

    def answer_and_score(
        self, requests: Sequence[tuple[Conversation, Sequence[str]]], options: Options
    ) -> list[tuple[Result, Scores | None]]:
        """Answer conversations as one batch, and score the candidates of each; None of one without any."""


@runtime_checkable
class ScoresConcurrently(Protocol):
    """Concurrent requests for scores."""

    def scores(
        self,
        requests: Iterable[tuple[Conversation, Sequence[str]] | Exception],
        options: Options,
        *,
        keep_errors: bool = False,
        together: int | None = None,
    ) -> Generator[Any, None, None]:
        """Scores in the order of the requests; closing the generator cancels the remaining work."""


@runtime_checkable
class RemembersImages(Protocol):
    """Image features cached between calls."""

    memory: Any  # the feature cache; None outside a session

    def remembering(self, images: int, *, exact: bool = True, prefix_bytes: int = 2**30) -> Engine:
        """This engine with a cache of the features of the ``images`` most recently used images (or sets of images).

        It also keeps up to ``prefix_bytes`` of what the model computed of the beginnings of prompts, if it can.
        To find out whether the model has changed between two calls, all weights that the features depend on are
        compared, or, if not ``exact``, some elements of each.
        """

    def forget(self) -> None:
        """Drop all cached features."""


@runtime_checkable
class MixesImages(Protocol):
    """Conversations with different numbers of images in one batch."""

    @property
    def mixes_images(self) -> bool:
        """Whether they can share a batch."""


@runtime_checkable
class GivesPromptIds(Protocol):
    """Token ids of a prompt."""

    def prompt_ids(self, conversation: Conversation) -> np.ndarray:
        """int64 [S]: a conversation's prompt as the model receives it, image placeholders included."""


@runtime_checkable
class TokenisesAnswers(Protocol):
    """Token ids of an answer."""

    def answer_ids(self, conversation: Conversation, text: str) -> list[int]:
        """Ids of a text that directly follows the prompt of a conversation."""


@runtime_checkable
class ScoresIds(Protocol):
    """Log-probabilities of given token ids."""

    def score_ids(
        self, conversations: Sequence[Conversation], ids: Sequence[int], options: Options
    ) -> list[TokenTable]:
        """The tables of the same answer ids after each of the conversations, all with the same number of images."""


@runtime_checkable
class ReadsLayers(Protocol):
    """Hidden states of every decoder layer."""

    def layers(
        self, conversation: Conversation, options: Options, **what: Any
    ) -> tuple[Result | None, TokenTable, Any]:
        """Decode every decoder layer at the tokens of an answer, or of a prompt."""


@runtime_checkable
class ReadsSecondPrompt(Protocol):
    """Next-token logits of a second prompt."""

    def second_prompt(self, conversation: Conversation) -> Any:
        """A second prompt on this model, fed an answer's tokens while that answer is generated."""


@runtime_checkable
class ReadsContinuations(Protocol):
    """Next-token log-probabilities after many continuations of a prompt."""

    def continuations(self, conversation: Conversation) -> Any:
        """The prompt of a conversation, to be continued by ids: see
        :class:`~vlmprobe.engines.local.continuations.Continuations`."""


@runtime_checkable
class Ranks(Protocol):
    """Relevance scores of a served reranker."""

    def rank(
        self, query: Conversation, documents: Sequence[Conversation], *, activation: bool = True
    ) -> Sequence[float]:
        """The relevance of each document to the query; without activation, the difference of two logits."""


@runtime_checkable
class MadeForOneConversation(Protocol):
    """A logits processor that fits one conversation only."""

    def require_conversation(self, conversation: Conversation) -> None:
        """Raise a :class:`~vlmprobe.errors.VlmprobeError` for another one."""


@runtime_checkable
class HasAdapter(Protocol):
    """The adapter of a local model."""

    adapter: Adapter


ABILITIES: tuple[type, ...] = (  # those that are shown to users
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
    """Which abilities an engine class has; the keys are the first docstring lines of :data:`ABILITIES`."""
    return {_first_line(each): has(engine, each) for each in ABILITIES}


def has(engine: type, ability: type) -> bool:
    """Whether an engine class has an ability."""
    attributes = {*dir(engine), *(name for each in engine.__mro__ for name in getattr(each, "__annotations__", ()))}
    return attributes >= _members(ability)


def _members(protocol: type) -> set[str]:
    return {name for name in (*vars(protocol), *protocol.__annotations__) if not name.startswith("_")}


def _first_line(protocol: type) -> str:
    return (protocol.__doc__ or "").partition("\n")[0].rstrip(".")


def require(engine: Engine, ability: type[Ability]) -> Ability:
    """The engine, typed as having an ability.

    Raises:
        CapabilityError: if the engine lacks it.
    """
    if not isinstance(engine, ability):
        need = _first_line(ability)
        raise CapabilityError(
            f"This needs {need[:1].lower()}{need[1:]}, which {type(engine).__name__} does not provide: open the "
            "checkpoint with vlmprobe.load."
        )
    return engine
