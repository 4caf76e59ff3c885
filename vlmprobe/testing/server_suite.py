"""Conformance of a served engine: E1 to E12, against the same model, opened in this process.

``check_server(served, local)`` asks both the same. What an engine cannot do is skipped with its reason, never passed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from vlmprobe.errors import CapabilityError, EngineError, GenerationOptionError, VlmprobeError
from vlmprobe.probe import Probe, Request
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable
from vlmprobe.testing.report import CheckFailure, CheckResult, Report, SkipCheck, Status

__all__ = ["TOLERANCE", "check_server"]

TOLERANCE = 2e-5  # nats, of vLLM and SGLang in float32
TOKENS, ALTERNATIVES, MANY = 8, 5, 16
QUESTION = "What is in the picture?"
TEXTS = (QUESTION, "Name a colour, a town and an animal.", "Count to ten in Chinese.")
CANDIDATES = ("yes", "no", "a red square")
HOT, FEW = 2.0, 5  # temperature and top_k of E8
SIDES = (112, 84)  # pixels of the image
FLOOR = -9000.0  # below it are only sentinels
BEYOND = 10**6  # words that no context holds are built from


class _Pair:
    """A served and a local probe of one model, and what both were asked."""

    def __init__(self, served: Probe, local: Probe, text: float, image: float) -> None:
        self.served, self.local, self.text, self.image_tolerance = served, local, text, image

    @cached_property
    def image(self) -> Image.Image:
        width, height = SIDES
        shade = Image.linear_gradient("L").resize((width, height))
        return Image.merge("RGB", (shade, shade.rotate(180), Image.new("L", (width, height), 90)))

    @cached_property
    def answers(self) -> list[tuple[str, Result, Result, float]]:
        """Name, served and local answer, and the tolerance of each question."""
        asked: list[tuple[str, Any, float]] = [(text, None, self.text) for text in TEXTS]
        asked.append((f"{QUESTION} (with an image)", self.image, self.image_tolerance))
        found = []
        for name, image, tolerance in asked:
            question = QUESTION if image is not None else name
            both = [self.ask(probe, question, image) for probe in (self.served, self.local)]
            found.append((name, both[0], both[1], tolerance))
        return found

    def ask(self, probe: Probe, question: str, image: Any = None, **more: Any) -> Result:
        options: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False} | more
        wanted = self.served.engine.abilities.alternatives  # type: ignore[attr-defined]
        count = ALTERNATIVES if wanted is None else min(ALTERNATIVES, wanted)
        options |= {"alternatives": count} if count else {}
        return probe.generate(question, image, **options)


def check_server(
    served: Probe, local: Probe, *, tolerance: float = TOLERANCE, image_tolerance: float | None = None
) -> Report:
    """Compare a server with the same model, opened here.

    Args:
        served: from ``vlmprobe.connect``, with ``processor=``.
        local: from ``vlmprobe.load`` of the same checkpoint, in float32.
        tolerance: nats by which log-probabilities may differ.
        image_tolerance: the same with an image; ``tolerance`` if None.
    """
    pair = _Pair(served, local, tolerance, tolerance if image_tolerance is None else image_tolerance)
    results = tuple(_run(f"E{place}", statement, check, pair) for place, (statement, check) in enumerate(CHECKS, 1))
    told = {name: served.meta.get(name) for name in ("model", "engine", "engine_version", "url")}
    return Report(results, {**told, "tolerance": tolerance, "image_tolerance": pair.image_tolerance})


def _run(name: str, statement: str, check: Callable[[_Pair], Sequence[str]], pair: _Pair) -> CheckResult:
    started = time.perf_counter()
    status: Status = "passed"
    reason, failure, notes = "", "", tuple[str, ...]()
    try:
        notes = tuple(check(pair))
    except SkipCheck as skip:
        status, reason = "skipped", str(skip)
    except CapabilityError as lacking:
        status, reason = "skipped", str(lacking)
    except (CheckFailure, VlmprobeError) as error:
        status, failure = "failed", str(error)
    return CheckResult(name, statement, status, time.perf_counter() - started, reason, failure, (), notes)


def _rows(pair: _Pair) -> list[str]:
    notes = []
    for name, served, local, _ in pair.answers:
        count = len(served.output) + served.output.lost
        due = len(local.output)
        if count not in (due, due - ("end" in served.meta.get("absent", {}))):
            raise CheckFailure(f"{due} tokens", f"{count}", name)
        missing = served.output.lost + int((~served.output.scored).sum())
        if missing and not np.isnan(served.confidence):
            raise CheckFailure("no confidence, as rows are missing", f"{served.confidence}", name)
        notes += [f"{name}: {missing} of {count} tokens have no row"] if missing else []
    if notes:
        raise SkipCheck("; ".join(notes))
    return notes


def _ids(pair: _Pair) -> list[str]:
    if all(served.output.ids is None for _, served, _, _ in pair.answers):
        raise SkipCheck("the engine sends no ids")
    for name, served, local, _ in pair.answers:
        if served.output.ids is not None:
            _same(served.output.ids.tolist(), local.output.ids.tolist()[: len(served.output)], name)
    return []


def _text(pair: _Pair) -> list[str]:
    for name, served, _, _ in pair.answers:
        if _whole(str(served.meta.get("text_of_ids", served.text))) != _whole(served.text):
            raise CheckFailure(repr(served.text), repr(served.meta["text_of_ids"]), f"{name}: what the ids read")
    return []


def _pieces(pair: _Pair) -> list[str]:
    for name, served, local, _ in pair.answers:
        if served.output.ids is None:
            shown = "".join(served.output.tokens)
            if shown.count("\N{REPLACEMENT CHARACTER}") > served.text.count("\N{REPLACEMENT CHARACTER}"):
                raise CheckFailure(repr(served.text), repr(shown), name)
        else:
            _same(served.output.tokens, local.output.tokens[: len(served.output)], name)
    return []


def _logprobs(pair: _Pair) -> list[str]:
    worst = [_near(served.output, local.output, limit, name) for name, served, local, limit in pair.answers]
    return [f"largest difference {max(worst):.1e} nats"]


def _prompts(pair: _Pair) -> list[str]:
    worst = []
    for image, limit in ((None, pair.text), (pair.image, pair.image_tolerance)):
        served, local = (pair.ask(probe, QUESTION, image, prompt=True) for probe in (pair.served, pair.local))
        if served.prompt is None or local.prompt is None:
            raise SkipCheck(str(served.meta.get("absent", {}).get("prompt", "the engine sends nothing of prompts")))
        _same(served.prompt.kinds, local.prompt.kinds, "kinds of the prompt's rows")
        worst.append(_near(served.prompt, local.prompt, limit, "prompt"))
    return [f"largest difference {max(worst):.1e} nats"]


def _candidates(pair: _Pair) -> list[str]:
    notes = []
    for image, limit in ((None, pair.text), (pair.image, pair.image_tolerance)):
        served, local = (probe.score(QUESTION, list(CANDIDATES), image) for probe in (pair.served, pair.local))
        known = ~np.isnan(served.logprobs)
        gap = np.abs(served.logprobs - local.logprobs)[known]
        lengths = np.array([len(table) for table in local.tables])
        if (gap > limit * lengths[known]).any():
            raise CheckFailure(f"{local.logprobs[known]}", f"{served.logprobs[known]}", f"at most {limit} a token")
        if not known.all():
            bounds = served.logprob_bounds[~known, 1]
            if (local.logprobs[~known] > bounds + limit).any():
                raise CheckFailure(f"{local.logprobs[~known]}", f"at most {bounds}", "bounds")
            notes.append(f"{int((~known).sum())} of {len(known)} candidates only have a bound")
    return notes


def _kinds(pair: _Pair) -> list[str]:
    options: dict[str, Any] = {"do_sample": True, "temperature": HOT, "max_new_tokens": 1, "seed": 0}
    served = pair.ask(pair.served, TEXTS[1], **options)
    kind = served.meta["value_kind"]
    exact = pair.local.generate(TEXTS[1], max_new_tokens=1, do_sample=False, keep="logits").output
    logits = exact.logits[0].astype(np.float64) if exact.logits is not None else np.empty(0)
    if kind == "unknown" or served.output.ids is None:
        raise SkipCheck(f"the numbers are of kind {kind}" if kind == "unknown" else "the engine sends no ids")
    own = int(served.output.ids[0])
    heat = 1.0 if kind == "raw" else HOT
    due = (logits / heat)[own] - np.logaddexp.reduce(logits / heat)
    column = served.output.logprobs if kind == "raw" or served.output.scores is None else served.output.scores
    if not np.isnan(column[0]) and abs(column[0] - due) > pair.text:
        raise CheckFailure(f"{due:.6f}, the {kind} number at temperature {HOT}", f"{column[0]:.6f}")
    return [f"{kind} at temperature {HOT}"]


def _sentinels(pair: _Pair) -> list[str]:
    for name, served, _, _ in pair.answers:
        least = np.nanmin(served.output.logprobs, initial=0.0)
        if least < FLOOR:
            raise CheckFailure("no sentinel among log-probabilities", f"{least}", name)
        if not served.output.scored.all() and not (np.isnan(served.confidence) and np.isnan(served.output.logprob)):
            raise CheckFailure("no sum where a row has no number", f"{served.confidence}", name)
    return []


def _at_once(pair: _Pair) -> list[str]:
    asked = [Request(f"{TEXTS[place % len(TEXTS)]} {place}") for place in range(MANY)]
    options: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False}
    together = list(pair.served.generate_many(asked, **options))
    worst = 0.0
    for request, found in zip(asked, together, strict=True):
        alone = pair.served.generate(request.question, **options)
        _same(found.text, alone.text, str(request.question))
        worst = max(worst, _near(found.output, alone.output, pair.text, str(request.question)))
    return [f"largest difference {worst:.1e} nats"]


def _streams(pair: _Pair) -> list[str]:
    worst = 0.0
    for question, image, limit in ((TEXTS[1], None, pair.text), (QUESTION, pair.image, pair.image_tolerance)):
        options: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False}
        whole = pair.served.generate(question, image, **options)
        stream = pair.served.stream(question, image, **options)
        rows = list(stream)
        _same(_whole(stream.result.text), _whole(whole.text), question)
        _same(len(rows), len(whole.output), f"rows of {question!r}")
        worst = max(worst, _near(stream.result.output, whole.output, limit, question))
        with pair.served.stream(question, image, **options) as left:
            next(left)
        _same(left.result.finish_reason, "closed", "a stream that is left after one token")
    return [f"largest difference {worst:.1e} nats"]


def _limits(pair: _Pair) -> list[str]:
    context = pair.served.engine.server.context  # type: ignore[attr-defined]
    notes = []
    if context is None or context > BEYOND:
        notes.append("the context's length is not reported: what does not fit was not tried")
    else:
        _refused(lambda: pair.ask(pair.served, "word " * (2 * context)), "a prompt beyond the context")
    most = pair.served.engine.abilities.alternatives  # type: ignore[attr-defined]
    if most is not None:
        _refused(lambda: pair.served.generate(QUESTION, alternatives=most + 1), "more alternatives than there are")
    _refused(lambda: pair.served.generate(QUESTION, no_such_option=1), "an option that does not exist")
    return notes


def _refused(ask: Callable[[], Any], what: str) -> None:
    try:
        ask()
    except (EngineError, CapabilityError, GenerationOptionError):
        return
    raise CheckFailure("an error of vlmprobe's types", "an answer", what)


def _same(came: Any, due: Any, where: str) -> None:
    if came != due:
        raise CheckFailure(repr(due), repr(came), where)


def _whole(text: str) -> str:
    """A text without a character at its end that the limit of tokens cut, which some write and others leave out."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def _near(came: TokenTable, due: TokenTable, limit: float, where: str) -> float:
    """The largest difference of the rows that both have."""
    count = min(len(came), len(due))
    if came.lost:
        raise SkipCheck(f"{where}: {came.lost} tokens have no row, and it is not known where")
    gaps = np.abs(came.logprobs[:count].astype(np.float64) - due.logprobs[:count])
    if np.isnan(gaps).all():
        raise SkipCheck(f"{where}: no row has a raw log-probability")
    worst = float(np.nanmax(gaps))
    if worst > limit:
        place = int(np.nanargmax(gaps))
        due_here = f"{due.logprobs[place]:.6f} within {limit:g}"
        raise CheckFailure(due_here, f"{came.logprobs[place]:.6f}", f"{where}, row {place}", difference=worst)
    return worst


CHECKS: tuple[tuple[str, Callable[[_Pair], Sequence[str]]], ...] = (
    ("there are as many rows as tokens were generated", _rows),
    ("ids are those of the model opened here", _ids),
    ("the text of the ids is the server's", _text),
    ("pieces of a character are whole in the tokens", _pieces),
    ("log-probabilities of generated tokens are the model's", _logprobs),
    ("log-probabilities of prompts are the model's, with and without an image", _prompts),
    ("candidates of one token and of several are the model's", _candidates),
    ("the numbers are what the probe says they are, under a temperature", _kinds),
    ("bounds and sentinels are in no sum or mean", _sentinels),
    (f"{MANY} at once are those asked alone, in their order", _at_once),
    ("a stream is the whole answer, and can be left", _streams),
    ("limits are errors that say so", _limits),
)
