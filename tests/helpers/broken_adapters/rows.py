"""Rows that are not the model's own, and parts of the network that are others: C1, C2, C11, C12."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from broken_adapters.case import BareHead, Rewriting, broken
from vlmprobe.engines.local import LocalEngine
from vlmprobe.model_registry.internvl import InternVL
from vlmprobe.model_registry.native import Native

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
    @property
    def head(self):
        return BareHead(self.adapter)


@broken("C1", "molmo2")
class TypeIdsDropped(Native):
    def process(self, conversations):
        return {key: value for key, value in super().process(conversations).items() if key != "mm_token_type_ids"}


@broken("C1")
class IdsWithoutTheImage(Rewriting):
    """The sequence that is reported is not the one that ran."""

    def rewrite(self, result, options):
        return replace(result, input_ids=result.input_ids[result.input_ids != max(self.adapter.image_ids)])


@broken("C1")
class FullRowsNotKept(Rewriting):
    def rewrite(self, result, options):
        return replace(result, output=replace(result.output, logits=None))


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


@broken("C2")
class LastRowLost(Rewriting):
    def rewrite(self, result, options):
        return replace(result, output=result.output[:-1] if len(result.output) > 1 else result.output)


# C11


@broken("C11", "gemma4", "selected rows without soft-capping")
@broken("C11", "cohere_compass", "selected rows without scaling")
class BareHeadForSelectedRows(LocalEngine):
    selected = False

    @property
    def head(self):
        return BareHead(self.adapter) if self.selected else super().head

    def generate(self, conversations, options, *more, **given):
        self.selected = "logits" not in options.keep
        try:
            return super().generate(conversations, options, *more, **given)
        finally:
            self.selected = False


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


@broken("C11")
class LaterColumnsOfTheStepBefore(Rewriting):
    """Right for the first token, and one step late from then on."""

    def rewrite(self, result, options):
        if "logits" in options.keep or len(result.output) < 2:
            return result
        entropy = np.concatenate([result.output.entropy[:1], result.output.entropy[:-1]])
        return replace(result, output=replace(result.output, entropy=entropy))


def _alternatives(output, order):
    """A table with its alternatives in another order, or fewer of them."""
    arrays = {name: getattr(output, name)[:, order].copy() for name in ("top_ids", "top_logprobs")}
    return replace(output, top_tokens=[row[order] for row in output.top_tokens], **arrays)


@broken("C11")
class LikeliestLeftOut(Rewriting):
    def rewrite(self, result, options):
        if "logits" in options.keep:
            return result
        return replace(result, output=_alternatives(result.output, slice(1, None)))


@broken("C11")
class WorstFirst(Rewriting):
    def rewrite(self, result, options):
        if "logits" in options.keep:
            return result
        return replace(result, output=_alternatives(result.output, slice(None, None, -1)))


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


@broken("C12")
class LayerTwice(InternVL):
    @property
    def layers(self):
        first, *rest = super().layers
        return nn.ModuleList([first, first, *rest])
