"""The conformance checks as parameters of a pytest test, as in scikit-learn's ``parametrize_with_checks``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from vlmprobe.probe import Probe
from vlmprobe.testing.conformance import Check
from vlmprobe.testing.report import ConformanceError
from vlmprobe.testing.subject import Subject
from vlmprobe.testing.suite import checks, run_check, selected

__all__ = ["BoundCheck", "parametrize_with_checks"]

Source: TypeAlias = "Probe | Callable[[], Probe]"


class _Subjects:
    """Keeps the last subject: the checks of one probe run after each other and share what they compute."""

    def __init__(self) -> None:
        self.source: Source | None = None
        self.subject: Subject | None = None

    def of(self, source: Source) -> Subject:
        if self.subject is None or self.source is not source:
            self.source = source
            self.subject = Subject(source if isinstance(source, Probe) else source())
        return self.subject


_SUBJECTS = _Subjects()


@dataclass(frozen=True)
class BoundCheck:
    """One check, to be called with a probe in a test: it passes, skips, or fails with the report's text."""

    check: Check
    expected_failure: str | None = None

    def __call__(self, probe: Source) -> None:
        """Run the check on a probe, or on the probe that a callable loads.

        Raises:
            ConformanceError: if it fails.
        """
        import pytest

        result = run_check(self.check, _SUBJECTS.of(probe), self.expected_failure)
        if result.status == "skipped":
            pytest.skip(result.reason)
        if result.status == "expected failure":
            pytest.xfail(result.reason)
        if result.status in ("failed", "unexpected pass"):
            raise ConformanceError(f"\n{result}")


def parametrize_with_checks(
    probes: Mapping[str, Source], *, expected_failures: Mapping[str, Mapping[str, str]] | None = None
) -> Any:
    """Decorate a test of arguments ``probe`` and ``check`` so that it runs every check on every probe.

    Example::

        @parametrize_with_checks({"my-model": lambda: vlmprobe.load("path/to/checkpoint")})
        def test_conformance(probe, check):
            check(probe)

    Args:
        probes: name in the test's id -> a probe, or a callable that loads it when the first check runs.
        expected_failures: name -> id of a check -> why it is expected to fail. An expected failure that passes
            fails the test, so that the list stays up to date.
    """
    import pytest

    expected = {name: dict(given) for name, given in (expected_failures or {}).items()}
    for given in expected.values():
        selected(given)
    return pytest.mark.parametrize(
        ("probe", "check"),
        [
            pytest.param(source, BoundCheck(check, expected.get(name, {}).get(check.id)), id=f"{name}-{check.id}")
            for name, source in probes.items()
            for check in checks()
        ],
    )
