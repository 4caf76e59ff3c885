"""What the model was, instead of what it is: C16 to C19."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

from broken_adapters.case import broken
from vlmprobe.engines.local import LocalEngine, engine, model_state, run_generate
from vlmprobe.engines.local.capture import Head

# C16


@broken("C16")
class HeadOfTheFirstCall(LocalEngine):
    """A copy of the outer module, made once, whose children are those of that time."""

    def __init__(self, adapter):
        super().__init__(adapter)
        outer = copy.copy(adapter.outer)
        outer.__dict__["_modules"] = dict(adapter.outer._modules)
        self.first = Head(outer, adapter.backbone)

    @property
    def head(self):
        return self.first


# C17


@broken("C17", "minicpmv4_7")
@contextmanager
def rope_deltas_of_the_models_own_run() -> Iterator[None]:
    """A call leaves none behind, but begins with those that it finds."""
    whole = model_state.alone

    @contextmanager
    def begins_as_it_is(adapter) -> Iterator[None]:
        with whole(adapter):
            try:
                yield
            finally:
                adapter.model.model.rope_deltas = None

    with mock.patch.object(model_state, "STATE", ()), mock.patch.object(engine, "alone", begins_as_it_is):
        yield


# C18


@broken("C18")
class ScoresOfAnotherCache(LocalEngine):
    """As if a candidate's first position were dropped from a cache of fixed length."""

    def score(self, conversation, candidates, options):
        scores = super().score(conversation, candidates, options)
        if self.adapter.model.generation_config.cache_implementation != "static":
            return scores
        return replace(scores, tables=[replace(each, logprobs=each.logprobs - 0.5) for each in scores.tables])


# C19


@broken("C19", "janus")
@contextmanager
def processors_dropped() -> Iterator[None]:
    with mock.patch.object(run_generate, "_with_ours", lambda processors, _: processors):
        yield


@broken("C19")
class ScoresWithoutTheProcessor(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        results = super().generate(conversations, options, *more, **given)
        if not options.processors:
            return results
        return [replace(each, output=replace(each.output, scores=each.output.logprobs)) for each in results]
