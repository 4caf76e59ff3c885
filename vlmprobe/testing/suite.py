"""Run the conformance checks on a probe: in one call, or as parameters of a pytest test."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlmprobe.errors import GenerationOptionError
from vlmprobe.probe import Probe
from vlmprobe.testing.conformance import ALL, Check
from vlmprobe.testing.float64 import exactly
from vlmprobe.testing.report import CheckFailure, CheckResult, Report, SkipCheck, Status, versions
from vlmprobe.testing.subject import Subject
from vlmprobe.testing.tolerance import RELATIVE, tolerances

__all__ = ["check_adapter", "check_against", "check_engine", "checks", "run_check", "selected"]

VANISHES = 0.1  # the share of a difference in the model's dtype that may remain in float64 if it was noise


def checks() -> tuple[Check, ...]:
    """Every check, in the order in which the suite runs them."""
    return ALL


def check_adapter(
    probe: Probe,
    *,
    expected_failures: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
    on_start: Callable[[Check], None] | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> Report:
    """Run the conformance checks on a probe that runs in this process.

    Args:
        probe: from ``vlmprobe.load`` or ``vlmprobe.wrap``.
        expected_failures: id of a check -> why it is expected to fail. It still runs.
        only: ids of the checks to run; all where None.
        on_start: called with each check before it runs.
        on_result: called with each result.

    Raises:
        GenerationOptionError: for an unknown check id.
    """
    expected = dict(expected_failures or {})
    selected(expected)
    subject = Subject(probe)
    wanted = ALL if only is None else selected(only)
    return _report(wanted, subject, expected, on_start, on_result, _meta(subject))


def check_against(
    probe: Probe,
    reference: str | Path,
    *,
    on_start: Callable[[Check], None] | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> Report:
    """Compare a probe that runs in this process with a reference of the model's original code.

    Token ids must be equal, pixels and logits within the tolerances of the reference (1e-6 and 1e-3).

    Args:
        probe: from ``vlmprobe.load`` or ``vlmprobe.wrap``, in the type that the reference was recorded in (float32).
        reference: the folder; docs/reference/reference-format.md describes it.
        on_start, on_result: as in :func:`check_adapter`.

    Raises:
        ResultError: there is no reference in the folder, or not one that can be read.
    """
    from vlmprobe.testing.against import checks_against
    from vlmprobe.testing.reference import read_reference

    found = read_reference(reference)
    subject = Subject(probe)
    meta = {**_meta(subject), "reference": str(reference), "source": found.source}
    return _report(checks_against(found), subject, {}, on_start, on_result, meta)


def check_engine(
    served: Probe,
    local: Probe,
    *,
    tolerance: float = 1e-3,
    image_tolerance: float = 1e-2,
    only: Collection[str] | None = None,
    on_start: Callable[[Check], None] | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> Report:
    """Compare a serving engine with the same model in this process: E1 to E12.

    What the engine does not give is skipped, with its reason; it does not count as passed.

    Args:
        served: from ``vlmprobe.connect``, with ``processor=local``.
        local: from ``vlmprobe.load`` or ``vlmprobe.wrap``, of the checkpoint that is served.
        tolerance: greatest allowed difference of a log-probability, nats, of prompts without an image. A server in
            bfloat16 is not as close as the default asks.
        image_tolerance: the same with images, which engines resize and encode with code of their own.
        only: ids of the checks to run; all where None.
        on_start, on_result: as in :func:`check_adapter`.

    Raises:
        GenerationOptionError: for an unknown check id, or a tolerance that is none.
        TypeError: if ``served`` is not behind a server, or ``local`` not in this process.
    """
    from vlmprobe.testing.engine_checks import CHECKS
    from vlmprobe.testing.served import Served

    subject = Served(served, local, tolerance, image_tolerance)
    wanted = CHECKS if only is None else _named(CHECKS, only)
    return _report(wanted, subject, {}, on_start, on_result, subject.meta)


def _report(
    checks: Iterable[Check],
    subject: Any,
    expected: Mapping[str, str],
    on_start: Callable[[Check], None] | None,
    on_result: Callable[[CheckResult], None] | None,
    meta: dict[str, Any],
) -> Report:
    results: list[CheckResult] = []
    for each in checks:
        if on_start is not None:
            on_start(each)
        results.append(_once(run_check(each, subject, expected.get(each.id)), results))
        if on_result is not None:
            on_result(results[-1])
    return Report(tuple(results), meta)


def selected(ids: Iterable[str]) -> tuple[Check, ...]:
    """The checks with these ids, in suite order."""
    return _named(ALL, ids)


def _named(checks: tuple[Check, ...], ids: Iterable[str]) -> tuple[Check, ...]:
    wanted = set(ids)
    for each in sorted(wanted - {each.id for each in checks}):
        raise GenerationOptionError(f"There is no check {each!r}; there are {checks[0].id} to {checks[-1].id}.")
    return tuple(each for each in checks if each.id in wanted)


def run_check(check: Check, subject: Any, expected_failure: str | None = None) -> CheckResult:
    """Run one check; whatever it raises becomes its result."""
    started = time.perf_counter()
    status: Status = "passed"
    reason, failure, notes = "", "", tuple[str, ...]()
    try:
        notes = tuple(check.run(subject) or ())
    except SkipCheck as skip:
        status, reason = "skipped", str(skip)
    except CheckFailure as raised:
        noise, told = _noise(check, subject, raised)
        if noise:
            notes = (told,)
        else:
            status, failure = "failed", f"{raised}\n{told}".strip()
    except Exception as error:  # noqa: BLE001 - an adapter may fail in any way, which is then reported
        status, failure = "failed", f"expected: an answer\ngot: {type(error).__name__}: {error}"
    if expected_failure is not None and status in ("passed", "failed"):
        status, reason = ("unexpected pass" if status == "passed" else "expected failure"), expected_failure
    return CheckResult(
        id=check.id,
        statement=check.statement,
        status=status,
        seconds=time.perf_counter() - started,
        reason=reason,
        failure=failure,
        causes=check.causes if status == "failed" else (),
        notes=notes,
    )


def _once(result: CheckResult, earlier: list[CheckResult]) -> CheckResult:
    """The result, its failure text replaced by a reference if an earlier check failed identically."""
    for other in earlier:
        if result.failure and result.failure == other.failure:
            return replace(result, failure=f"the same as {other.id}", causes=())
    return result


def _noise(check: Check, subject: Any, failure: CheckFailure) -> tuple[bool, str]:
    """Whether a numerical difference is rounding, that is, vanishes in a float64 rerun; and a note on it."""
    if failure.difference is None or not check.rerun or subject.exact:
        return False, ""
    dtype = str(subject.model.dtype).removeprefix("torch.")
    try:
        with exactly():
            check.run(subject.in_float64)
    except SkipCheck as skip:
        return False, f"not rerun in float64 to tell a bug from noise: {skip}"
    except CheckFailure as exact:
        left = exact.difference
        if left is None or not left < VANISHES * failure.difference < math.inf:
            stays = "the failure remains" if left is None else f"a difference of {left:.3g} remains"
            return False, f"rerun in float64: {stays}, so it is not a rounding error"
        return True, f"noise: a difference of {failure.difference:.2g} in {dtype} is {left:.2g} in float64"
    except Exception as error:  # noqa: BLE001 - the model need not run in float64; the failure above stands
        return False, f"not rerun in float64 to tell a bug from noise: {type(error).__name__}: {str(error)[:160]}"
    return True, f"noise: a difference of {failure.difference:.2g} in {dtype} vanishes in float64"


def _meta(subject: Subject) -> dict[str, Any]:
    """The meta record of a report."""
    known = subject.probe.meta
    dtype = subject.model.dtype
    return {
        "model": known.get("model"),
        "model_type": getattr(subject.model.config, "model_type", None),
        "revision": known.get("revision"),
        "adapter": subject.adapter.name,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(subject.model.device),
        "tolerances": tolerances(dtype) if dtype in RELATIVE else {},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
