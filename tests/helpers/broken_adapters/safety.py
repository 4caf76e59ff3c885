"""Errors swallowed, traces left behind, and calls that mix: C13, C14, C15."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np
import torch

import vlmprobe.engines.local.engine
from broken_adapters.case import Rewriting, broken
from vlmprobe.engines.local import LocalEngine
from vlmprobe.errors import AdapterError, NonFiniteLogitsError
from vlmprobe.model_registry.internvl import InternVL

# C13


@broken("C13")
class ErrorSwallowed(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        try:
            return super().generate(conversations, options, *more, **given)
        except RuntimeError:
            return super().generate(conversations, options, *more, **given)


@broken("C13")
class ErrorTurnedIntoAnother(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        try:
            return super().generate(conversations, options, *more, **given)
        except RuntimeError as error:
            raise AdapterError("something went wrong") from error


@broken("C13")
class HooksLeftBehind(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        handle = self.adapter.head.register_forward_hook(lambda *_: None)
        results = super().generate(conversations, options, *more, **given)
        handle.remove()
        return results


@broken("C13")
class NotANumberSwallowed(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        try:
            return super().generate(conversations, options, *more, **given)
        except NonFiniteLogitsError:
            return super().generate(conversations, options, *more, **given)


@broken("C13")
class NotANumberWithoutAPlace(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        try:
            return super().generate(conversations, options, *more, **given)
        except NonFiniteLogitsError as error:
            raise NonFiniteLogitsError("some logits are not finite") from error


@broken("C13")
class NotANumberRenamed(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        try:
            return super().generate(conversations, options, *more, **given)
        except NonFiniteLogitsError as error:
            raise AdapterError(str(error)) from error


@broken("C13")
class OtherNumbersAfterAnError(Rewriting):
    failed = False

    def generate(self, conversations, options, *more, **given):
        try:
            return super().generate(conversations, options, *more, **given)
        except RuntimeError:
            self.failed = True
            raise

    def rewrite(self, result, options):
        if not self.failed or result.output.logits is None:
            return result
        return replace(result, output=replace(result.output, logits=result.output.logits + np.float32(0.01)))


# C14


@broken("C14")
class GenerationConfigChanged(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        self.adapter.model.generation_config.temperature = 0.7
        return super().generate(conversations, options, *more, **given)


@broken("C14")
class PaddingSideChanged(InternVL):
    def process(self, conversations):
        self.tokenizer.padding_side = "right" if self.tokenizer.padding_side == "left" else self.tokenizer.padding_side
        return super().process(conversations)


@broken("C14")
class RandomStateSet(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        torch.manual_seed(options.seed or 0)
        return super().generate(conversations, options, *more, **given)


@broken("C14")
class Drifting(Rewriting):
    calls = 0

    def rewrite(self, result, options):
        self.calls += 1
        if result.output.logits is None:
            return result
        logits = result.output.logits + np.float32(1e-6 * (self.calls % 3))
        return replace(result, output=replace(result.output, logits=logits))


@broken("C14")
class ScoresDrifting(LocalEngine):
    calls = 0

    def score(self, conversation, candidates, options):
        self.calls += 1
        scores = super().score(conversation, candidates, options)
        drift = np.float32(2e-6 * (self.calls % 2))
        return replace(scores, tables=[replace(each, logprobs=each.logprobs + drift) for each in scores.tables])


@broken("C14")
@contextmanager
def determinism_switched_on() -> Iterator[None]:
    """Scoring leaves torch in another mode than it found."""
    whole = LocalEngine.score

    def score(self, *args, **given):
        torch.use_deterministic_algorithms(True, warn_only=True)
        return whole(self, *args, **given)

    LocalEngine.score = score
    try:
        yield
    finally:
        LocalEngine.score = whole
        torch.use_deterministic_algorithms(False)


# C15


def meet(pair: threading.Barrier) -> None:
    """Wait until two calls of other threads are here, so that they do mix however slow the machine is."""
    if threading.current_thread() is not threading.main_thread():
        with suppress(threading.BrokenBarrierError):
            pair.wait(timeout=60)


@broken("C15")
class OneCallForAll(LocalEngine):
    pair = threading.Barrier(2)

    def generate(self, conversations, options, *more, **given):
        self.current = conversations
        meet(self.pair)
        return super().generate(self.current, options, *more, **given)


@broken("C15", "qwen2_vl")
@contextmanager
def no_turns() -> Iterator[None]:
    """Calls run on the model at the same time, though it keeps the rope deltas of the last one."""
    from transformers import Qwen2VLModel

    whole, forward = vlmprobe.engines.local.engine.alone, Qwen2VLModel.forward

    @wraps(forward)
    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.005)  # however busy the machine, another thread has its turn between any two steps
        return forward(*args, **kwargs)

    vlmprobe.engines.local.engine.alone = lambda model: torch.no_grad()
    Qwen2VLModel.forward = slow
    try:
        yield
    finally:
        vlmprobe.engines.local.engine.alone = whole
        Qwen2VLModel.forward = forward


@broken("C15")
class ScoresMixed(LocalEngine):
    pair = threading.Barrier(2)

    def score(self, conversation, candidates, options):
        self.asked = conversation
        meet(self.pair)
        return super().score(self.asked, candidates, options)
