"""Decodes every layer through the model's own final norm and head.

Rows of known tokens are reduced while the layer runs, so a long prompt holds one layer's states and one chunk of logits
at a time. While an answer is generated, its states [L, T, H] are kept until its tokens are known.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmprobe.engines.local.answer_tables import prompt_table
from vlmprobe.engines.local.context_length import warn_if_beyond
from vlmprobe.engines.local.model_state import alone
from vlmprobe.engines.local.peft_state import puts_virtual_tokens
from vlmprobe.engines.local.row_stats import RowStats, numpy_columns
from vlmprobe.engines.local.teacher_forcing import forced_run, score_ids
from vlmprobe.engines.token_tables import prompt_rows
from vlmprobe.errors import CapabilityError

if TYPE_CHECKING:
    from vlmprobe.adapter import Adapter
    from vlmprobe.engines.base import Options
    from vlmprobe.engines.local.capture import Head
    from vlmprobe.inputs.messages import Conversation
    from vlmprobe.results.detokenize import Detokenizer
    from vlmprobe.results.result import Result
    from vlmprobe.results.table import TokenTable

__all__ = ["LayerColumns", "layer_columns"]

CLOSE = {torch.float32: 1e-4, torch.float64: 1e-4}  # relative tolerance, last layer against the model's logits
ROUNDED = 3e-2  # the same in half precision
NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class LayerColumns:
    """Numbers of R tokens at L decoder layers. A layer that did not run has NaN, rank -1 and ids -1."""

    layers: np.ndarray  # int64 [L], from 0
    logprobs: np.ndarray  # float32 [L, R], nats
    entropy: np.ndarray  # float32 [L, R], nats
    ranks: np.ndarray  # int64 [L, R]
    logsumexp: np.ndarray  # float32 [L, R]
    top_ids: np.ndarray  # int64 [L, R, K]
    top_logprobs: np.ndarray  # float32 [L, R, K], nats

    def cut(self, *, layers: Sequence[int] | None = None, rows: np.ndarray | None = None) -> LayerColumns:
        """Select layers by number, and rows by index."""
        at = slice(None) if layers is None else np.flatnonzero(np.isin(self.layers, layers))
        columns = {field.name: getattr(self, field.name)[at] for field in fields(self)}
        if rows is not None:
            columns |= {name: values[:, rows] for name, values in columns.items() if name != "layers"}
        return LayerColumns(**columns)


def layer_columns(
    adapter: Adapter,
    head: Head,
    detokenizer: Detokenizer,
    generate: Callable[[], Result],
    conversation: Conversation,
    options: Options,
    *,
    layers: Sequence[int] | None = None,
    ids: Sequence[int] | None = None,
    prompt: bool = False,
) -> tuple[Result | None, TokenTable, LayerColumns]:
    """Decode every layer at the tokens of an answer, or of a prompt, in one run of the model.

    Args:
        adapter, head, detokenizer: of the engine.
        generate: answers the conversation; called if no answer is given.
        conversation: the prompt.
        options: for generating the answer, and what its table keeps.
        layers: numbers of decoder layers, negative ones counted from the last; all if None.
        ids: the given answer; generated if None.
        prompt: decode at the prompt's own tokens instead of an answer's.

    Returns:
        The result if the answer was generated; the table of T tokens; the columns of its R scored rows.

    Raises:
        CapabilityError: for a layer that does not exist; for beams; if the last layer does not reproduce the model's
            own logits.
    """
    if puts_virtual_tokens(adapter):
        raise CapabilityError("Layers cannot be read while PEFT puts virtual tokens before the prompt.")
    wanted = _chosen(adapter, layers)
    watch = LayerWatch(adapter, head, sorted({*wanted, len(adapter.layers) - 1}), options.alternatives)
    result: Result | None = None
    with alone(adapter):
        if ids is None and not prompt:
            if options.generation.get("num_beams") not in (None, 1):
                raise CapabilityError("Beams are reordered between steps: read layers with num_beams=1.")
            with watch.on():
                result = generate()
            table = result.output
            columns = watch.followed(table.ids)
        else:
            encoding = adapter.encode([conversation])
            warn_if_beyond(adapter.model.config, encoding.prompts)
            length = len(encoding.prompts[0].ids)
            if prompt:
                asked = encoding.prompts[0]
                rows = prompt_rows(asked.ids, asked.spans, detokenizer.special)
                places, known = rows.positions[rows.scored] - 1, rows.ids[rows.scored]
            else:
                known = np.array(ids, dtype=np.int64)
                places = length - 1 + np.arange(len(known))
            with watch.on(places, known):
                if prompt:
                    ran = forced_run(adapter, encoding.inputs, [0])
                    assert ran.prefill is not None
                    table = prompt_table(head, detokenizer, encoding.prompts[0], ran.prefill[0], options)
                else:
                    table = score_ids(adapter, head, detokenizer, encoding, known.tolist(), options)[0]
            columns = watch.reduced()
    _require_last(adapter, columns, table, watch.last)
    return result, table, columns.cut(layers=wanted)


class LayerWatch:
    """Hooks decoder layers during one run over one sequence."""

    def __init__(self, adapter: Adapter, head: Head, layers: list[int], top: int) -> None:
        self.adapter, self.head = adapter, head
        self.layers = layers
        self.top = top
        self.last = -1  # the layer that ran last: cross-attention layers may be skipped
        self._seen = dict.fromkeys(layers, 0)  # positions so far
        self._stats: dict[int, list[RowStats]] = {layer: [] for layer in layers}
        self._states: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    @contextmanager
    def on(self, places: np.ndarray | None = None, ids: np.ndarray = NOTHING) -> Iterator[None]:
        """Watch this thread's runs of the layers.

        Args:
            places: int64 [R], positions to read, ascending; if None, the last of every run, as in a decoding loop.
            ids: int64 [R], the tokens that are drawn from those positions.
        """
        owner = threading.get_ident()

        def watching(layer: int) -> Any:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                if threading.get_ident() == owner:
                    self.last = layer
                    if layer in self.layers:
                        self._look(layer, output[0] if isinstance(output, tuple) else output, places, ids)

            return hook

        handles = [layer.register_forward_hook(watching(place)) for place, layer in enumerate(self.adapter.layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def reduced(self) -> LayerColumns:
        """The columns of the tokens that were known."""
        return _stacked(self.layers, [self._stats[layer] for layer in self.layers])

    def followed(self, answer: np.ndarray) -> LayerColumns:
        """The columns of the tokens ``answer`` [T] that were generated meanwhile."""
        parts = []
        for layer in self.layers:
            # A prompt that was prefilled in chunks left more than one row before those of the answer.
            kept = self._states[layer][-len(answer) :]
            parts.append([self._reduce(torch.stack(kept), answer)] if kept and len(answer) else [])
        return _stacked(self.layers, parts)

    def _look(self, layer: int, states: Any, places: np.ndarray | None, ids: np.ndarray) -> None:
        if not isinstance(states, Tensor) or states.ndim != 3 or len(states) != 1:
            raise CapabilityError(
                f"Layers of {type(self.adapter.outer).__name__} return no hidden states [1, S, H], so the final norm "
                "and head cannot read them."
            )
        if places is None:
            self._states[layer].append(states[0, -1].clone())
            return
        start = self._seen[layer]
        stop = self._seen[layer] = start + states.shape[1]
        here = (places >= start) & (places < stop)
        if here.any():
            rows = torch.as_tensor(places[here] - start, device=states.device)
            self._stats[layer].append(self._reduce(states[0, rows], ids[here]))

    def _reduce(self, states: Tensor, ids: np.ndarray) -> RowStats:
        weight = next(self.adapter.final_norm.parameters(), states)
        normed = self.adapter.final_norm(states.unsqueeze(0).to(weight.device))[0]
        return self.head.stats(normed, torch.tensor(ids, device=normed.device), self.top)


def _chosen(adapter: Adapter, wanted: Sequence[int] | None) -> list[int]:
    try:
        count = len(adapter.layers)
        _ = adapter.final_norm
    except AttributeError as error:
        raise CapabilityError(
            f"The adapter {adapter.name} does not locate the decoder layers of {type(adapter.outer).__name__} "
            f"({error}): override layers and final_norm in it."
        ) from error
    if wanted is None:
        return list(range(count))
    for each in wanted:
        if isinstance(each, bool) or not isinstance(each, (int, np.integer)) or not -count <= each < count:
            raise CapabilityError(f"There is no decoder layer {each!r}: the model has {count}, 0 to {count - 1}.")
    if not len(wanted):
        raise CapabilityError("layers is empty: name at least one decoder layer, or leave it out for all.")
    return sorted({int(each) % count for each in wanted})


def _stacked(layers: list[int], parts: list[list[RowStats]]) -> LayerColumns:
    joined = [numpy_columns(RowStats.join(part)) if part else None for part in parts]
    like = next((each for each in joined if each is not None), None)
    if like is None:
        raise CapabilityError("None of the decoder layers ran on these tokens.")
    columns = {}
    for name, values in like.items():
        missing = np.full(values.shape, np.nan if values.dtype.kind == "f" else -1, values.dtype)
        columns[name] = np.stack([missing if each is None else each[name] for each in joined])
    return LayerColumns(np.array(layers, dtype=np.int64), **columns)


def _require_last(adapter: Adapter, columns: LayerColumns, table: TokenTable, last: int) -> None:
    """C12: the layer that ran last reproduces the model's own logits."""
    if last not in columns.layers:
        raise CapabilityError(
            f"The last decoder layer does not run on this prompt, layer {last} is the last that does: add it to layers."
        )
    at = int(np.flatnonzero(columns.layers == last)[0])
    scored = ~np.isnan(table.logsumexp)  # a token beyond the head has no logprob, but its row has the rest
    for name in ("logsumexp", "logprobs", "entropy"):
        came, own = getattr(columns, name)[at], getattr(table, name)[scored]
        close = CLOSE.get(adapter.model.dtype, ROUNDED) * max(1.0, float(np.nanmax(np.abs(own), initial=0)))
        if came.shape != own.shape or not np.allclose(came, own, rtol=0, atol=close, equal_nan=True):
            raise CapabilityError(
                f"The last decoder layer of {type(adapter.outer).__name__}, through final norm and head, does not "
                f"reproduce the model's own logits ({name} differs): the adapter must put into final_norm whatever "
                "else is applied between them (vlmprobe check, C12)."
            )
