"""C13, C14, C15: errors reach the caller, a call has no side effects, and threads do not interfere."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from torch import Tensor

from vlmprobe.errors import NonFiniteLogitsError
from vlmprobe.results.result import Result
from vlmprobe.testing.conformance.check import check
from vlmprobe.testing.conformance.hooks import changed_output
from vlmprobe.testing.global_state import changes, state_of
from vlmprobe.testing.report import CheckFailure
from vlmprobe.testing.subject import GREEDY, Subject
from vlmprobe.testing.tolerance import require_numbers, require_rows

__all__ = ["errors", "no_trace", "threads"]

THREADS = 8
PAIR = ["yes", "a tiger"]  # candidates


class _Planted(RuntimeError):
    """Raised inside the model by the check itself."""


@check(
    "C13",
    "an error inside the model reaches the caller and has no side effects; NaN or infinity raises and names the row",
    "hooks that are not removed in a finally clause",
    "an except clause that swallows the error or replaces it by another",
    "NaN that is masked, clipped or averaged away instead of raised as NonFiniteLogitsError",
    rerun=False,
)
def errors(subject: Subject) -> Sequence[str] | None:
    """Injected exceptions in prefill and decoding; injected NaN and infinity in prompt and generated rows."""
    calm = _call(subject)
    before = state_of(subject.model, subject.adapter.tokenizer)
    for run, where in ((1, "prefill"), (3, "decoding")):
        planted = _Planted(f"planted in {where}")
        _require_raised(subject, planted, run, where)
        _require_calm(subject, calm, before, f"after an exception in {where}")
    length = len(subject.prompt().ids)
    for value, run, place, named in (
        (float("nan"), 1, length - 3, length - 2),
        (float("inf"), 1, -1, 0),
        (float("nan"), 3, -1, 2),
    ):
        _require_non_finite(subject, value, run, place, named)
        _require_calm(subject, calm, before, f"after {value} logits")
    return None


@check(
    "C14",
    "the same call twice gives the same numbers, and no global state changes",
    "the model's generation config, the tokenizer's padding side or the random state changed in place",
    "a hook or a patched forward left behind",
    "state of another call that the model keeps, such as rope deltas",
    rerun=False,
)
def no_trace(subject: Subject) -> Sequence[str] | None:
    """Generation, sampling, beams and scoring, twice with another call between; global state as before all checks."""
    exact = 0.0 if subject.model.device.type == "cpu" else subject.tolerance("rows")
    ways: dict[str, Callable[[], Any]] = {
        "greedy": lambda: _call(subject),
        "sampling": lambda: subject.ask("main", keep="logits", max_new_tokens=3, do_sample=True, top_k=5, seed=2),
    }
    if not subject.no_beams:
        ways["beam search"] = lambda: subject.ask("main", keep="logits", max_new_tokens=2, num_beams=2, do_sample=False)
    for name, ask in ways.items():
        first = ask()
        subject.ask("wide", max_new_tokens=1, prompt=False, **GREEDY)
        _require_same(first, ask(), f"{name}, run twice with another call between", tolerance=exact)
    scores = [subject.score("main", PAIR).logprobs for _ in range(2)]
    require_numbers(scores[1], scores[0], exact, of="repeated scores", path="those of the first call", names=PAIR)
    if changed := subject.changed():
        raise CheckFailure("global state as it was before the first call", changed)
    return None


@check(
    "C15",
    f"{THREADS} threads give the same numbers as serial calls",
    "per-call state kept on the adapter, the engine or the model",
    "hooks that see the runs of other threads",
    rerun=False,
)
def threads(subject: Subject) -> Sequence[str] | None:
    """Different requests at the same time, each against its serial result, full rows included."""
    names = [name for name in ("main", "wide", "other", "text", "two") if subject.unavailable(name) is None]
    asked = [(names[place % len(names)], place) for place in range(THREADS)]

    def ask(request: tuple[str, int]) -> Result | np.ndarray:
        name, place = request
        if place % 4 == 3:
            return subject.score(name, PAIR).logprobs
        options = {"do_sample": True, "seed": place, "top_k": 0} if place % 4 == 2 else GREEDY
        return subject.ask(name, keep="logits", max_new_tokens=2, **options)

    serial = [ask(request) for request in asked]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(ask, asked))
    for (name, place), one, other in zip(asked, serial, together, strict=True):
        where = f"thread {place}, request {name!r}"
        if isinstance(one, Result) and isinstance(other, Result):
            _require_same(one, other, where, tolerance=subject.tolerance("rows"))
        else:
            require_numbers(
                other,
                one,
                subject.tolerance("rows"),
                of="scores in threads",
                path="those of serial calls",
                names=[f"{where}, candidate {each!r}" for each in PAIR],
            )
    return None


def _call(subject: Subject) -> Result:
    return subject.ask("main", keep="logits", max_new_tokens=3, min_new_tokens=3, **GREEDY)


def _require_raised(subject: Subject, planted: _Planted, run: int, where: str) -> None:
    left = run

    def fail(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise planted

    handle = subject.adapter.layers[0].register_forward_pre_hook(fail)
    try:
        _call(subject)
    except _Planted as raised:
        if raised is planted:
            return
    except Exception as raised:
        raise CheckFailure(f"{planted!r} to reach the caller", repr(raised)[:200], where) from raised
    finally:
        handle.remove()
    raise CheckFailure(f"{planted!r} to reach the caller", "a result", f"{where}, after {run - left} runs")


def _require_non_finite(subject: Subject, value: float, run: int, place: int, named: int) -> None:
    """``value`` at one position of the last layer's output in one run must raise an error that names the spoilt row."""
    left, length = run, len(subject.prompt().ids)

    def spoil(states: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        if left == 0:
            # Decoding has one position; some decoders carry several streams, so the position axis is searched for.
            axis = next((axis for axis, size in enumerate(states.shape[:-1]) if axis and size == length), None)
            states = states.clone()
            (states if axis is None else states.select(axis, place)).fill_(value)
        return states

    where = f"generated token {named}" if place < 0 else f"the row of prompt position {named}"
    expected = f"NonFiniteLogitsError that names {where}, where the logits became {value}"
    try:
        with changed_output(subject.adapter.layers[-1], spoil):
            _call(subject)
    except NonFiniteLogitsError as error:
        if re.search(rf"\b{named}\b", str(error)):
            return
        raise CheckFailure(expected, f"NonFiniteLogitsError({str(error)[:160]!r})") from error
    except Exception as error:
        raise CheckFailure(expected, repr(error)[:200]) from error
    raise CheckFailure(expected, "a result")


def _require_calm(subject: Subject, calm: Result, before: dict[str, Any], when: str) -> None:
    if changed := changes(before, state_of(subject.model, subject.adapter.tokenizer)):
        raise CheckFailure(f"global state as before, {when}", changed)
    _require_same(calm, _call(subject), when, tolerance=subject.tolerance("rows"))


def _require_same(first: Result, again: Result, when: str, *, tolerance: float) -> None:
    """Two results of the same call have the same tokens and the same full rows."""
    if first.output.ids.tolist() != again.output.ids.tolist():
        raise CheckFailure(f"tokens {first.output.ids.tolist()}", f"{again.output.ids.tolist()}", when)
    for side in ("prompt", "output"):
        one, other = getattr(first, side).logits, getattr(again, side).logits
        require_rows(
            np.nan_to_num(other),
            np.nan_to_num(one),
            tolerance,
            of=f"{side} rows",
            path="those of the other call",
            names=[f"{side} row {row}, {when}" for row in range(len(one))],
        )
