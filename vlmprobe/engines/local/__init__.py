"""A transformers model in this process; every number comes from the model's own computation."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmprobe.engines.local.engine import LocalEngine

__all__ = ["LocalEngine"]


def __getattr__(name: str) -> Any:  # lazy: the engine imports torch and every module here
    if name != "LocalEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vlmprobe.engines.local.engine import LocalEngine

    return LocalEngine
