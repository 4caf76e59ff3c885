"""The key-value cache under both of its names: ``past_key_values``, and ``cache`` since transformers 5.24.

Which one counts is read off what is called, and off what it returned, never off a version number: a model of another
package may keep the old name on a new transformers.
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
    """The argument under which a ``forward`` takes its cache.

    Where the signature names neither (``**kwargs`` handed on), it is the name that transformers' own outputs use.
    """
    taken = inspect.signature(forward).parameters
    known = taken if any(name in taken for name in NAMES) else {each.name for each in fields(BaseModelOutputWithPast)}
    return next(name for name in NAMES if name in known)


def cache_of(output: Mapping[str, Any]) -> Any:
    """The cache that a model, or ``generate``, returned; None where it returned none."""
    held = dict(output.items())  # an output of transformers 5.24 answers to the old name too, with a complaint
    return next((held[name] for name in NAMES if name in held), None)
