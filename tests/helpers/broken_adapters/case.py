"""One broken adapter or engine, the list of them all, and two kinds of engine that the others are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from vlmprobe.adapter import Adapter
from vlmprobe.engines.local import LocalEngine
from vlmprobe.engines.local.capture import Head
from vlmprobe.probe import Probe

__all__ = ["BROKEN", "BareHead", "Broken", "Rewriting", "broken"]


@dataclass(frozen=True)
class Broken:
    """One broken adapter or engine."""

    name: str
    check: str  # the check that must catch it, before any other does
    family: str  # of the tiny checkpoint that it is built around
    adapter: type[Adapter] | None = None  # instead of the family's own
    engine: type[LocalEngine] = LocalEngine
    around: Callable[[], Any] | None = None  # a context in which it is broken

    def probe(self, loaded: Probe) -> Probe:
        """The broken probe of a model that was loaded for it alone."""
        good = loaded.engine.adapter
        adapter = (self.adapter or type(good))(good.model, good.processor)
        return Probe(self.engine(adapter), loaded.meta)


BROKEN: list[Broken] = []


def broken(check: str, family: str = "internvl", name: str = "") -> Callable[[Any], Any]:
    """Enter a class (adapter or engine) or a context manager into the list."""

    def enter(thing: Any) -> Any:
        given: dict[str, Any] = {"around": thing}
        if isinstance(thing, type):
            given = {"adapter": thing} if issubclass(thing, Adapter) else {"engine": thing}
        BROKEN.append(Broken(name or thing.__name__, check, family, **given))
        return thing

    return enter


class Rewriting(LocalEngine):
    """An engine whose results are changed after the fact."""

    def generate(self, conversations, options, *more, **given):
        return [self.rewrite(result, options) for result in super().generate(conversations, options, *more, **given)]

    def rewrite(self, result, options):
        raise NotImplementedError


class BareHead(Head):
    """The LM head alone, without what the model's forward does around it."""

    def __init__(self, adapter):
        super().__init__(adapter.outer, adapter.backbone)
        self.alone = adapter.head

    @torch.no_grad()
    def __call__(self, hidden):
        return self.alone(hidden)
