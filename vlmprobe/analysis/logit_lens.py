"""The logit lens: decodes every layer through the final norm and head (nostalgebraist 2020).

Norm and head are the model's own, soft-capping and scaling included; the last layer's numbers are those of the model,
which is checked at every call. One run of the model gives all layers.

What this cannot show: early layers use a basis that the head was not trained to read, so an answer that appears late
may have been settled before (Belrose et al. 2023 train a translator per layer for this reason).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vlmprobe.display.overview import Overview, Viewed, trend
from vlmprobe.display.view import DASH, counted
from vlmprobe.engines.answer_ids import answer_ids, require_no_options
from vlmprobe.engines.base import Options, ReadsLayers, require
from vlmprobe.errors import MessageError
from vlmprobe.inputs.messages import Prompt
from vlmprobe.probe.request import with_meta
from vlmprobe.results.frame import DataFrame, data_frame
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable

if TYPE_CHECKING:
    from vlmprobe.engines.local.layer_readout import LayerColumns
    from vlmprobe.probe import Probe

__all__ = ["Lens", "lens"]

Rows = slice | Sequence[int] | None


@dataclass(frozen=True, eq=False)
class Lens(Viewed):
    """R tokens at L decoder layers. Logarithms in nats; a layer that did not run has NaN and rank -1."""

    table: TokenTable  # of the whole answer, or prompt
    rows: np.ndarray  # int64 [R], which of its rows are analysed
    layers: np.ndarray  # int64 [L], from 0, in order
    logprobs: np.ndarray  # float32 [L, R], of the actual token
    ranks: np.ndarray  # int64 [L, R]; 0 = the layer's likeliest token
    entropy: np.ndarray  # float32 [L, R]
    logsumexp: np.ndarray  # float32 [L, R]
    top_ids: np.ndarray  # int64 [L, R, K], each layer's likeliest tokens, best first
    top_logprobs: np.ndarray  # float32 [L, R, K]
    top_tokens: list[list[list[str]]]  # [L][R][K]
    result: Result | None = None  # if the answer was generated
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> list[str]:
        """[R] text of the tokens analysed."""
        return [self.table.tokens[row] for row in self.rows.tolist()]

    @cached_property
    def leads(self) -> np.ndarray:
        """int64 [R]: the first layer whose likeliest token is the actual one; -1 if none is."""
        return self._first(self.ranks == 0)

    @cached_property
    def settles(self) -> np.ndarray:
        """int64 [R]: the first layer from which on the actual token is the likeliest; -1 if not at the last."""
        ran = self.ranks >= 0
        after = np.flip(np.logical_and.accumulate(np.flip((self.ranks == 0) | ~ran, axis=0), axis=0), axis=0)
        return self._first(after & ran)

    def to_pandas(self) -> DataFrame:
        """A ``pandas.DataFrame``, one row per layer and token."""
        count = len(self.rows)
        return data_frame(
            {
                "layer": np.repeat(self.layers, count),
                "row": np.tile(self.rows, len(self.layers)),
                "token": self.tokens * len(self.layers),
                "logprob": self.logprobs.ravel(),
                "rank": self.ranks.ravel(),
                "entropy": self.entropy.ravel(),
                "says": [each[0] for layer in self.top_tokens for each in layer],
                "says_logprob": self.top_logprobs[:, :, 0].ravel(),
            }
        )

    def plot(self, ax: Any = None) -> Any:
        """Layers by tokens: each layer's likeliest token, shaded by the probability of the actual token.

        Returns the axes. The first layer at which the actual token leads is framed.
        """
        from vlmprobe.display.plots.contrast_and_lens import draw_lens

        says = [[each[0] for each in layer] for layer in self.top_tokens]
        return draw_lens(self.tokens, self.layers, self.logprobs, self.ranks, says, self.leads, ax)

    def _overview(self) -> Overview:
        """Each token with the layers at which it leads and settles, and its probability at every layer."""
        shares = np.exp(self.logprobs.astype(np.float64))
        rows = [
            [
                (token, float(shares[-1, place])),
                trend(shares[:, place].tolist()),
                *(str(each) if each >= 0 else DASH for each in (int(self.leads[place]), int(self.settles[place]))),
            ]
            for place, token in enumerate(self.tokens)
        ]
        figures = [("layers", f"{len(self.layers):,}", "decoder layers that are read")]
        return Overview(
            {"token": "token", "probability by layer": "text", "leads at": "number", "settles at": "number"},
            rows,
            str(self.meta.get("question") or ""),
            figures,
        )

    def _first(self, true: np.ndarray) -> np.ndarray:
        return np.where(true.any(axis=0), self.layers[true.argmax(axis=0)], -1)

    def __repr__(self) -> str:
        count = f"{counted(len(self.layers), 'layer')}, {counted(len(self.rows), 'token')}"
        return f"Lens({count}: {''.join(self.tokens)[:60]!r})"


def lens(
    probe: Probe,
    question: Prompt,
    /,
    image: Any = None,
    *,
    answer: str | Result | Sequence[int] | None = None,
    of: Literal["answer", "prompt"] = "answer",
    rows: Rows = None,
    layers: Sequence[int] | None = None,
    alternatives: int = 5,
    **generation: Any,
) -> Lens:
    """Every decoder layer's distribution at the tokens of an answer, or of the prompt.

    Args:
        probe: of a model in this process.
        question, image: as in :meth:`Probe.generate`.
        answer: to analyse: a text, a result of this question about these images, or token ids; generated if None.
        of: ``"answer"``, or ``"prompt"`` for the prompt's own tokens.
        rows: which rows of that table: a slice, or indices from 0 (negative ones from the end); all if None. Images and
            the first token of a prompt have no distribution and are left out.
        layers: indices of decoder layers from 0, negative ones from the last; all if None.
        alternatives: K of ``top_ids``.
        **generation: as in :meth:`Probe.generate`, if the answer is generated.

    Raises:
        CapabilityError: for a layer that does not exist, an engine without layers, beams, or a model whose logits
            are not norm and head of its last layer.
        MessageError: for rows that do not exist, or a result of another prompt or of other images.
    """
    if of not in ("answer", "prompt"):
        raise MessageError(f"of must be 'answer' or 'prompt', not {of!r}")
    if of == "prompt":
        if answer is not None:
            raise MessageError("The prompt is analysed, so an answer would do nothing: leave it out.")
        require_no_options(generation, "The prompt is analysed")
    elif answer is not None:
        require_no_options(generation, "The answer is given")
    conversation = probe.conversation(question, image)
    options = Options(alternatives=alternatives, prompt=False, generation=generation)
    probe.engine.check([conversation], options)
    look = require(probe.engine, ReadsLayers).layers
    ids = None if answer is None else answer_ids(probe.engine, conversation, answer)
    result, table, columns = look(conversation, options, layers=layers, ids=ids, prompt=of == "prompt")
    if result is not None:
        result = with_meta(result, probe.meta, conversation)
    has_row = np.flatnonzero(~np.isnan(table.logsumexp))
    kept = np.isin(has_row, _wanted(rows, len(table), has_row))
    found = _made(probe, table, has_row[kept], columns.cut(rows=np.flatnonzero(kept)), result)
    return with_meta(found, probe.meta, conversation)


def _wanted(rows: Rows, count: int, has_row: np.ndarray) -> np.ndarray:
    if rows is None:
        return has_row
    if isinstance(rows, slice):
        return np.arange(count)[rows]
    for each in rows:
        if isinstance(each, bool) or not isinstance(each, (int, np.integer)) or not -count <= each < count:
            raise MessageError(f"There is no row {each!r}: the table has {count}, 0 to {count - 1}.")
    listed = np.array([int(each) % count for each in rows], dtype=np.int64)
    if len(missing := listed[~np.isin(listed, has_row)]):
        raise MessageError(f"Row {missing[0]} is an image or the first token, which has no distribution.")
    return listed


def _made(
    probe: Probe,
    table: TokenTable,
    rows: np.ndarray,
    columns: LayerColumns,
    result: Result | None,
) -> Lens:
    alone = probe.engine.detokenizer.alone  # type: ignore[attr-defined]
    return Lens(
        table=table,
        rows=rows,
        layers=columns.layers,
        logprobs=columns.logprobs,
        ranks=columns.ranks,
        entropy=columns.entropy,
        logsumexp=columns.logsumexp,
        top_ids=columns.top_ids,
        top_logprobs=columns.top_logprobs,
        top_tokens=[[[alone(each) for each in row] for row in layer] for layer in columns.top_ids.tolist()],
        result=result,
    )
