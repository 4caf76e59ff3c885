"""One-row tables for each step of a decoding loop, for streaming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vlmprobe.engines.local.capture import Steps
from vlmprobe.engines.token_tables import require_finite
from vlmprobe.results.detokenize import Detokenizer
from vlmprobe.results.table import TokenTable

__all__ = ["Rows"]


class Rows:
    """Builds a one-row table after every step of a decoding loop over a single prompt."""

    def __init__(self, detokenizer: Detokenizer, begin: Sequence[int] = ()) -> None:
        """``begin`` holds the ids that the answer was made to begin with; they have no step, and no row."""
        self._special = detokenizer.special
        self._alone = detokenizer.alone
        self._given = len(begin)
        self._ids: list[int] = []
        self._texts = detokenizer.running(iter(self._ids))
        self._end = 0  # of the text so far
        for token in begin:
            self._text(token)

    def _text(self, token: int) -> tuple[str, int]:
        """The text of the token that comes next, and where in the answer it starts."""
        self._ids.append(token)
        text, start = next(self._texts), self._end
        self._end += 0 if token in self._special else len(text)
        return text, start

    def of(self, steps: Steps, ids: Tensor) -> TokenTable:
        """The row of the token that was drawn last; it is the last of ``ids`` [1, S + T]."""
        token = int(ids[0, -1])
        text, start = self._text(token)
        columns: dict[str, Any] = {name: values.cpu().numpy() for name, values in steps.last.items()}
        require_finite(columns["logsumexp"], [f"generated token {len(self._ids) - self._given - 1}"])
        if isinstance(steps.logits, list):
            columns["logits"] = steps.logits[-1].numpy()
        return TokenTable(
            ids=np.array([token]),
            tokens=[text],
            kinds=["special" if token in self._special else "text"],
            positions=np.array([ids.shape[1] - 1]),
            offsets=np.array([[start, self._end]]),
            top_tokens=[[self._alone(each) for each in row] for row in columns["top_ids"].tolist()],
            **columns,
        )
