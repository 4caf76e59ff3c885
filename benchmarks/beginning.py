"""One prefill plus a batched forward over the questions' own tokens, as one would write it with transformers alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from benchmarks.peers import Inputs, inputs_of
from vlmprobe.adapter.kv_cache import cache_name

__all__ = ["Beginning", "begin", "full_batches", "last_rows", "whole_answers"]


@dataclass(frozen=True, eq=False)
class Beginning:
    """What the prompts have in common, as a cache of one row, and each prompt's own ids after it."""

    cache: Any
    own: list[list[int]]


@torch.no_grad()
def begin(model: Any, processor: Any, texts: Sequence[str], image: Image) -> Beginning:
    """Prefill what the prompts have in common.

    Args:
        model, processor: of transformers.
        texts: at least two prompts as text, each with one placeholder of the same image, before they differ.
        image: the image.
    """
    first = inputs_of(model, processor, texts[0], image)
    ids = _expanded(processor, texts, first["input_ids"][0].tolist())
    shared = next(place for place, each in enumerate(zip(*ids, strict=False)) if len(set(each)) > 1)
    whole = first["input_ids"].shape
    cut = {name: each[:, :shared] if each.shape[:2] == whole else each for name, each in first.items()}
    out = model.model(**cut, use_cache=True)
    return Beginning(out[cache_name(model.forward)], [each[shared:] for each in ids])


def _expanded(processor: Any, texts: Sequence[str], first: list[int]) -> list[list[int]]:
    """Ids of all prompts, from those of the first, so that the image is processed once."""
    plain = processor.tokenizer(list(texts))["input_ids"]
    place = plain[0].index(processor.image_token_id)
    begun = first[: len(first) - (len(plain[0]) - place - 1)]
    return [begun + each[place + 1 :] for each in plain]


@torch.no_grad()
def last_rows(model: Any, begun: Beginning, size: int) -> Iterator[Tensor]:
    """Log-probabilities [V] of the token after every prompt, from batches of ``size`` on the cache.

    Padding on the right needs no mask: a causal model does not see it from the row that is read.
    """
    name = cache_name(model.forward)
    for start in range(0, len(begun.own), size):
        own = begun.own[start : start + size]
        cache = copy.deepcopy(begun.cache)
        cache.batch_repeat_interleave(len(own))
        width = max(map(len, own))
        ids = torch.tensor([each + [0] * (width - len(each)) for each in own], device=model.device)
        states = model.model(input_ids=ids, use_cache=True, **{name: cache}).last_hidden_state
        ends = torch.tensor([len(each) - 1 for each in own], device=model.device)
        rows = model.get_output_embeddings()(states[torch.arange(len(own), device=model.device), ends])
        yield from rows.float().log_softmax(-1)


@torch.no_grad()
def whole_answers(
    model: Any, processor: Any, texts: Sequence[str], images: Sequence[Image], options: dict[str, Any]
) -> Tensor:
    """Ids [N, T] that follow the prompts, from one batch of whole prompts, padded on the left."""
    inputs = _padded(model, processor, texts, images)
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]


def _padded(model: Any, processor: Any, texts: Sequence[str], images: Sequence[Image]) -> Inputs:
    made = processor(
        text=list(texts), images=[[each] for each in images], padding=True, padding_side="left", return_tensors="pt"
    )
    return {
        name: each.to(model.device, model.dtype if each.is_floating_point() else None) for name, each in made.items()
    }


@torch.no_grad()
def full_batches(model: Any, processor: Any, texts: Sequence[str], images: Sequence[Image], size: int) -> Iterator[Any]:
    """Log-probabilities [V] of the token after every prompt, from whole prompts in batches, padded on the left."""
    for start in range(0, len(texts), size):
        batch = slice(start, start + size)
        inputs = _padded(model, processor, texts[batch], images[batch])
        rows = model(**inputs, logits_to_keep=1).logits[:, -1]
        yield from rows.float().log_softmax(-1)
