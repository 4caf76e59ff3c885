"""``compare``: the same requests on two probes. Is the deployed model the one that was evaluated?

>>> from vlmprobe.analysis.compare import compare
>>> found = compare(vlmprobe.load(path), vlmprobe.connect("http://localhost:8000"), requests)
>>> found.max_abs, found.equal_answers, found.top1_agreement
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmprobe.analysis.cases import Case, cases_of
from vlmprobe.analysis.token_alignment import Aligned, align, first_difference, joined_rows
from vlmprobe.display.progress import tracking
from vlmprobe.engines.base import Options, ScoresIds
from vlmprobe.engines.option_checks import greedy_by_default
from vlmprobe.errors import CapabilityError, MessageError, ResultError
from vlmprobe.probe import Request
from vlmprobe.probe.failure import naming
from vlmprobe.probe.request import Numbered, Requests
from vlmprobe.results.frame import DataFrame, data_frame

if TYPE_CHECKING:
    from vlmprobe.probe import Probe
    from vlmprobe.results.result import Result, Scores
    from vlmprobe.results.table import TokenTable

__all__ = ["Compared", "Comparison", "compare"]

GENERATION = {"max_new_tokens": 64}  # by default, and greedily: sampled answers differ anyway
WINDOW = 64  # requests whose answers are in memory at once
TOLD = ("model", "revision", "engine", "adapter", "dtype", "device", "value_kind", "versions")
ONE_STEP = {"max_new_tokens": 1}


@dataclass(frozen=True, eq=False)
class Compared:
    """One request on two probes: the T tokens of A's answer (of all candidates, if given) under both.

    ``how`` says where B's numbers come from. ``"same"``: B's own answer, identical to A's. ``"forced"``: B answered
    differently and scored A's tokens. ``"prefix"``: B answered differently and cannot score tokens, so only those up to
    the first difference are compared. ``"candidates"``: both scored the candidates.
    """

    id: Any
    question: str
    answers: tuple[str, str]  # of A and B; the best candidates, if given
    how: str
    rows: Aligned
    diverged: int | None  # the row at which B's own answer diverges; None if it does not, and for candidates
    prompt: np.ndarray  # float64 [P], logprob of B minus that of A, for each text token of an equal prompt; nats
    same_prompt: bool | None  # whether both models read the same token ids; None if unknown
    meta: Mapping[str, Any] = field(default_factory=dict)  # further columns of the request, if it comes from a table

    @property
    def difference(self) -> np.ndarray:
        """float64 [T], nats: log-probability under B minus that under A; NaN where not compared."""
        return self.rows.b.astype(np.float64) - self.rows.a.astype(np.float64)

    @property
    def equal(self) -> bool:
        """Whether both gave the same answer (the same best candidate)."""
        return self.diverged is None and self.answers[0] == self.answers[1]

    @property
    def max_abs(self) -> float:
        """The largest absolute difference of a token, nats; NaN if none is compared."""
        return _largest(self.difference)

    def plot(self, ax: Any = None) -> Any:
        """Surprisal of each token in bits under A as bars and under B as points. Returns the axes.

        Args:
            ax: axes to draw on.

        Raises:
            ResultError: for more tokens than fit side by side, or none with a log-probability.
        """
        from vlmprobe.display.plots.tokens import draw_pairs

        return draw_pairs(self.rows.tokens, self.rows.a, self.rows.b, ax)


@dataclass(frozen=True, eq=False)
class Comparison:
    """N requests on two probes, A (evaluated) and B (deployed). Differences are B minus A, nats."""

    requests: tuple[Compared, ...]  # [N]
    a: Mapping[str, Any] = field(default_factory=dict)  # model, engine, dtype, device, value_kind, versions of A
    b: Mapping[str, Any] = field(default_factory=dict)

    @property
    def differences(self) -> np.ndarray:
        """float64 [M]: of every answer token with a number from both."""
        return _finite([each.difference for each in self.requests])

    @property
    def prompt_differences(self) -> np.ndarray:
        """float64 [M]: of every text token of equal prompts."""
        return _finite([each.prompt for each in self.requests])

    @property
    def max_abs(self) -> float:
        """The largest absolute difference of an answer token; NaN if none was compared."""
        return _largest(self.differences)

    @property
    def mean_abs(self) -> float:
        """The mean absolute difference of answer tokens; NaN if none was compared."""
        return float(np.abs(self.differences).mean()) if len(self.differences) else float("nan")

    @property
    def compared(self) -> float:
        """Share of A's tokens that have a number from both."""
        total = sum(int((~np.isnan(each.rows.a)).sum()) for each in self.requests)
        return len(self.differences) / total if total else float("nan")

    @property
    def equal_answers(self) -> float:
        """Share of requests with the same answer from both."""
        return float(np.mean([each.equal for each in self.requests]))

    @property
    def top1_agreement(self) -> float:
        """Share of compared positions with the same top-1 token; NaN if a side reports none."""
        known = _finite([each.rows.same_top for each in self.requests])
        return float(known.mean()) if len(known) else float("nan")

    @property
    def same_prompts(self) -> bool | None:
        """Whether both read the same token ids for every prompt that was answered; None if unknown."""
        told = [each.same_prompt for each in self.requests if each.how != "candidates"] or [None]
        return False if False in told else None if None in told else True

    @property
    def same_kind(self) -> bool:
        """Whether the numbers of both mean the same (raw, or after temperature or filters)."""
        return self.a.get("value_kind") == self.b.get("value_kind") != "unknown"

    def objections(self, tolerance: float) -> list[str]:
        """Why the two are not the same model within a tolerance, one sentence each; empty if they are.

        Args:
            tolerance: largest allowed absolute difference of a token's log-probability, nats.
        """
        if not tolerance >= 0:
            raise ResultError(f"tolerance must be a number of nats of at least 0, not {tolerance!r}")
        found = []
        if self.same_prompts is False:
            count = sum(each.same_prompt is False for each in self.requests)
            found.append(
                f"{count} of {len(self.requests)} prompts have different token ids: another template or image size"
            )
        if not len(self.differences):
            found.append("no token has a number from both")
        for name, values in (("answer", self.differences), ("prompt", self.prompt_differences)):
            beyond = int((np.abs(values) > tolerance).sum())
            if beyond:
                largest = _largest(values)
                found.append(
                    f"{beyond} of {len(values)} {name} tokens differ by more than {tolerance:g}, one by {largest:.3g}"
                )
        return found

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame`` with one row per token of A's answers."""
        named = [(place if each.id is None else each.id, each) for place, each in enumerate(self.requests)]
        return data_frame(
            {
                "request": [name for name, each in named for _ in each.rows.tokens],
                "token": [token for each in self.requests for token in each.rows.tokens],
                "logprob_a": _joined([each.rows.a for each in self.requests], np.float32),
                "logprob_b": _joined([each.rows.b for each in self.requests], np.float32),
                "difference": _joined([each.difference for each in self.requests]),
                "top_a": [token for each in self.requests for token in each.rows.top_a],
                "top_b": [token for each in self.requests for token in each.rows.top_b],
                "how": [each.how for each in self.requests for _ in each.rows.tokens],
            }
        )

    def plot(self, ax: Any = None, *, tolerance: float | None = None) -> Any:
        """Difference of every token against its log-probability under A. Returns the axes.

        Args:
            ax: axes to draw on.
            tolerance: nats; drawn as a band if given.

        Raises:
            ResultError: if no token was compared.
        """
        from vlmprobe.display.plots.comparison import draw_comparison

        rows = [each.rows for each in self.requests]
        return draw_comparison(
            _joined([each.a for each in rows]),
            _joined([each.difference for each in self.requests]),
            _joined([each.same_top for each in rows]),
            ax,
            tolerance=tolerance,
        )

    def __repr__(self) -> str:
        return f"Comparison({len(self.requests)} requests, max {self.max_abs:.3g}, mean {self.mean_abs:.3g} nats)"


