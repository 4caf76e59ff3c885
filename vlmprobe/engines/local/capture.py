"""Hook the backbone and the decoding loop of one ``generate`` call, and reduce logits to columns on the device.

Two sources, both computed by the model itself:

- While decoding, the loop passes each step's raw logits to the first logits processor. They are reduced at once;
  of the full rows only the current one is kept. The token drawn from a row is read from the next step's ids, so
  nothing synchronises with the device.
- For prompt rows (and for beams, whose rows are known only at the end) the hidden states that enter the LM head
  are kept, [S, H], and :class:`Head` runs the model's own ``forward`` from there on, in chunks of rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from vlmprobe.engines.local.row_stats import RowStats, mass_of, processed_logprobs, row_stats

__all__ = ["Head", "Kept", "RowsOf", "States", "Steps", "states_of", "watch_backbone"]

CHUNK_BYTES = 32 * 2**20  # float32 logits of one chunk of rows
STEPS = 32  # decoding steps whose columns are stacked: a small tensor has far more overhead than content
WAITING, WAITING_BYTES = 4, 2**20  # steps of a batch, and of their rows, that are reduced together, likewise


class Mask(Protocol):
    """A processor that rules out tokens."""

    allowed: Tensor  # bool [N, V], of the step that was processed last


class Kept(Protocol):
    """Where full rows are kept: a list, or a file."""

    def append(self, rows: Tensor, /) -> None:
        """Append rows [n, V]."""


class States(Protocol):
    """Hidden states [R, H]: a tensor, or rows of one that are copied when they are read."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...


class RowsOf:
    """Rows [R, H] of states [N, S, H], copied when they are read, since all of them may be as large as the states."""

    def __init__(self, states: Tensor, prompts: np.ndarray, positions: np.ndarray) -> None:
        self.states, self.device = states, states.device
        self._prompts, self._positions = (torch.as_tensor(each, device=self.device) for each in (prompts, positions))

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, rows: slice) -> Tensor:
        return self.states[self._prompts[rows], self._positions[rows]]


