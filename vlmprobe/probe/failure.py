"""Errors of many requests: each names its request, and a failure takes the place of a result."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from vlmprobe.errors import VlmprobeError
from vlmprobe.inputs.messages import Prompt

__all__ = ["Failure", "named", "naming", "where_of"]


@dataclass(frozen=True, eq=False)
class Failure:
    """Takes the place of a failed request's result, with ``on_error="keep"``."""

    error: Exception  # its message names the request; a model's own exception has a note that does
    question: Prompt | None = None
    id: Any = None  # of the request, None if it has none
    row: int | None = None  # place among the requests, from 0
    meta: dict[str, Any] = field(default_factory=dict)  # of the model and the request: id and further columns

    def __repr__(self) -> str:
        told = f"{type(self.error).__name__}: {' '.join(str(self.error).split())}"
        if self.row is not None and not isinstance(self.error, VlmprobeError):
            told = f"{where_of(self.row, self.id)}: {told}"
        return f"Failure({told if len(told) <= 120 else told[:117] + '...'})"


def where_of(row: int, id: Any = None, what: str = "request") -> str:
    """A request by its row, and its id if it has one: ``request 3 (id 'x')``."""
    return f"{what} {row}" if id is None else f"{what} {row} (id {id!r})"


def named(error: Exception, where: str) -> Exception:
    """An error that names the request that it is of, of the same type.

    vlmprobe's own errors are copied, as several requests may share one, and named in their message; others are noted.
    """
    if not isinstance(error, VlmprobeError):
        error.add_note(f"This was raised by {where}.")
        return error
    message = f"{where}: {error}"
    try:
        copied = copy.copy(error)
    except TypeError:  # its class is not made from a message; such an error belongs to one request
        copied = error
    copied.args = (message,)
    if isinstance(copied, ImportError):
        copied.msg = message
    copied.__cause__, copied.__context__ = error.__cause__, error.__context__
    copied.__suppress_context__ = error.__suppress_context__
    return copied.with_traceback(error.__traceback__)


@contextmanager
def naming(row: int, id: Any = None, what: str = "request") -> Iterator[None]:
    """Whatever is raised inside names a request."""
    try:
        yield
    except VlmprobeError as error:
        raise named(error, where_of(row, id, what)) from error.__cause__
    except Exception as error:
        named(error, where_of(row, id, what))
        raise
