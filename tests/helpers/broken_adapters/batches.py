"""Batches that are not what each request is alone: C7."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from broken_adapters.case import broken
from vlmprobe.engines.local import LocalEngine
from vlmprobe.model_registry.native import Native
from vlmprobe.probe import Probe

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


class InBatches(LocalEngine):
    """An engine whose results are changed in batches alone."""

    def generate(self, conversations, options, *more, **given):
        results = super().generate(conversations, options, *more, **given)
        return [self.rewrite(each, options) for each in results] if len(conversations) > 1 else results

    def rewrite(self, result, options):
        raise NotImplementedError


@broken("C7")
class PaddingReported(InBatches):
    def rewrite(self, result, options):
        return replace(result, input_ids=np.concatenate([[0], result.input_ids]))


@broken("C7")
class LastTokenOfAnother(InBatches):
    """Rows are right, and the token that ends the answer is not the likeliest."""

    def rewrite(self, result, options):
        ids = result.output.ids.copy()
        ids[-1] = result.output.top_ids[-1, 1]
        return replace(result, output=replace(result.output, ids=ids))


@broken("C7")
class ColumnsOfAnother(InBatches):
    """Full rows are right, and what is reduced on the device without them is not."""

    def rewrite(self, result, options):
        if "logits" in options.keep:
            return result
        return replace(result, output=replace(result.output, entropy=result.output.entropy[::-1].copy()))


@broken("C7")
class ShorterWithoutFullRows(InBatches):
    def rewrite(self, result, options):
        return result if "logits" in options.keep else replace(result, output=result.output[:-1])


@broken("C7")
class RunsOn(LocalEngine):
    """The end of an answer is not seen in a batch."""

    def generate(self, conversations, options, *more, **given):
        if len(conversations) > 1:
            options = replace(options, generation={**options.generation, "eos_token_id": [0]})
        return super().generate(conversations, options, *more, **given)


@broken("C7")
@contextmanager
def requests_reversed() -> Iterator[None]:
    whole = Probe.generate_many
    Probe.generate_many = lambda self, *args, **given: iter(list(whole(self, *args, **given))[::-1])
    try:
        yield
    finally:
        Probe.generate_many = whole
