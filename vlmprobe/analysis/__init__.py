"""What a probe makes possible: one module per question, imported when first used.

>>> from vlmprobe.analysis import calibration, uncertainty
>>> uncertainty.mean_entropy(result)

Every module is a room of its own; ``dir(vlmprobe.analysis)`` lists them.
"""

from __future__ import annotations

from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    from importlib import import_module
    from importlib.util import find_spec

    if name.startswith("_") or find_spec(f"{__name__}.{name}") is None:
        from vlmprobe.errors import near

        raise AttributeError(f"vlmprobe.analysis has no module {name!r}.{near(name, __dir__())}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    from pkgutil import iter_modules

    return sorted(module.name for module in iter_modules(__path__))
