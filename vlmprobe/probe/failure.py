"""Errors of many requests: each names its request."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlmprobe.errors import VlmprobeError
from vlmprobe.results.failure import Failure, where_of

__all__ = ["Failure", "named", "naming", "where_of"]


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