def compare(
    a: Probe,
    b: Probe,
    requests: Requests,
    *,
    prompt: bool = True,
    alternatives: int = 5,
    progress: bool | None = None,
    **generation: Any,
) -> Comparison:
    """Run the same requests on two probes, and compare their numbers for the same tokens.

    Both answer. If the answers are identical, their tokens are compared. If not, B scores the tokens of A's answer
    after the same prompt, if it can; otherwise the comparison ends at the first different token.

    Args:
        a: the model that was evaluated.
        b: the model that is deployed: another engine, dtype or checkpoint.
        requests: as for :meth:`Probe.generate_many`, tables included, or what
            :func:`~vlmprobe.analysis.cases.read_cases` returns; those with candidates are scored.
        prompt: whether to compare the prompt's tokens too, if both report them.
        alternatives: how many top tokens to request.
        progress: whether to show a progress bar; None shows one in a terminal and in Jupyter.
        **generation: as in :meth:`Probe.generate`; greedy and 64 tokens unless given here or by a request.

    Raises:
        MessageError: for no requests, a malformed one, or sessions about different images.
        CapabilityError: for what one of the probes does not support.
    """
    wanted = {"prompt": prompt, "alternatives": alternatives}
    asked = [_given(a, wanted), _given(b, wanted)]
    cases, total = cases_of(requests, "compare")
    found: list[Compared] = []
    metas: list[dict[str, Any]] = [{}, {}]
    with tracking(progress, total) as done:
        for window in iter(lambda: list(islice(cases, WINDOW)), []):
            for scored, options, group in _alike(window, generation):
                run = _scored if scored else _generated
                for compared, answers in run((a, b), group, options, asked):
                    found.append(compared)
                    done(len(compared.rows.a))
                    for meta, answer in zip(metas, answers, strict=True):
                        meta.update({key: answer.meta[key] for key in TOLD if answer.meta.get(key) is not None})
    if not found:
        raise MessageError("There is no request to compare on: give at least one.")
    return Comparison(tuple(found), *metas)


