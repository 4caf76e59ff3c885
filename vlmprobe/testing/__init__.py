"""Conformance checks for adapters, in the manner of scikit-learn's ``check_estimator``.

``check_adapter(probe)`` verifies that every number a probe gives is the model's own, against computations that share
no code with the probe: C1 to C24. ``parametrize_with_checks`` makes each a pytest test.
``check_against(probe, folder)`` compares with what the model's original code gave, ``check_server(served, probe)`` a
server with the same model, opened here. Tiny checkpoints of real
architectures to run them on come from :mod:`vlmprobe.testing.tiny`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmprobe.testing.conformance import Check
    from vlmprobe.testing.parametrize import parametrize_with_checks
    from vlmprobe.testing.report import CheckResult, ConformanceError, Report
    from vlmprobe.testing.server_suite import check_server
    from vlmprobe.testing.suite import check_adapter, check_against, checks

__all__ = [
    "Check",
    "CheckResult",
    "ConformanceError",
    "Report",
    "check_adapter",
    "check_against",
    "check_server",
    "checks",
    "parametrize_with_checks",
]

_HOMES = {
    "Check": "conformance",
    "CheckResult": "report",
    "ConformanceError": "report",
    "Report": "report",
    "check_adapter": "suite",
    "check_against": "suite",
    "check_server": "server_suite",
    "checks": "suite",
    "parametrize_with_checks": "parametrize",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
