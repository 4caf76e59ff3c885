"""Candidates of many requests: scored in batches, each beginning of prompts once, or many in flight on a server."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Literal

from vlmprobe.engines.base import Engine, Options, ScoresConcurrently, ScoresTogether
from vlmprobe.errors import MessageError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.probe.generate_many import OnError, answered
from vlmprobe.probe.request import Converse, Request, candidate_groups, candidate_list
from vlmprobe.results.grouped import GroupedScores, grouped
from vlmprobe.results.result import Scores

__all__ = ["Scoring", "score_many"]

Item = tuple[Conversation, Sequence[str]]


class Scoring:
    """Scores of the candidates of each request, or of the same ones for all."""

    method = "score_many"
    about_same = 4  # the images run once, and of each request the few tokens after them

    def __init__(
        self,
        candidates: Sequence[str] | Mapping[str, Sequence[str]] | None,
        given: str,
        what: str,
        kind: type[GroupedScores],
        strict: bool,
    ) -> None:
        self.given = given  # how the ones for all were named
        self.kind, self.strict = kind, strict  # of named answers
        self.bar = (what, what)
        self.groups = candidate_groups(candidates) if isinstance(candidates, Mapping) else {}
        listed = [each for texts in self.groups.values() for each in texts]
        self.candidates = listed or (None if candidates is None else candidate_list(candidates))

    def item(self, request: Request, conversation: Conversation) -> Item:
        """The conversation and its candidates: its own, or those of all.

        Raises:
            MessageError: it has none, or both.
        """
        if request.candidates is not None and self.candidates is not None:
            raise MessageError(f"its candidates would not be scored, but {self.given}: leave them out")
        wanted = request.candidates if self.candidates is None else self.candidates
        if wanted is None:
            raise MessageError("it has no candidates: give it some, or pass candidates= for all requests")
        return conversation, wanted

    def concurrent(self, engine: Engine) -> Callable[..., Generator[Any, None, None]] | None:
        """Of an engine that handles concurrent requests itself."""
        return engine.scores if isinstance(engine, ScoresConcurrently) else None

    def batch(self, engine: Engine, items: Sequence[Item], options: Options) -> Sequence[Scores]:
        """Together where the engine can."""
        if isinstance(engine, ScoresTogether):
            return engine.score_together(items, options)
        return [engine.score(*each, options) for each in items]

    def finished(self, outcome: Scores) -> Scores:
        """Grouped into the named answers, if they are."""
        return grouped(self.groups, outcome, strict=self.strict, kind=self.kind) if self.groups else outcome

    def count(self, outcome: Scores) -> int:
        """One request."""
        return 1


def score_many(
    probe: Any,
    requests: Any,
    candidates: Sequence[str] | Mapping[str, Sequence[str]] | None,
    options: Options,
    batch_size: int | Literal["auto"],
    progress: bool | None,
    on_error: OnError,
    *,
    kind: type[GroupedScores] = GroupedScores,
    strict: bool = True,
    given: str = "candidates=",
    what: str = "requests",
    converse: Converse | None = None,
) -> Iterator[Any]:
    """Scores of many requests; see :meth:`Probe.score_many`.

    Args:
        probe: to query.
        requests, candidates, options, batch_size, progress, on_error: as there.
        kind, strict: of named answers, as in :func:`~vlmprobe.results.grouped.grouped`.
        given: how the candidates of all requests were named, for errors.
        what: what the progress bar calls the requests.
        converse: makes the conversation of a request; as the probe does, if None.
    """
    work = Scoring(candidates, given, what, kind, strict)
    return answered(
        probe.engine,
        probe.meta,
        converse or probe.conversation,
        requests,
        batch_size,
        options,
        progress,
        on_error,
        work=work,
    )
