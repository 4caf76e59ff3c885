"""Candidates that are other tokens, or change each other: C6, C8."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch

import vlmprobe.engines.local.shared_prefix
from broken_adapters.case import broken
from vlmprobe.adapter import Adapter, Continuation
from vlmprobe.engines.local import LocalEngine
from vlmprobe.model_registry.internvl import InternVL
from vlmprobe.model_registry.mllama import Mllama
from vlmprobe.model_registry.native import Native
from vlmprobe.results.result import Scores

# C6


@broken("C6", "llava")
class CandidateTokenisedAlone(Native):
    def continuation(self, prompt, text):
        return Continuation(len(prompt.ids), tuple(self.tokenizer(text)["input_ids"]))


@broken("C6")
class SpaceAdded(InternVL):
    def continuation(self, prompt, text):
        return super().continuation(prompt, " " + text)


@broken("C6")
class BoundaryUntold(LocalEngine):
    def score(self, conversation, candidates, options):
        scores = super().score(conversation, candidates, options)
        return replace(scores, boundaries=[None] * len(candidates))


# C8


@broken("C8", "mllama", "candidates that do not see the image")
class CandidatesWithoutImage(Mllama):
    def continue_from(self, inputs, ids):
        return Adapter.continue_from(self, inputs, ids)


@broken("C8", "llava")
class CandidatesInTheWrongPlace(Native):
    def continue_from(self, inputs, ids):
        return {"input_ids": ids, "position_ids": torch.arange(ids.shape[1])[None].expand(ids.shape)}


@broken("C8", "llava")
@contextmanager
def cache_changed_by_candidates() -> Iterator[None]:
    """Every candidate goes on from the cache as the last one left it."""
    whole = vlmprobe.engines.local.shared_prefix.copy
    vlmprobe.engines.local.shared_prefix.copy = SimpleNamespace(deepcopy=lambda cache: cache)
    try:
        yield
    finally:
        vlmprobe.engines.local.shared_prefix.copy = whole


@broken("C8")
class OrderMatters(LocalEngine):
    def score(self, conversation, candidates, options):
        scores = super().score(conversation, candidates, options)
        last = scores.tables[-1]
        changed = replace(last, logprobs=last.logprobs - np.float32(0.01 * (candidates[-1] == "yes")))
        return replace(scores, tables=[*scores.tables[:-1], changed])


@broken("C8")
@contextmanager
def probabilities_of_the_means() -> Iterator[None]:
    """A softmax over log-probabilities per token, which favours long candidates."""
    whole = Scores.probabilities
    weights = property(lambda scores: np.exp(scores.means) / np.exp(scores.means).sum())
    Scores.probabilities = weights
    try:
        yield
    finally:
        Scores.probabilities = whole
