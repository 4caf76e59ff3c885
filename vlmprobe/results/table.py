"""``TokenTable``: one row per token, NumPy columns of one length, in the order of the sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np

from vlmprobe.display.view import counted
from vlmprobe.errors import MissingExtraError, ResultError
from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.results.choices import Choices, StaysReadOnly, choices_of, read_only
from vlmprobe.results.frame import DataFrame, data_frame

__all__ = ["KINDS", "TokenTable", "read_only"]

KINDS = ("text", "special", "image")
Ids: TypeAlias = Any  # np.ndarray int64; None from a server that gives no ids
OF_THE_TABLE = ("image_spans", "lost")  # fields that are no columns
ON_DISK = ("float16", "bfloat16")  # narrower dtypes that full rows on disk may have
COLUMNS: dict[str, tuple[type[np.generic], int]] = {  # column: type, dimensions
    **dict.fromkeys(("ids", "positions", "ranks"), (np.int64, 1)),
    **dict.fromkeys(("offsets", "top_ids"), (np.int64, 2)),
    **dict.fromkeys(("logprobs", "entropy", "logsumexp", "scores", "mass_allowed"), (np.float32, 1)),
    **dict.fromkeys(("logprobs_at_most", "entropy_at_least"), (np.float32, 1)),
    **dict.fromkeys(("top_logprobs", "logits", "hidden"), (np.float32, 2)),
}


@dataclass(frozen=True, eq=False)
class TokenTable(StaysReadOnly):
    """T tokens and the model's statistics of each.

    Row t describes token t under the distribution from which token t was drawn: the model's output one position
    before it. The first token of a sequence has no distribution and an image is not text: their numbers are NaN
    and their rank is -1, and no mean, score or perplexity includes them. All logarithms are natural (nats), all
    numbers are of the raw logits, before temperature, penalties and filters, except ``scores``.

    The arrays are read-only. A server may give no ids: ``ids`` is then None, and ``top_ids`` holds -1.
    """

    ids: Ids  # int64 [T]; an image row holds its placeholder's id
    tokens: list[str]  # [T] text; a character split over tokens is in the row that completes it
    kinds: list[str]  # [T] "text", "special" or "image"
    positions: np.ndarray  # int64 [T], position in the model's own sequence (an image: its first one)
    offsets: np.ndarray  # int64 [T, 2], start and stop of the token's characters in the text of this table
    logprobs: np.ndarray  # float32 [T], nats
    entropy: np.ndarray  # float32 [T], nats
    ranks: np.ndarray  # int64 [T]; 0 = the most likely token, -1 = undefined
    logsumexp: np.ndarray  # float32 [T]; raw logit of the token = logprobs + logsumexp
    top_ids: np.ndarray  # int64 [T, K], the likeliest tokens, best first; -1 where undefined
    top_logprobs: np.ndarray  # float32 [T, K], nats
    top_tokens: Sequence[Sequence[str]]  # [T][K] text of the likeliest tokens
    image_spans: tuple[ImageSpan, ...] = ()  # every run of image positions, in sequence order
    logits: np.ndarray | None = None  # float32 [T, V], the full raw rows, with keep="logits"; memory-mapped if on disk
    hidden: np.ndarray | None = None  # float32 [T, H], what entered the LM head, with keep="hidden"
    scores: np.ndarray | None = None  # float32 [T], logprob after processors, where it differs from logprobs
    mass_allowed: np.ndarray | None = (
        None  # float32 [T], raw probability of all that ``schema=`` or ``grammar=`` allowed
    )
    # Bounds from an engine that gives incomplete numbers; NaN where the number itself is known, or nothing is.
    logprobs_at_most: np.ndarray | None = None  # float32 [T], nats
    entropy_at_least: np.ndarray | None = None  # float32 [T], nats
    lost: int = 0  # tokens that an engine generated and sent nothing of, in unknown places between these rows

    def __post_init__(self) -> None:
        count = len(self.tokens)
        for name, value in vars(self).items():
            if value is not None and name not in OF_THE_TABLE and len(value) != count:
                raise ResultError(f"column {name} has {len(value)} rows, tokens has {count}")
        super().__post_init__()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> TokenTable:
        """A slice of rows as a new table; ``image_spans`` are kept whole."""
        if not isinstance(rows, slice):
            raise TypeError("a TokenTable takes a slice, such as table[2:5]; columns are attributes")
        changed = {
            field.name: value[rows]
            for field in fields(self)
            if field.name not in OF_THE_TABLE and (value := getattr(self, field.name)) is not None
        }
        return replace(self, **changed)

    @property
    def scored(self) -> np.ndarray:
        """bool [T]: the rows that have a log-probability (not an image, not the first token)."""
        return ~np.isnan(self.logprobs)

    @property
    def confidence(self) -> np.ndarray:
        """float32 [T]: probability of each token, ``exp(logprobs)``."""
        return np.exp(self.logprobs)

    @property
    def margin(self) -> np.ndarray:
        """float32 [T], nats: log-probability of the likeliest token minus that of the second."""
        if self.top_logprobs.shape[1] < 2:
            raise ResultError("margin needs at least two alternatives: pass alternatives=2 or more")
        return self.top_logprobs[:, 0] - self.top_logprobs[:, 1]

    @property
    def bounded(self) -> bool:
        """Whether an engine gives only a bound on the log-probability of some token, or nothing, so that no sum of them
        is known."""
        return self.lost > 0 or (self.logprobs_at_most is not None and not bool(np.isnan(self.logprobs_at_most).all()))

    @property
    def logprob(self) -> float:
        """Sum of the log-probabilities of the scored rows, nats; NaN if none is scored, or one is only bounded."""
        known = self.scored.any() and not self.bounded
        return float(self.logprobs[self.scored].sum(dtype=np.float64)) if known else float("nan")

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean negative log-probability over the scored rows; NaN as :attr:`logprob`."""
        known = self.scored.any() and not self.bounded
        return float(np.exp(-self.logprobs[self.scored].mean(dtype=np.float64))) if known else float("nan")

    def top(self, k: int = 5) -> Choices:
        """The k likeliest tokens of each scored row, and the chosen one.

        Raises:
            ResultError: if the table keeps fewer than k alternatives.
        """
        return choices_of(self, k)

    def columns(self) -> dict[str, Any]:
        """The columns, named as in :meth:`to_pandas` and :meth:`to_arrow`."""
        table: dict[str, Any] = {
            "id": self.ids,
            "token": self.tokens,
            "kind": self.kinds,
            "position": self.positions,
            "logprob": self.logprobs,
            "confidence": self.confidence,
            "entropy": self.entropy,
            "rank": self.ranks,
            "logsumexp": self.logsumexp,
            "top_ids": self.top_ids.tolist(),
            "top_tokens": list(self.top_tokens),
            "top_logprobs": self.top_logprobs.tolist(),
        }
        if self.ids is None:
            del table["id"]
        for shown, column in (
            ("score", self.scores),
            ("mass_allowed", self.mass_allowed),
            ("logprob_at_most", self.logprobs_at_most),
            ("entropy_at_least", self.entropy_at_least),
        ):
            if column is not None:
                table[shown] = column
        return table

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per token; ``top_*`` cells hold lists."""
        return data_frame(self.columns())

    def to_arrow(self) -> Any:
        """A ``pyarrow.Table``, one row per token; ``top_*`` columns are lists."""
        try:
            import pyarrow
        except ImportError as error:
            raise MissingExtraError("pyarrow", "arrow") from error
        return pyarrow.table(self.columns())

    def plot(self, ax: Any = None, *, most: int = 40) -> Any:
        """Surprisal of each token in bits as bars, beside the entropy of its distribution. Returns the axes.

        Args:
            ax: axes to draw on.
            most: how many tokens to draw side by side with their text; more are drawn as a curve with the most
                surprising ones labelled.

        Raises:
            ResultError: if no token has a log-probability.
        """
        from vlmprobe.display.plots.tokens import draw_table

        return draw_table(self, ax, most=most)

    def _repr_html_(self) -> str:
        from vlmprobe.display import table_html

        return table_html(self)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from vlmprobe.display import table_rich

        yield table_rich(self)

    def __repr__(self) -> str:
        text = "".join(self.tokens)[:60]
        return f"TokenTable({counted(len(self), 'token')}: {text!r}, perplexity {self.perplexity:.3g})"

    # -- storage -----------------------------------------------------------------------------------

    def to_parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The table as arrays and a JSON-ready mapping; :meth:`from_parts` reads them back."""
        arrays, rest = {}, {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                arrays[field.name] = value
            elif field.name == "image_spans":
                rest[field.name] = [[span.image, span.tile, span.start, span.stop] for span in value]
            elif field.name == "top_tokens":
                rest[field.name] = [list(row) for row in value]
            elif field.name == "lost":
                rest |= {"lost": value} if value else {}
            elif value is not None or field.name == "ids":
                rest[field.name] = value
        return arrays, rest

    @classmethod
    def from_parts(cls, arrays: Mapping[str, np.ndarray], rest: Mapping[str, Any]) -> TokenTable:
        """A table from what :meth:`to_parts` returned.

        Raises:
            ResultError: for a column of another type or number of dimensions.
        """
        for name, (kind, dimensions) in COLUMNS.items():
            array = arrays.get(name)
            stored = name == "logits" and array is not None and array.dtype.name in ON_DISK
            if array is not None and not ((array.dtype == kind or stored) and array.ndim == dimensions):
                raise ResultError(f"column {name} is {array.ndim}-dimensional {array.dtype}")
        columns: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
        if "ids" not in columns:
            columns["ids"] = rest["ids"]
        spans = tuple(ImageSpan(*map(int, span)) for span in rest["image_spans"])
        return cls(
            **columns,
            tokens=list(rest["tokens"]),
            kinds=list(rest["kinds"]),
            top_tokens=[list(row) for row in rest["top_tokens"]],
            image_spans=spans,
            lost=int(rest.get("lost", 0)),
        )


def empty_numbers(count: int, alternatives: int) -> dict[str, np.ndarray]:
    """The numeric columns of ``count`` unknown rows: NaN, rank -1, ids -1."""
    return {
        "logprobs": np.full(count, np.nan, np.float32),
        "entropy": np.full(count, np.nan, np.float32),
        "ranks": np.full(count, -1, np.int64),
        "logsumexp": np.full(count, np.nan, np.float32),
        "top_ids": np.full((count, alternatives), -1, np.int64),
        "top_logprobs": np.full((count, alternatives), np.nan, np.float32),
    }


def joined(tokens: Sequence[str]) -> np.ndarray:
    """Offsets int64 [T, 2] of tokens in their concatenation."""
    stops = np.cumsum([len(token) for token in tokens], dtype=np.int64)
    starts = np.concatenate([[0], stops[:-1]]) if len(tokens) else stops
    return np.stack([starts, stops], axis=-1).astype(np.int64)
