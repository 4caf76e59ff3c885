"""Answers of a probe to rows: as they come, in the order of the rows, with the scores of their candidates."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from vlmprobe.engines.base import AnswersAndScores, Engine, Options
from vlmprobe.inputs.messages import Conversation
from vlmprobe.probe.generate_many import Answers, answered
from vlmprobe.probe.request import Numbered, Request, options_of
from vlmprobe.probe.sample import PURE
from vlmprobe.results.failure import Failure
from vlmprobe.results.result import Result, Scores
from vlmprobe.runs.keys import Row, seed_of

__all__ = ["Asked", "Question", "answers"]

TOGETHER = 64  # rows whose candidates are scored in one call


@dataclass(frozen=True)
class Question:
    """What is asked of a row: its request, and of several samples which one."""

    row: Row
    request: Request
    sample: int | None = None

    @property
    def key(self) -> str:
        """Of the record."""
        return self.row.key if self.sample is None else f"{self.row.key}-{self.sample}"

    @property
    def numbered(self) -> Numbered:
        """The request, whose errors name the row."""
        drawn = self.sample is not None
        request = Seeded(self.request, seed_of(self.row.key, self.sample or 0)) if drawn else self.request
        return Numbered(self.row.number, request)


@dataclass(frozen=True)
class Asked:
    """What became of a question."""

    question: Question
    result: Result | None
    scores: Scores | None
    error: Exception | None = None


def answers(
    probe: Any, questions: Iterable[Question], options: Mapping[str, Any], batch_size: Any, samples: bool
) -> Iterator[Asked]:
    """What becomes of each question, in their order.

    Args:
        probe: that is asked.
        questions: read lazily, some ahead of the one that is answered.
        options: of :meth:`Probe.generate_many`.
        batch_size: likewise.
        samples: whether the questions are samples, each of which has a seed of its own.
    """
    found = _answered(probe, questions, options, batch_size, samples)
    waiting: list[tuple[Question, Result | Failure]] = []
    known: dict[str, Any] = {}  # scores of the last row, for its other samples
    try:
        for question, outcome in found:
            waiting.append((question, outcome))
            if len(waiting) >= TOGETHER or not any(_lacks_scores(*each) for each in waiting):
                yield from _with_scores(probe, waiting, batch_size, known)
                waiting = []
        yield from _with_scores(probe, waiting, batch_size, known)
    finally:
        found.close()


class AnswersWithScores:
    """An answer to each request, and scores of its candidates on the prefill of the answer."""

    method = "generate_many"
    bar = ("requests", "tokens")
    about_same = 1

    def item(self, request: Request, conversation: Conversation) -> tuple[Conversation, Sequence[str]]:
        """The conversation and its candidates, of which there may be none."""
        return conversation, request.candidates or ()

    def concurrent(self, engine: Engine) -> None:
        """None: an engine with many requests in flight is asked for answers, then for scores."""

    def batch(self, engine: Any, items: Sequence[Any], options: Options) -> Sequence[Any]:
        """In one run of the model."""
        return [_Scored(**vars(result), scores=scores) for result, scores in engine.answer_and_score(items, options)]

    def finished(self, outcome: Any) -> Any:
        """As it is."""
        return outcome

    def count(self, outcome: Any) -> int:
        """Of the answer."""
        return len(outcome.output)


class Draws(Answers):
    """A sampled answer to each request, with the seed that the request brings."""

    def item(self, request: Request, conversation: Conversation) -> Any:
        """The conversation and its seed."""
        assert isinstance(request, Seeded)
        return conversation, request.seed

    def batch(self, engine: Any, items: Sequence[Any], options: Options) -> Sequence[Any]:
        """One by one: draws of a batch would share a seed."""
        return [engine.generate([each], replace(options, seed=seed))[0] for each, seed in items]


@dataclass(frozen=True, init=False)
class Seeded(Request):
    """A request with the seed of its sample."""

    seed: int

    def __init__(self, request: Request, seed: int) -> None:
        for each in fields(request):
            object.__setattr__(self, each.name, getattr(request, each.name))
        object.__setattr__(self, "seed", seed)


@dataclass(frozen=True, eq=False)
class _Scored(Result):
    """An answer with the scores of its candidates, if it has any."""

    scores: Scores | None = None


def _answered(
    probe: Any, questions: Iterable[Question], options: Mapping[str, Any], batch_size: Any, samples: bool
) -> Any:
    asked: deque[Question] = deque()

    def requests() -> Iterator[Numbered]:
        for question in questions:
            asked.append(question)
            yield question.numbered

    given = {**PURE, **options, "do_sample": True, "seed": 0} if samples else dict(options)  # each sample has its own
    work = Draws() if samples else AnswersWithScores() if isinstance(probe.engine, AnswersAndScores) else None
    prompt, alternatives, seed = (given.pop(name, None) for name in ("prompt", "alternatives", "seed"))
    outcomes: Any = answered(
        probe.engine,
        probe.meta,
        probe.conversation,
        requests(),
        batch_size,
        options_of("stats", prompt, alternatives, seed, given),
        False,
        "keep",
        work=work,
    )
    try:
        for outcome in outcomes:
            yield asked.popleft(), outcome
    finally:
        outcomes.close()


def _with_scores(
    probe: Any, several: list[tuple[Question, Result | Failure]], batch_size: Any, known: dict[str, Any]
) -> Iterator[Asked]:
    """Answers with the scores of the candidates, of those that have some and are not scored yet.

    Args:
        probe: that is asked.
        several: questions and what became of them.
        batch_size: of :meth:`Probe.score_many`.
        known: scores by key of the row, one row of which is kept for the next call: samples follow one another.
    """
    lacking = {question.row.key: question for question, outcome in several if _lacks_scores(question, outcome)}
    wanted = [question for key, question in lacking.items() if key not in known]
    found = _scores(probe, [each.numbered for each in wanted], batch_size) if wanted else iter(())
    new = set()
    for question, outcome in several:
        if isinstance(outcome, Failure):
            yield Asked(question, None, None, outcome.error)
            continue
        scores = getattr(outcome, "scores", None)
        if _lacks_scores(question, outcome):
            key = question.row.key
            if key not in known:
                known[key] = next(found)
                new.add(key)
            scores = known[key] if key in new else _without_time(known[key])
            new.discard(key)
        error = scores.error if isinstance(scores, Failure) else None
        yield Asked(question, outcome, None if error else scores, error)
    for key in list(known)[:-1]:
        del known[key]


def _without_time(scores: Any) -> Any:
    """Scores that another sample of the row has cost."""
    return scores if isinstance(scores, Failure) else replace(scores, meta={**scores.meta, "timings": {}})


def _lacks_scores(question: Question, outcome: Result | Failure) -> bool:
    wanted = bool(question.request.candidates) and not isinstance(outcome, Failure)
    return wanted and getattr(outcome, "scores", None) is None


def _scores(probe: Any, requests: list[Numbered], batch_size: Any) -> Iterator[Any]:
    """The scores of the candidates of each request, or a failure: the one place that asks for them."""
    found: Iterator[Any] = probe.score_many(requests, batch_size=batch_size, progress=False, on_error="keep")
    return found
