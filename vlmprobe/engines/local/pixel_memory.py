"""Prepares the pixels of an image once, however many prompts of one call are about it.

Resizing, cutting and normalising an image can take longer than a question. An adapter names what does it
(:attr:`vlmprobe.adapter.Adapter.pixel_step`); within one call on the model, equal arguments get the first outcome.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlmprobe.adapter import Adapter
from vlmprobe.engines.local.feature_cache import same

__all__ = ["prepared_once"]

_LOCK = threading.RLock()  # a processor may belong to several models


@contextmanager
def prepared_once(adapter: Adapter) -> Iterator[None]:
    """Within it, the adapter prepares the same images with the same options once."""
    place = adapter.pixel_step
    if place is None:
        yield
        return
    owner, name = place
    with _LOCK:
        covered = owner.__dict__.get(name)
        owner.__dict__[name] = _Once(getattr(owner, name))
        try:
            yield
        finally:
            if covered is None:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = covered


class _Once:
    """A callable that is called once for equal arguments, with the attributes of the original."""

    def __init__(self, original: Any) -> None:
        self._original = original
        self._found: list[tuple[Any, Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for asked, outcome in self._found:
            if same(asked, (args, kwargs)):
                return copy.copy(outcome)  # whose keys the caller may remove
        outcome = self._original(*args, **kwargs)
        self._found.append(((args, kwargs), copy.copy(outcome)))
        return outcome

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)
