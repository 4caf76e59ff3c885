"""``LocalParts``: the model of a probe in this process, its processor, tokenizer and layers."""

from __future__ import annotations

from typing import Any

from vlmprobe.engines.base import Engine, HasAdapter, require

__all__ = ["LocalParts"]


class LocalParts:
    """What a probe of a local model gives access to; of a served one, each is a ``CapabilityError``."""

    engine: Engine

    @property
    def model(self) -> Any:
        """The transformers model of a local probe, or the PEFT model around it: for hooks, weights, its own forward."""
        adapter = require(self.engine, HasAdapter).adapter
        return adapter.peft or adapter.model

    @property
    def processor(self) -> Any:
        """The processor of a local probe."""
        return require(self.engine, HasAdapter).adapter.processor

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of a local probe."""
        return require(self.engine, HasAdapter).adapter.tokenizer

    @property
    def layers(self) -> Any:
        """The decoder layers of a local probe, a ``ModuleList``, in order."""
        return require(self.engine, HasAdapter).adapter.layers