Pairs = Iterator["tuple[Compared, tuple[Result | Scores, Result | Scores]]"]


def _generated(
    probes: tuple[Probe, Probe], cases: Sequence[Case], options: Mapping[str, Any], asked: Sequence[dict[str, Any]]
) -> Pairs:
    requests = [
        Numbered(case.row, Request(case.question, case.image, case.id, **case.prompt_options)) for case in cases
    ]
    both = [
        list(probe.generate_many(requests, progress=False, **what, **options))
        for probe, what in zip(probes, asked, strict=True)
    ]
    for case, one, other in zip(cases, *both, strict=True):
        with naming(case.row, case.id):
            compared = _answers(case, one, other, probes[1], asked[1])
        yield compared, (one, other)


def _answers(case: Case, one: Result, other: Result, second: Probe, what: dict[str, Any]) -> Compared:
    """Two answers to a request; the second probe, if it answered differently, scores the first answer."""
    _require_same_images(one, other)
    same_prompt = _same_prompt(one, other)
    diverged = first_difference(one.output, other.output)
    table, how = other.output, "same" if diverged is None else "prefix"
    if diverged is not None and same_prompt is not False:
        forced = _forced(second, case, one, what)
        table, how = (other.output, how) if forced is None else (forced, "forced")
    return Compared(
        id=case.id,
        question=str(one.meta["question"]),
        answers=(one.text, other.text),
        how=how,
        rows=align(one.output, table),
        diverged=diverged,
        prompt=_prompt_difference(one.prompt, other.prompt) if same_prompt else np.zeros(0),
        same_prompt=same_prompt,
        meta=case.carry,
    )


