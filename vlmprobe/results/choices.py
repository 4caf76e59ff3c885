"""``Choices``: the top alternatives at each step, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmprobe.display.shown import ShownTable
from vlmprobe.display.view import counted
from vlmprobe.errors import ResultError
from vlmprobe.results.frame import DataFrame, data_frame

__all__ = ["Choices", "StaysReadOnly", "choices_of", "rank_of_chosen", "read_only"]


class StaysReadOnly:
    """Base of dataclasses with read-only arrays, which pickle and copy.deepcopy would restore as writable ones."""

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if isinstance(value, np.ndarray) and value.flags.writeable:
                object.__setattr__(self, name, read_only(value))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        StaysReadOnly.__post_init__(self)


@dataclass(frozen=True, eq=False)
class Choices(StaysReadOnly):
    """N choices over the steps of a token table, ordered by step and, within one, likeliest first.

    A chosen token outside the top k of its step comes last in it. Rows of the token table without alternatives (an
    image, the first token) are not steps. The numbers are of the raw logits; the arrays are read-only.
    """

    steps: np.ndarray  # int64 [N], row of the token table
    ranks: np.ndarray  # int64 [N], 0 = the likeliest token of the step
    ids: np.ndarray  # int64 [N]; -1 from a server that gives no ids
    tokens: list[str]  # [N]
    logprobs: np.ndarray  # float32 [N], nats
    chosen: np.ndarray  # bool [N], whether this is the chosen token
    k: int  # number of top tokens per step

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def probabilities(self) -> np.ndarray:
        """float32 [N]: ``exp(logprobs)``."""
        return np.exp(self.logprobs)

    def at(self, step: int) -> list[tuple[str, float]]:
        """The tokens of one step and their probabilities, likeliest first.

        Raises:
            ResultError: for a row of the token table that is not a step.
        """
        rows = np.flatnonzero(self.steps == step)
        if not len(rows):
            raise ResultError(f"Row {step} is not a step: it is outside the table, or has no alternatives.")
        return [(self.tokens[row], float(self.probabilities[row])) for row in rows]

    def columns(self) -> dict[str, Any]:
        """The columns, named as in :meth:`to_pandas`."""
        return {
            "step": self.steps,
            "rank": self.ranks,
            "id": self.ids,
            "token": self.tokens,
            "logprob": self.logprobs,
            "probability": self.probabilities,
            "chosen": self.chosen,
        }

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per choice."""
        return data_frame(self.columns())

    def plot(self, ax: Any = None) -> Any:
        """One column per step, its likeliest token on top, the chosen one framed. Returns the axes.

        Args:
            ax: axes to draw on.

        Raises:
            ResultError: for more steps than fit side by side, or none.
        """
        from vlmprobe.display.plots.choices import draw_choices

        return draw_choices(self, ax)

    def _repr_html_(self) -> str:
        from vlmprobe.display.choices import choices_html

        return choices_html(self)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from vlmprobe.display.choices import choices_rich

        yield choices_rich(self)

    def __repr__(self) -> str:
        return f"Choices({counted(len(np.unique(self.steps)), 'step')}, {counted(len(self), 'token')})"


def choices_of(table: ShownTable, k: int = 5) -> Choices:
    """The k likeliest tokens at each step of a table, and the chosen one.

    Args:
        table: of T tokens.
        k: how many, at most the alternatives that the table keeps.

    Raises:
        ResultError: if the table keeps fewer.
    """
    kept = table.top_ids.shape[1]
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= kept:
        raise ResultError(f"k must be an integer from 1 to {kept}, not {k!r}: pass alternatives= for more")
    found: list[tuple[int, int, int, str, float, bool]] = []
    known = ~np.isnan(table.top_logprobs[:, :k])
    for step in np.flatnonzero(known.any(axis=1)).tolist():
        said = rank_of_chosen(table, step, k)
        for rank in np.flatnonzero(known[step]).tolist():
            token, logprob = table.top_tokens[step][rank], float(table.top_logprobs[step, rank])
            found.append((step, rank, int(table.top_ids[step, rank]), token, logprob, rank == said))
        if said is None:
            token, logprob = table.tokens[step], float(table.logprobs[step])
            each = -1 if table.ids is None else int(table.ids[step])
            found.append((step, int(table.ranks[step]), each, token, logprob, True))
    steps, ranks, ids, tokens, logprobs, chosen = zip(*found, strict=True) if found else [()] * 6
    return Choices(
        steps=np.array(steps, dtype=np.int64),
        ranks=np.array(ranks, dtype=np.int64),
        ids=np.array(ids, dtype=np.int64),
        tokens=list(tokens),
        logprobs=np.array(logprobs, dtype=np.float32),
        chosen=np.array(chosen, dtype=bool),
        k=int(k),
    )


def rank_of_chosen(table: ShownTable, step: int, k: int) -> int | None:
    """Rank of the chosen token among the k likeliest of its step; compared by text if there are no ids."""
    said, top = (table.tokens, table.top_tokens) if table.ids is None else (table.ids, table.top_ids)
    return next((rank for rank, each in enumerate(top[step][:k]) if each == said[step]), None)


def read_only(array: np.ndarray) -> np.ndarray:
    """A read-only view; the array itself is unchanged."""
    view = array.view()
    view.flags.writeable = False
    return view