class Head:
    """From hidden states [R, H] to logits [R, V] by the model's own outer module, as it is at the time of the call.

    Calling the LM head alone would miss what many models do around it (scaling of the hidden state, scaling and
    soft-capping of the logits), and a copy of the module what was done to it since (another head, hooks, a patched
    ``forward``). So the outer module itself is called, with its backbone replaced for this thread by one that returns
    the given rows. The caller holds the model's lock (:func:`~vlmprobe.engines.local.model_state.alone`).
    """

    def __init__(self, outer: nn.Module, backbone: nn.Module) -> None:
        self.outer = outer
        path = next(name for name, module in outer.named_modules() if module is backbone)
        holder, _, self._name = path.rpartition(".")
        self._holder = outer.get_submodule(holder)  # usually the outer module; OPT's calls a grandchild
        self._given = _Given(backbone)

    @torch.no_grad()
    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [R, V] in the model's dtype for hidden states [R, H]."""
        backbone = getattr(self._holder, self._name)
        self._given.rows.hidden = hidden.unsqueeze(0)
        setattr(self._holder, self._name, self._given)
        try:
            ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            return self.outer(input_ids=ids, use_cache=False, return_dict=True).logits[0]
        finally:
            setattr(self._holder, self._name, backbone)
            self._given.rows.hidden = None

    def chunks(self, hidden: States) -> Iterator[tuple[slice, Tensor]]:
        """The same in chunks of rows whose float32 logits stay below ``CHUNK_BYTES``."""
        step, start = 1, 0  # the vocabulary size is read from the first row
        while start < len(hidden):
            rows = slice(start, min(start + step, len(hidden)))
            logits = self(hidden[rows])
            start, step = rows.stop, max(1, CHUNK_BYTES // (4 * logits.shape[-1]))
            yield rows, logits
            del logits  # else the next chunk is computed beside it

    def stats(
        self, hidden: States, ids: Tensor, top: int, *, of: Tensor | None = None, keep: Kept | None = None
    ) -> RowStats:
        """Statistics of the tokens ``ids`` [M] under rows of ``hidden`` [R, H]; float32 rows [R, V] go to ``keep``.

        ``of`` [M], in ascending order, is the row that each token is drawn from; if None, token i is drawn from row i.
        """
        count = 0
        found: RowStats | None = None  # allocated once the size of the vocabulary is known
        for rows, logits in self.chunks(hidden):
            mine = rows if of is None else torch.arange(len(of))[(of >= rows.start) & (of < rows.stop)]
            own = ids[mine].to(logits.device)
            part = row_stats(logits, own, top, None if of is None else of[mine] - rows.start)
            if found is None:
                found = RowStats.empty(len(hidden) if of is None else len(of), part.top_ids.shape[1], logits.device)
            found.put(count, part)
            count += len(own)
            if keep is not None:
                keep.append(logits.float().cpu())
            del logits
        assert found is not None  # there is at least one row
        return found


class _Given(nn.Module):
    """Stands in for a backbone: returns the hidden states that this thread gave it; else it is the backbone."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.__dict__["backbone"] = backbone  # not as a child: its weights keep their names
        self.rows = threading.local()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden = getattr(self.rows, "hidden", None)
        return self.backbone(*args, **kwargs) if hidden is None else _Output(hidden)

    def __getattr__(self, name: str) -> Any:  # an outer forward may ask for the vocabulary, a dtype, a config
        return getattr(self.__dict__["backbone"], name)


class _Output(dict[str, Tensor]):
    """The part of a model output that an outer ``forward`` reads: hidden states; everything else is None."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__(last_hidden_state=hidden)

    def __getitem__(self, place: Any) -> Any:
        return tuple(self.values())[place] if isinstance(place, (int, slice)) else self.get(place)

    def __getattr__(self, name: str) -> Tensor | None:
        return self.get(name)


@contextmanager
def watch_backbone(backbone: nn.Module, seen: Callable[[Tensor], None]) -> Iterator[None]:
    """Call ``seen`` with each ``last_hidden_state`` that this thread's runs of the backbone return."""
    owner = threading.get_ident()

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        if threading.get_ident() == owner:
            seen(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    handle = backbone.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def states_of(outer: nn.Module, backbone: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
    """Hidden states [N, S, H] that the backbone passes to the head; the head itself does not run."""
    found: list[Tensor] = []

    def take(hidden: Tensor) -> None:
        found.append(hidden)
        raise _Enough

    with watch_backbone(backbone, take), suppress(_Enough):
        outer(**arguments)
    return found[0]


class _Enough(Exception):
    """Leaves the outer ``forward`` once its backbone has returned."""


class Steps:
    """Records each step of a decoding loop without beams, for a batch of N."""

    def __init__(self, top: int, *, keep: Kept | None, mask: Mask | None = None) -> None:
        self.top = top
        self.mask = mask  # the processor that rules out what a constraint does not allow
        self.count = 0  # T, the steps whose token is known
        self.logits = keep  # receives [N, V] of each step, on the CPU
        self._steps: list[dict[str, Tensor]] = []  # columns [n, N, ...] of each few of the last steps
        self._blocks: list[dict[str, Tensor]] = []  # columns [STEPS or a few more, N, ...] of earlier steps
        # Raw rows, scores, probabilities of what was allowed, and tokens to be reduced.
        self._waiting: list[tuple[Tensor, Tensor | None, Tensor | None, Tensor]] = []
        self._raw: Tensor | None = None  # [N, V] of the step whose token is not known yet
        self._scores: Tensor | None = None
        self._mass: Tensor | None = None  # [N], the probability of what was allowed
        self._looks = 0  # steps of beam search
        self.processing = False  # whether a processor is running, which may run the model itself

    def around(self, processors: LogitsProcessorList) -> LogitsProcessorList:
        """The loop's processors with this recorder before the first and after the last."""
        if not processors:
            return LogitsProcessorList([_Call(self._before)])
        return LogitsProcessorList([_Call(self._before_processing), *processors, _Call(self._after)])

    def watching(self, processors: LogitsProcessorList) -> LogitsProcessorList:
        """The processors of beam search, preceded by a recorder of their rows for :meth:`first_bad`."""
        return LogitsProcessorList([_Call(self._look), *processors, _Call(self._done)])

    def finish(self, tokens: Tensor) -> None:
        """Record the token [N] that was drawn at the last step."""
        if self._raw is None:
            return
        self._waiting.append((self._raw, self._scores, self._mass, tokens))
        if self.logits is not None:
            self.logits.append(self._raw.cpu())
        size = self._raw.nelement() * self._raw.element_size()
        self._raw = self._scores = self._mass = None
        self.count += 1
        most = WAITING if len(tokens) > 1 else 1
        if len(self._waiting) == most or (len(self._waiting) + 1) * size > WAITING_BYTES:
            self._reduce()

    def _reduce(self) -> None:
        """Reduce the rows that wait to columns."""
        if not self._waiting:
            return
        raw, scores, mass, tokens = (_together(each) for each in zip(*self._waiting, strict=True))
        shape = len(self._waiting), -1
        self._waiting = []
        columns = vars(row_stats(raw, tokens, self.top)).copy()
        if scores is not None:
            columns["scores"] = processed_logprobs(scores, tokens)
        if mass is not None:
            columns["mass_allowed"] = mass
        self._steps.append({name: values.unflatten(0, shape) for name, values in columns.items()})
        if sum(len(each["logprobs"]) for each in self._steps) >= STEPS:
            self._blocks.append(_chained(self._steps))
            self._steps = []

    @property
    def last(self) -> dict[str, Tensor]:
        """Columns [N, ...] of the last step: those of :class:`RowStats`, and ``scores`` where logits are processed."""
        self._reduce()
        return {name: values[-1] for name, values in (self._steps or self._blocks)[-1].items()}

    def columns(self) -> dict[str, Tensor]:
        """The columns [T, N, ...] of all steps; the recorder is emptied."""
        self._reduce()
        blocks = [*self._blocks, *self._steps]
        self._blocks, self._steps = [], []
        return _chained(blocks) if blocks else {}

    def first_bad(self) -> int | None:
        """The first step whose logits contain NaN or infinity, or None. Synchronises with the device."""
        self._reduce()
        if self._looks:  # log-softmax of a row with NaN or infinity is NaN throughout
            return self._looks - 1 if self._raw is not None and bool(self._raw.isnan().any()) else None
        rows = [row for block in (*self._blocks, *self._steps) for row in block["logsumexp"]]
        if self._raw is not None:
            rows.append(torch.logsumexp(self._raw, dim=-1))
        return next((step for step, row in enumerate(rows) if not bool(row.isfinite().all())), None)

    def _before(self, ids: Tensor, raw: Tensor) -> Tensor:
        self.finish(ids[:, -1])
        self._raw = raw
        return raw

    def _look(self, ids: Tensor, raw: Tensor) -> Tensor:
        self._looks += 1
        self._raw = raw
        self.processing = True
        return raw

    def _done(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.processing = False
        return scores

    def _before_processing(self, ids: Tensor, raw: Tensor) -> Tensor:
        self._before(ids, raw.clone())  # some processors write into the scores they are given
        self.processing = True
        return raw

    def _after(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.processing = False
        self._scores = scores
        if self.mask is not None and self._raw is not None:
            self._mass = mass_of(self._raw, self.mask.allowed)
        return scores


def _together(rows: Sequence[Any]) -> Any:
    """Rows [N, ...] of a few steps as [n x N, ...]; those of one step as they are; None if there are none."""
    return rows[0] if len(rows) == 1 or rows[0] is None else torch.cat(list(rows))


def _chained(blocks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Columns of consecutive blocks of steps; the blocks are emptied, a column at a time."""
    return {name: torch.cat([block.pop(name) for block in blocks]) for name in list(blocks[0])}


class _Call(LogitsProcessor):
    def __init__(self, call: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.call = call

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.call(input_ids, scores)
