"""The import of matplotlib, an extra of the package."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vlmprobe.errors import MissingExtraError

__all__ = ["matplotlib"]


def matplotlib(module: str = "pyplot") -> Any:
    """A module of matplotlib.

    Raises:
        MissingExtraError: if matplotlib is not installed.
    """
    try:
        return import_module(f"matplotlib.{module}")
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
