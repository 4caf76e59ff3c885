"""Adapters and engines that each break one promise: what the conformance checks must catch, and by which check."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

import vlmprobe.engines.candidates
import vlmprobe.engines.local
from model_registry.internvl import InternVL
from model_registry.mllama import Mllama
from model_registry.native import Native
from vlmprobe.adapter import Adapter, Continuation, ImageSpan
from vlmprobe.capture import Head
from vlmprobe.engines.local import LocalEngine
from vlmprobe.errors import AdapterError, NonFiniteLogitsError
from vlmprobe.messages import Conversation, ImagePart, Message
from vlmprobe.probe import Probe


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


# C1


@broken("C1")
class RowsOffByOne(Rewriting):
    def rewrite(self, result, options):
        if result.prompt is None or result.prompt.logits is None:
            return result
        return replace(result, prompt=replace(result.prompt, logits=np.roll(result.prompt.logits, -1, axis=0)))


@broken("C1", "gemma4", "the head without soft-capping")
@broken("C1", "cohere_compass", "the head without scaling")
class ScalingLost(LocalEngine):
    def __init__(self, adapter):
        super().__init__(adapter)
        self.head = BareHead(adapter)


@broken("C1", "molmo2")
class TypeIdsDropped(Native):
    def process(self, conversations):
        return {key: value for key, value in super().process(conversations).items() if key != "mm_token_type_ids"}


# C2


@broken("C2")
class RowsOfThePreviousStep(Rewriting):
    def rewrite(self, result, options):
        if result.output.logits is None:
            return result
        logits = result.output.logits
        return replace(result, output=replace(result.output, logits=np.concatenate([logits[:1], logits[:-1]])))


@broken("C2", "paligemma", "extend() that makes the answer a part of the prompt")
class AnswerTakenForPrompt(Native):
    pass


@broken("C2", "mllama", "extend() without the image mask of the new positions")
class ImageMaskNotExtended(Native):
    pass


# C3


@broken("C3")
class Bits(Rewriting):
    def rewrite(self, result, options):
        tables = {
            side: replace(table, logprobs=(table.logprobs / np.log(2)).astype(np.float32))
            for side in ("prompt", "output")
            if (table := getattr(result, side)) is not None
        }
        return replace(result, **tables)


@broken("C3")
class ProbabilitiesOfTheAlternatives(Rewriting):
    def rewrite(self, result, options):
        output = result.output
        known = np.log(np.exp(output.top_logprobs).sum(axis=-1))
        return replace(
            result,
            output=replace(
                output,
                logprobs=output.logprobs - known,
                logsumexp=output.logsumexp + known,
                top_logprobs=output.top_logprobs - known[:, None],
            ),
        )


# C4


def _repainted(conversation: Conversation, paint: Callable[[int, Image.Image], Image.Image]) -> Conversation:
    place = iter(range(100))
    return Conversation(
        tuple(
            Message(
                message.role,
                tuple(
                    ImagePart(paint(next(place), part.image), part.options) if isinstance(part, ImagePart) else part
                    for part in message.parts
                ),
            )
            for message in conversation.messages
        )
    )


@broken("C4")
class ImageIgnored(InternVL):
    def process(self, conversations):
        return super().process(
            [_repainted(each, lambda _, image: Image.new("RGB", image.size)) for each in conversations]
        )


@broken("C4")
class FirstImageKept(InternVL):
    kept: Any = None

    def process(self, conversations):
        inputs = super().process(conversations)
        if "pixel_values" in inputs:
            if self.kept is None or self.kept.shape != inputs["pixel_values"].shape:
                self.kept = inputs["pixel_values"]
            inputs["pixel_values"] = self.kept
        return inputs


@broken("C4")
class SecondImageIgnored(InternVL):
    def process(self, conversations):
        def paint(place, image):
            return Image.new("RGB", image.size) if place else image

        return super().process([_repainted(each, paint) for each in conversations])


# C5


@broken("C5", "llava")
class PlaceholdersScored(Native):
    image_ids = frozenset()


@broken("C5", "llava")
class LastPositionForgotten(Native):
    def spans(self, ids, conversation):
        *rest, last = super().spans(ids, conversation) or (None,)
        return (*rest, replace(last, stop=last.stop - 1)) if last else ()


@broken("C5", "llava")
class ImagesConfused(Native):
    def spans(self, ids, conversation):
        spans = super().spans(ids, conversation)
        if len(conversation.images) < 2:
            return spans
        (first, second) = spans
        return (
            replace(first, stop=first.stop - 2),
            ImageSpan(1, 0, first.stop - 2, first.stop),
            replace(second, tile=1),
        )


@broken("C5", "ovis2", "indicators that are not told as a part of the image")
class IndicatorsScored(Native):
    pass


@broken("C5")
class PlaceholderInTheMean(Rewriting):
    def rewrite(self, result, options):
        if result.prompt is None:
            return result
        logprobs = np.where(np.array([kind == "image" for kind in result.prompt.kinds]), -9.0, result.prompt.logprobs)
        return replace(result, prompt=replace(result.prompt, logprobs=logprobs.astype(np.float32)))


@broken("C5")
class ZeroForTheFirstToken(Rewriting):
    def rewrite(self, result, options):
        if result.prompt is None:
            return result
        logprobs = result.prompt.logprobs.copy()
        logprobs[0] = 0.0
        return replace(result, prompt=replace(result.prompt, logprobs=logprobs))


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


# C7


@broken("C7", "llava")
class PaddedOnTheRight(Native):
    def process(self, conversations):
        inputs = super().process(conversations)
        for row, mask in enumerate(inputs["attention_mask"]):
            shift = int((mask == 0).sum())
            for key in ("input_ids", "attention_mask"):
                inputs[key][row] = inputs[key][row].roll(-shift)
        return inputs


@broken("C7", "llava")
class PaddingSeen(Native):
    def encode(self, conversations):
        encoding = super().encode(conversations)
        mask = torch.ones_like(encoding.inputs["attention_mask"])
        return replace(encoding, inputs={**encoding.inputs, "attention_mask": mask})


@broken("C7", "hunyuan_vl", "batches where the model mixes them")
class BatchesMixed(Native):
    pass


@broken("C7")
class OrderLost(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        return super().generate(conversations, options, *more, **given)[::-1]


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
    whole = vlmprobe.engines.candidates.copy
    vlmprobe.engines.candidates.copy = SimpleNamespace(deepcopy=lambda cache: cache)
    try:
        yield
    finally:
        vlmprobe.engines.candidates.copy = whole


@broken("C8")
class OrderMatters(LocalEngine):
    def score(self, conversation, candidates, options):
        scores = super().score(conversation, candidates, options)
        last = scores.tables[-1]
        changed = replace(last, logprobs=last.logprobs - np.float32(0.01 * (candidates[-1] == "yes")))
        return replace(scores, tables=[*scores.tables[:-1], changed])


# C9


@broken("C9")
class AfterTemperature(Rewriting):
    def rewrite(self, result, options):
        temperature = options.generation.get("temperature")
        if temperature is None or result.output.logits is None:
            return result
        return replace(result, output=replace(result.output, logits=result.output.logits / np.float32(temperature)))


@broken("C9")
class AfterPenalty(Rewriting):
    def rewrite(self, result, options):
        penalty = options.generation.get("repetition_penalty")
        if penalty is None:
            return result
        return replace(result, output=replace(result.output, logprobs=result.output.logprobs * np.float32(penalty)))


# C10


@broken("C10")
class LikeliestForSampled(Rewriting):
    def rewrite(self, result, options):
        if not options.generation.get("do_sample"):
            return result
        return replace(result, output=replace(result.output, ids=result.output.top_ids[:, 0].copy()))


@broken("C10")
class OtherBeamsNumbers(Rewriting):
    def rewrite(self, result, options):
        if (options.generation.get("num_beams") or 1) == 1:
            return result
        return replace(result, output=replace(result.output, logprobs=result.output.logprobs[::-1].copy()))


# C11


@broken("C11", "gemma4", "selected rows without soft-capping")
@broken("C11", "cohere_compass", "selected rows without scaling")
class BareHeadForSelectedRows(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        whole = self.head
        if "logits" not in options.keep:
            self.head = BareHead(self.adapter)
        try:
            return super().generate(conversations, options, *more, **given)
        finally:
            self.head = whole


@broken("C11")
class HalfPrecision(Rewriting):
    def rewrite(self, result, options):
        if "logits" in options.keep:
            return result
        entropy = torch.from_numpy(result.output.entropy.copy()).bfloat16().float().numpy()
        return replace(result, output=replace(result.output, entropy=entropy))


@broken("C11")
class RanksFromOne(Rewriting):
    def rewrite(self, result, options):
        if "logits" in options.keep or result.prompt is None:
            return result
        ranks = np.where(result.prompt.ranks >= 0, result.prompt.ranks + 1, -1)
        return replace(result, prompt=replace(result.prompt, ranks=ranks))


# C12


@broken("C12")
class NoNorm(InternVL):
    @property
    def final_norm(self):
        return nn.Identity()


@broken("C12")
class LastLayerForgotten(InternVL):
    @property
    def layers(self):
        return super().layers[:-1]


@broken("C12", "gemma3n", "streams that are not merged")
class StreamsApart(Native):
    pass


@broken("C12")
class EmbeddingsForHead(InternVL):
    @property
    def head(self):
        return self.final_norm


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


# C15


@broken("C15")
class OneCallForAll(LocalEngine):
    def generate(self, conversations, options, *more, **given):
        self.current = conversations
        time.sleep(0.02)
        return super().generate(self.current, options, *more, **given)


@broken("C15", "qwen2_vl")
@contextmanager
def no_turns() -> Iterator[None]:
    """Calls run on the model at the same time, though it keeps the rope deltas of the last one."""
    whole, interval = vlmprobe.engines.local.alone, sys.getswitchinterval()
    vlmprobe.engines.local.alone = lambda model: torch.no_grad()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        vlmprobe.engines.local.alone = whole
        sys.setswitchinterval(interval)


@broken("C15")
class ScoresMixed(LocalEngine):
    def score(self, conversation, candidates, options):
        self.asked = conversation
        time.sleep(0.02)
        return super().score(self.asked, candidates, options)
