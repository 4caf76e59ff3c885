"""Next-token log-probabilities after many continuations of one prompt, which is prefilled once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from vlmprobe.adapter import Adapter, Encoding
from vlmprobe.adapter.rope import may_continue
from vlmprobe.engines.local.beginnings import prefill
from vlmprobe.engines.local.capture import Head
from vlmprobe.engines.local.model_state import alone, to_model
from vlmprobe.engines.local.shared_prefix import Path, SharedPrefix, Stem, why_not_shared
from vlmprobe.engines.local.teacher_forcing import forced_run
from vlmprobe.engines.token_tables import require_finite
from vlmprobe.inputs.messages import Conversation

__all__ = ["Continuations"]


class Continuations:
    """The prompt of a conversation, to be continued by ids; nothing of it runs before the first call."""

    def __init__(self, adapter: Adapter, head: Head, conversation: Conversation) -> None:
        adapter.check(conversation)
        self.adapter = adapter
        self.head = head
        self.conversation = conversation
        self._begun: Path = ()  # the ids after the prompt that the prefix holds
        self._prefix: SharedPrefix | None = None
        self._bare: SharedPrefix | None = None  # of the prompt alone
        self._encoding: Encoding | None = None

    @torch.no_grad()
    def logprobs(self, begin: Sequence[int], paths: Sequence[Path], ids: Sequence[int]) -> np.ndarray:
        """Log-probabilities of tokens after the prompt, what the answer begins with, and each of the paths.

        Paths that have the same beginning run it once; so do calls whose ``begin`` extends that of the call before.

        Args:
            begin: ids of the answer before all paths.
            paths: P tuples of ids, empty ones too.
            ids: the W tokens whose log-probabilities are wanted.

        Returns:
            float64 [P, W], nats, of the raw logits.

        Raises:
            NonFiniteLogitsError: if the logits after one of them are not finite.
        """
        wanted = torch.tensor(list(ids), dtype=torch.long)
        found = np.empty((len(paths), len(ids)))
        with alone(self.adapter):
            for rows, whole in self._rows(begin, paths):
                found[rows] = whole[:, wanted.to(whole.device)].cpu().numpy()
        return found

    @torch.no_grad()
    def likeliest(
        self, begin: Sequence[int], paths: Sequence[Path], at_least: Sequence[float]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The tokens of at least some probability each after each path, likeliest first.

        Args:
            begin, paths: as in :meth:`logprobs`.
            at_least: [P] probabilities.

        Returns:
            For each path ids, int64 [n], and log-probabilities, float64 [n], nats.

        Raises:
            NonFiniteLogitsError: as there.
        """
        found = []
        with alone(self.adapter):
            for rows, whole in self._rows(begin, paths):
                for row, least in zip(whole, at_least[rows], strict=True):
                    kept = torch.nonzero(row.exp() >= least)[:, 0]
                    kept = kept[row[kept].argsort(descending=True, stable=True)]
                    found.append((kept.cpu().numpy(), row[kept].cpu().numpy()))
        return found

    def _rows(self, begin: Sequence[int], paths: Sequence[Path]) -> Iterator[tuple[slice, Tensor]]:
        """Log-probabilities of all tokens, float64 [n, V], of slices of the paths."""
        for rows, logits in self.head.chunks(self._states(tuple(map(int, begin)), paths)):
            whole = logits.double()
            total = whole.logsumexp(dim=-1, keepdim=True)
            names = [f"the token after path {place}" for place in range(rows.start, rows.stop)]
            require_finite(total[:, 0].cpu().numpy(), names)
            yield rows, whole - total

    def _states(self, begin: Path, paths: Sequence[Path]) -> Tensor:
        """[P, H]: what the token after each path is drawn from."""
        if self._encoding is None:
            self._encoding = self.adapter.encode([self.conversation])
            inputs = to_model(self.adapter.model, self._encoding.inputs)
            ran, hidden = prefill(self.adapter, inputs)
            if not why_not_shared(self.adapter, ran.cache):
                self._bare = self._prefix = SharedPrefix(self.adapter, inputs, ran.cache, hidden[:, -1:])
        length = 0 if self._bare is None else int(self._bare.inputs["input_ids"].shape[1])
        longest = length + len(begin) + max(map(len, paths))
        if self._bare is None or not may_continue(self.adapter, length, longest):
            return torch.stack([self._whole(self._encoding.inputs, (*begin, *path)) for path in paths])
        if begin[: len(self._begun)] != self._begun:
            self._prefix, self._begun = self._bare, ()
        assert self._prefix is not None
        self._prefix = self._prefix.after(begin[len(self._begun) :])
        self._begun = begin
        found = self._prefix.states([Stem(0, (), list(paths))])[0]
        return torch.stack([found[tuple(path)] for path in paths])

    def _whole(self, inputs: dict[str, Tensor], ids: Path) -> Tensor:
        ran = forced_run(self.adapter, inputs, [*ids, 0])  # the last id is not run, only predicted
        assert ran.prefill is not None
        return ran.prefill[0, -1]
