"""Failed requests among results: left out, with a warning that says how many."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from vlmprobe.errors import ResultError, VlmprobeWarning, outside
from vlmprobe.results.failure import Failure
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.table import TokenTable

__all__ = ["results_in", "without_failures"]


def results_in(results: Any, caller: str = "this") -> Iterable[Any]:
    """Results as they are, of which there must be several.

    Raises:
        ResultError: for a single one, or what is no list; it names ``caller``.
    """
    if isinstance(results, (Result, Scores, Failure, TokenTable)):
        told = f"{caller} takes a list of results, not a single {type(results).__name__}"
        raise ResultError(f"{told}: put it into a list, [result]")
    if isinstance(results, (str, bytes)) or not isinstance(results, Iterable):
        raise ResultError(f"{caller} takes a list of results, not {type(results).__name__}")
    return results


def without_failures(results: Iterable[Any], *alongside: Iterable[Any]) -> Iterator[Any]:
    """The results without the :class:`~vlmprobe.Failure` objects that ``on_error="keep"`` puts among them.

    Args:
        results: read one at a time. After the last, a warning says how many failures were left out.
        alongside: further columns of the same length, such as the expected answers; each item is then a tuple.
    """
    failed = 0
    for row in zip(results_in(results), *alongside, strict=True):
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