def _scored(
    probes: tuple[Probe, Probe], cases: Sequence[Case], options: Mapping[str, Any], asked: Sequence[dict[str, Any]]
) -> Pairs:
    for case in cases:
        with naming(case.row, case.id):
            one, other = (_score(probe, case, case.candidates, what) for probe, what in zip(probes, asked, strict=True))
            _require_same_images(one, other)
        rows = joined_rows([align(*tables) for tables in zip(one.tables, other.tables, strict=True)])
        best = (one.best, other.best)
        question = str(one.meta["question"])
        told = Compared(case.id, question, best, "candidates", rows, None, np.zeros(0), None, case.carry)
        yield told, (one, other)


def _score(probe: Probe, case: Case, candidates: Sequence[str], what: Mapping[str, Any]) -> Scores:
    return probe.score(case.question, candidates, case.image, **case.prompt_options, **_scoring(what))


def _forced(probe: Probe, case: Case, answer: Result, what: Mapping[str, Any]) -> TokenTable | None:
    """The same answer tokens teacher-forced on another probe; None if it cannot score them."""
    ids = answer.output.ids
    if ids is None or not len(ids):
        return None
    conversation = probe.conversation(case.question, case.image, **case.prompt_options)
    try:
        if isinstance(probe.engine, ScoresIds):
            options = Options(generation=ONE_STEP, demanded=frozenset(), **_scoring(what))
            table = probe.engine.score_ids([conversation], ids.tolist(), options)[0]
        else:
            table = _score(probe, case, [answer.text], what).tables[0]
    except (CapabilityError, MessageError):  # not supported, or the text merges with the prompt
        return None
    # A text may be tokenised differently than it was generated; then it says nothing of the generated tokens.
    same = table.ids is not None and np.array_equal(table.ids, ids[: len(table)])
    return table if same and len(table) else None


def _given(probe: Probe, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The requested options that a probe's engine supports; the rest is left out of the comparison."""
    given = {}
    for name, value in wanted.items():
        generation = greedy_by_default(GENERATION)
        options = Options(generation=generation, demanded=frozenset({name}), **{"prompt": False, name: value})
        try:
            probe.engine.check([], options)
        except CapabilityError:
            continue
        given[name] = value
    return {"prompt": False, **given}


def _scoring(what: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in what.items() if name != "prompt"}


def _require_same_images(a: Result | Scores, b: Result | Scores) -> None:
    if a.meta.get("image_digests") != b.meta.get("image_digests"):
        raise MessageError(
            f"The two probes are asked {a.meta['question']!r} about different images, those of their sessions: give "
            "the images with the requests."
        )


def _same_prompt(a: Result, b: Result) -> bool | None:
    if a.input_ids is None or b.input_ids is None:
        return None
    if len(a.input_ids) != len(b.input_ids) or a.prompt is None or b.prompt is None:
        return bool(np.array_equal(a.input_ids, b.input_ids))
    if a.prompt.kinds != b.prompt.kinds:
        return False
    # Engines use ids of their own at image positions.
    text = np.array(a.prompt.kinds) != "image"
    return bool(np.array_equal(a.prompt.ids[text], b.prompt.ids[text]))


def _prompt_difference(a: TokenTable | None, b: TokenTable | None) -> np.ndarray:
    if a is None or b is None or len(a) != len(b):
        return np.zeros(0)
    return b.logprobs.astype(np.float64) - a.logprobs.astype(np.float64)


def _alike(window: Iterable[Case], generation: Mapping[str, Any]) -> Iterator[tuple[bool, dict[str, Any], list[Case]]]:
    """Runs of requests with the same options, in order."""
    for (scored, options), group in groupby(window, lambda case: (bool(case.candidates), dict(case.options))):
        yield scored, greedy_by_default({**GENERATION, **generation, **options}), list(group)


def _finite(columns: Sequence[np.ndarray]) -> np.ndarray:
    joined = _joined(columns)
    return joined[~np.isnan(joined)]


def _joined(columns: Sequence[np.ndarray], kind: type[np.generic] = np.float64) -> np.ndarray:
    """Columns concatenated and cast to that dtype; empty if there are none."""
    return np.concatenate([np.zeros(0, kind), *columns]).astype(kind)


def _largest(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.abs(known).max()) if len(known) else float("nan")
