"""The key-value cache under both of its names: ``past_key_values``, and ``cache`` since transformers 5.24.

Which one applies is read from the callee's signature and its output, never from a version number: a third-party model
may keep the old name on a new transformers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPast

__all__ = ["cache_name", "cache_of"]

NAMES = ("cache", "past_key_values")


def cache_name(forward: Callable[..., Any]) -> str:
    """The name of the cache argument of a ``forward``.

    If the signature has neither (``**kwargs`` passed through), it is the name that transformers' own outputs use.
    """
    taken = inspect.signature(forward).parameters
    known = taken if any(name in taken for name in NAMES) else {each.name for each in fields(BaseModelOutputWithPast)}
    return next(name for name in NAMES if name in known)


def cache_of(output: Mapping[str, Any]) -> Any:
    """The cache that a model, or ``generate``, returned; None if it returned none."""
    held = dict(output.items())  # an output of transformers 5.24 also accepts the old name, with a warning
    return next((held[name] for name in NAMES if name in held), None)
