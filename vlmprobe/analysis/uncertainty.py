"""Uncertainty measures of one answer, from its columns alone.

Every function takes a :class:`~vlmprobe.TokenTable` or a :class:`~vlmprobe.Result` (of which it reads the
answer; for the prompt pass ``result.prompt``). Rows without a distribution (images, the first token of a sequence) are
NaN and ignored; if no row is left, the result is NaN. It is also NaN, for a measure of log-probabilities, if a server
gives only a bound on one of them: without that token the answer would seem more likely than it is. The end token is a
row like any other: an answer that stops differs from one that goes on. ``kinds=("text",)`` leaves it and other special
tokens out.

Logarithms are natural (nats) unless the name says bits. Sums are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Literal

import numpy as np

from vlmprobe.analysis.failures import results_in, without_failures
from vlmprobe.errors import ResultError
from vlmprobe.probe.tables import RECORDED
from vlmprobe.results.failure import Failure
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.result import Result
from vlmprobe.results.table import KINDS, TokenTable

__all__ = [
    "MEASURES",
    "Source",
    "bits_per_byte",
    "frame",
    "max_entropy",
    "mean_entropy",
    "mean_logprob",
    "mean_margin",
    "mean_surprisal",
    "min_logprob",
    "min_margin",
    "normalised_logprob",
    "perplexity",
    "sequence_logprob",
    "sequence_probability",
    "summary",
    "surprisal",
    "table_of",
]

Source = TokenTable | Result
TEXT = ("text", "special")  # the kinds of rows that count by default


def table_of(source: Source) -> TokenTable:
    """The table itself, or the answer's table of a result."""
    if isinstance(source, Result):
        return source.output
    if isinstance(source, TokenTable):
        return source
    raise TypeError(f"a measure takes a TokenTable or a Result, not {type(source).__name__}")


def sequence_logprob(source: Source, kinds: Collection[str] = TEXT) -> float:
    """Log-probability of the whole sequence, nats: the sum over its tokens."""
    return _reduce(np.sum, _values(source, "logprobs", kinds))


def sequence_probability(source: Source, kinds: Collection[str] = TEXT) -> float:
    """Probability of exactly this sequence, ``exp`` of :func:`sequence_logprob`. It decreases with every token."""
    return float(np.exp(sequence_logprob(source, kinds)))


def mean_logprob(source: Source, kinds: Collection[str] = TEXT) -> float:
    """Mean log-probability per token, nats (length-normalised: Malinin & Gales 2021)."""
    return _reduce(np.mean, _values(source, "logprobs", kinds))


def min_logprob(source: Source, kinds: Collection[str] = TEXT) -> float:
    """Log-probability of the least likely token, nats: the weakest link (Manakul et al. 2023 take its negative)."""
    return _reduce(np.min, _values(source, "logprobs", kinds))


def perplexity(source: Source, kinds: Collection[str] = TEXT) -> float:
    """``exp`` of the mean surprisal: the effective number of equally likely tokens."""
    return float(np.exp(-mean_logprob(source, kinds)))


def mean_entropy(source: Source, kinds: Collection[str] = TEXT) -> float:
    """Mean over tokens of the entropy of the distribution that each was drawn from, nats."""
    return _reduce(np.mean, _values(source, "entropy", kinds))


def max_entropy(source: Source, kinds: Collection[str] = TEXT) -> float:
    """Largest entropy of any step, nats: that of the most uncertain step."""
    return _reduce(np.max, _values(source, "entropy", kinds))


def mean_margin(source: Source, kinds: Collection[str] = TEXT) -> float:
    """Mean lead of the likeliest token over the second, nats."""
    return _reduce(np.mean, _values(source, "margin", kinds))


def min_margin(source: Source, kinds: Collection[str] = TEXT) -> float:
    """Smallest lead of the likeliest token over the second, nats: the closest call."""
    return _reduce(np.min, _values(source, "margin", kinds))


def surprisal(source: Source) -> np.ndarray:
    """float64 [T], bits: ``-log2`` of each token's probability; NaN where a row has none."""
    return -table_of(source).logprobs.astype(np.float64) / np.log(2)


def mean_surprisal(source: Source, kinds: Collection[str] = TEXT) -> float:
    """Mean surprisal, bits per token."""
    return -mean_logprob(source, kinds) / float(np.log(2))


def bits_per_byte(source: Source) -> float:
    """Surprisal of the text tokens, bits per UTF-8 byte of their text: comparable between tokenizers.

    Special tokens have no bytes, so neither their surprisal nor their spelling counts.
    """
    return -normalised_logprob(source, by="bytes", kinds=("text",)) / float(np.log(2))


