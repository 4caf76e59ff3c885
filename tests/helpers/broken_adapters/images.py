"""Pictures that are lost, and positions that are not the picture's: C4, C5."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from broken_adapters.case import Rewriting, broken
from vlmprobe.adapter import ImageSpan
from vlmprobe.engines.local import LocalEngine
from vlmprobe.inputs.messages import Conversation, ImagePart, Message
from vlmprobe.model_registry.internvl import InternVL
from vlmprobe.model_registry.native import Native

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


def _with_blank(conversation: Conversation) -> Conversation:
    first, *rest = conversation.messages
    return Conversation((Message(first.role, (ImagePart(Image.new("RGB", (64, 48))), *first.parts)), *rest))


@broken("C4")
class BlankForNoPicture(InternVL):
    """A conversation without a picture is given one."""

    def encode(self, conversations):
        return super().encode([each if each.images else _with_blank(each) for each in conversations])


@broken("C4")
class AnswerOfTheLastPicture(LocalEngine):
    """A conversation without a picture is answered from what was seen before."""

    seen: Any = None

    def generate(self, conversations, options, *more, **given):
        results = super().generate(conversations, options, *more, **given)
        logits = results[0].output.logits
        if logits is None:
            return results
        if conversations[0].images:
            self.seen = self.seen if self.seen is not None else logits
            return results
        return [replace(results[0], output=replace(results[0].output, logits=self.seen[: len(logits)]))]


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


@broken("C5", "llava")
class SpanWithoutAPicture(Native):
    def spans(self, ids, conversation):
        return super().spans(ids, conversation) or (ImageSpan(0, 0, 1, 2),)


@broken("C5")
class TilesCountedFromOne(InternVL):
    def spans(self, ids, conversation):
        return tuple(replace(span, tile=span.tile + 1) for span in super().spans(ids, conversation))


@broken("C5", "llava")
class SpansOverlap(Native):
    def spans(self, ids, conversation):
        spans = super().spans(ids, conversation)
        return (*spans, replace(spans[-1], tile=spans[-1].tile + 1)) if spans else ()


@broken("C5", "molmo2", "a position forgotten where pictures are added to embeddings")
class AddedPositionForgotten(Native):
    def spans(self, ids, conversation):
        first, *rest = super().spans(ids, conversation) or (None,)
        return (replace(first, start=first.start + 1), *rest) if first else ()


@broken("C5", "molmo2", "text in a span of its own where pictures are added to embeddings")
class TextTakenForATile(Native):
    def spans(self, ids, conversation):
        spans = super().spans(ids, conversation)
        if len(conversation.images) != 1:
            return spans
        last = spans[-1]
        return (*spans, ImageSpan(0, last.tile + 1, last.stop + 1, last.stop + 2))


@broken("C5", "llava")
class LayersOfTheVisionTower(Native):
    @property
    def layers(self):
        return next(
            module.layers
            for name, module in self.model.named_modules()
            if "vision" in name and hasattr(module, "layers")
        )


def _rows(table, rows):
    """A table of these rows of another."""
    columns = {}
    for name in ("ids", "positions", "offsets", "logprobs", "entropy", "ranks", "logsumexp", "top_ids", "top_logprobs"):
        columns[name] = getattr(table, name)[rows]
    for name in ("tokens", "kinds", "top_tokens"):
        columns[name] = [getattr(table, name)[row] for row in rows]
    return replace(table, logits=None if table.logits is None else table.logits[rows], **columns)


@broken("C5")
class ImageRowTwice(Rewriting):
    def rewrite(self, result, options):
        if result.prompt is None or "image" not in result.prompt.kinds:
            return result
        row = result.prompt.kinds.index("image")
        return replace(result, prompt=_rows(result.prompt, [*range(row + 1), *range(row, len(result.prompt))]))


@broken("C5")
class RowAfterTheImageLost(Rewriting):
    def rewrite(self, result, options):
        if result.prompt is None or "image" not in result.prompt.kinds:
            return result
        row = result.prompt.kinds.index("image") + 1
        return replace(result, prompt=_rows(result.prompt, [*range(row), *range(row + 1, len(result.prompt))]))
