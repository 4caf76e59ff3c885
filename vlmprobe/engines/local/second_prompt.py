"""Next-token logits of a second prompt after the same answer, KV-cached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vlmprobe.adapter import Adapter
from vlmprobe.adapter.kv_cache import cache_name
from vlmprobe.adapter.rope import may_continue
from vlmprobe.engines.local.capture import Head, watch_backbone
from vlmprobe.engines.local.model_state import STATE, alone, to_model
from vlmprobe.engines.local.peft_state import puts_virtual_tokens
from vlmprobe.engines.local.teacher_forcing import begun, forced_run
from vlmprobe.inputs.messages import Conversation

__all__ = ["SecondPrompt"]


class SecondPrompt:
    """The prompt of a conversation, prefilled once, and fed the tokens of an answer one by one.

    It may be queried while the same model generates: the model's state of the other prompt is saved and restored.
    """

    def __init__(self, adapter: Adapter, conversation: Conversation) -> None:
        self.adapter = adapter
        self.conversation = conversation
        self._encoded: dict[str, Any] | None = None
        self._fed: tuple[int, ...] = ()
        self._cache: Any = None
        self._inputs: dict[str, Any] | None = None  # of the prompt and what was fed
        self._last: Tensor | None = None  # [H], from which the next token would be drawn
        self._state: list[Any] = []  # what the model keeps of this prompt

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> Tensor:
        """The raw logits [V] for the token after the prompt and ``ids``.

        Ids that extend those of the last call cost one step; anything else, or a model whose cache cannot be
        continued, reruns the whole sequence.
        """
        ids = tuple(map(int, ids))
        with alone(self.adapter), self._own_state():
            goes_on = self._cache is not None and ids[: len(self._fed)] == self._fed
            if not goes_on or not self._may_feed(len(ids) - len(self._fed)):
                self._begin(ids)
            elif new := ids[len(self._fed) :]:
                self._feed(new)
            self._fed = ids
            assert self._last is not None
            return Head(self.adapter.outer, self.adapter.backbone)(self._last.unsqueeze(0))[0]

    def _begin(self, ids: tuple[int, ...]) -> None:
        if self._encoded is None:
            self._encoded = self.adapter.encode([self.conversation]).inputs
        ran = forced_run(self.adapter, self._encoded, [*ids, 0])  # the last id is not run, only predicted
        assert ran.prefill is not None
        self._last = ran.prefill[0, -1]
        self._inputs = to_model(self.adapter.model, begun(self.adapter, self._encoded, ids))
        goes_on = self.adapter.capabilities.prefix_reuse and not puts_virtual_tokens(self.adapter)
        self._cache = ran.cache if goes_on else None

    def _may_feed(self, count: int) -> bool:
        assert self._inputs is not None
        length = self._inputs["input_ids"].shape[1]
        return may_continue(self.adapter, length, length + count)

    def _feed(self, new: tuple[int, ...]) -> None:
        assert self._inputs is not None
        tokens = torch.tensor([new], device=self._inputs["input_ids"].device)
        states: list[Tensor] = []
        with watch_backbone(self.adapter.backbone, states.append):
            self.adapter.outer(
                **self.adapter.continue_from(self._inputs, tokens),
                **{cache_name(self.adapter.outer.forward): self._cache},
                use_cache=True,
                return_dict=True,
            )
        self._inputs = self.adapter.extend(self._inputs, tokens)
        self._last = states[-1][0, -1]

    @contextmanager
    def _own_state(self) -> Iterator[None]:
        """Swap in the model's state of this prompt; :func:`alone` restores that of the prompt being generated from."""
        held = [(module, name) for module in self.adapter.model.modules() for name in STATE if name in vars(module)]
        for (module, name), value in zip(held, self._state, strict=False):
            setattr(module, name, value)
        yield
        self._state = [getattr(module, name) for module, name in held]