def normalised_logprob(
    source: Source,
    by: Literal["tokens", "characters", "bytes", "gnmt"] = "tokens",
    *,
    alpha: float = 0.6,
    kinds: Collection[str] = TEXT,
) -> float:
    """Log-probability of the sequence over a measure of its length, so that answers of any length are comparable.

    Args:
        source: table or result.
        by: ``"tokens"``, ``"characters"`` and ``"bytes"`` (of the text of the counted rows that are text), or
            ``"gnmt"``, the length penalty ``((5 + T) / 6) ** alpha`` of Wu et al. 2016.
        alpha: strength of the GNMT penalty; 0 is no normalisation.
        kinds: which rows count.

    Returns:
        Nats per unit; NaN where the length is 0.
    """
    table, rows = _counted(source, kinds)
    rows &= ~np.isnan(table.logprobs)
    # A character of several tokens is in the row that completes it, so the row texts join to the text.
    text = "".join(table.tokens[row] for row in np.flatnonzero(rows) if table.kinds[row] == "text")
    tokens = int(rows.sum())
    lengths = {
        "tokens": tokens,
        "characters": len(text),
        "bytes": len(text.encode()),
        "gnmt": ((5 + tokens) / 6) ** alpha,
    }
    if by not in lengths:
        raise ValueError(f"by must be one of {', '.join(lengths)}, not {by!r}")
    return sequence_logprob(table, kinds) / lengths[by] if lengths[by] else float("nan")


TOLD = ("id", "question", "model", "finish_reason")  # of the meta, in a frame
MEASURES: dict[str, Callable[[Source], float]] = {
    "logprob": sequence_logprob,
    "probability": sequence_probability,
    "mean_logprob": mean_logprob,
    "min_logprob": min_logprob,
    "perplexity": perplexity,
    "mean_surprisal": mean_surprisal,
    "bits_per_byte": bits_per_byte,
    "mean_entropy": mean_entropy,
    "max_entropy": max_entropy,
    "mean_margin": mean_margin,
    "min_margin": min_margin,
}


OWN = ("id", "question", "text", "model", "finish_reason", *MEASURES)  # columns of a frame, before carried ones


def summary(source: Source) -> dict[str, float]:
    """Every measure of :data:`MEASURES` by its name; those whose columns are missing are NaN."""
    table = table_of(source)
    margins = table.top_logprobs.shape[1] >= 2
    return {
        name: float("nan") if name.endswith("margin") and not margins else measure(table)
        for name, measure in MEASURES.items()
    }


def frame(results: Iterable[Result | Failure]) -> DataFrame:
    """A ``pandas.DataFrame``, one row per result that is no failure.

    Its columns: ``id``, ``question``, ``text`` (the answer), ``model``, ``finish_reason``, every measure, and then what
    the requests carried (``meta_text`` for a carried column that is named like one of these).

    Raises:
        TypeError: for what is no result, such as ``Scores``, which have a ``to_pandas`` of their own.
        ResultError: for a single result.
    """
    # A generator, so that a missing package is reported before any result is made. The summary is first: it refuses
    # what is no result.
    rows = (
        {**summary(result), **{name: result.meta.get(name) for name in TOLD}, "text": result.text, **_carried(result)}
        for result in without_failures(results_in(results, "frame"))
    )
    made = data_frame(rows)
    return made.reindex(columns=[*OWN, *(name for name in made.columns if name not in OWN)])


def _carried(result: Result) -> dict[str, Any]:
    """What the request had beside its question and image."""
    further = {name: value for name, value in result.meta.items() if name not in RECORDED and name not in TOLD}
    return {f"meta_{name}" if name in OWN else name: value for name, value in further.items()}


def _counted(source: Source, kinds: Collection[str]) -> tuple[TokenTable, np.ndarray]:
    """The table, and bool [T]: its rows of the wanted kinds."""
    wanted = {kinds} if isinstance(kinds, str) else set(kinds)
    if not wanted <= set(KINDS):
        raise ResultError(f"kinds must be among {', '.join(KINDS)}, not {', '.join(sorted(wanted - set(KINDS)))}")
    table = table_of(source)
    return table, np.array([kind in wanted for kind in table.kinds], dtype=bool)


def _values(source: Source, column: str, kinds: Collection[str]) -> np.ndarray:
    """The numbers of a column, float64, of the wanted kinds; NaN only where a log-probability has a bound instead."""
    table, rows = _counted(source, kinds)
    values = getattr(table, column)[rows].astype(np.float64)
    counted = ~np.isnan(values)
    if column == "logprobs" and table.logprobs_at_most is not None:
        counted |= ~np.isnan(table.logprobs_at_most[rows])
    known = values[counted]
    return np.append(known, np.nan) if column == "logprobs" and table.lost else known


def _reduce(how: Callable[[np.ndarray], Any], values: np.ndarray) -> float:
    return float(how(values)) if len(values) else float("nan")
