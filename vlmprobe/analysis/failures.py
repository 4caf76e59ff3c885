"""Failed requests among results: left out, with a warning that says how many."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from vlmprobe.errors import VlmprobeWarning, outside
from vlmprobe.probe.failure import Failure

__all__ = ["without_failures"]


def without_failures(results: Iterable[Any], *alongside: Iterable[Any]) -> Iterator[Any]:
    """The results without the :class:`~vlmprobe.Failure` objects that ``on_error="keep"`` puts among them.

    Args:
        results: read one at a time. After the last, a warning says how many failures were left out.
        alongside: further columns of the same length, such as the expected answers; each item is then a tuple.
    """
    failed = 0
    for row in zip(results, *alongside, strict=True):
        if isinstance(row[0], Failure):
            failed += 1
        else:
            yield row if alongside else row[0]
    if failed:
        warnings.warn(
            f"{failed} failed request{'s are' if failed > 1 else ' is'} left out: these results are of the others "
            "(Failure.error says what went wrong).",
            VlmprobeWarning,
            stacklevel=outside(),
        )
