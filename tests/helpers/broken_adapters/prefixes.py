"""Beginnings of prompts that are not those of the prompt: C24."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.cache_utils import DynamicLayer

from broken_adapters.case import broken
from vlmprobe.engines.local import beginnings, candidate_states


@broken("C24")
@contextmanager
def a_beginning_about_any_image() -> Iterator[None]:
    """Prompts with equal ids share the cache of whichever image came first."""
    whole = candidate_states.images_key, beginnings.same
    candidate_states.images_key = lambda conversation: tuple(image.size for image in conversation.images)
    beginnings.same = lambda *_: True  # which would notice other pixels
    try:
        yield
    finally:
        candidate_states.images_key, beginnings.same = whole


@broken("C24")
@contextmanager
def padding_left_in_the_cache() -> Iterator[None]:
    """Candidates go on from the question and the tokens that it was padded with."""
    whole = DynamicLayer.crop
    DynamicLayer.crop = lambda *_: None
    try:
        yield
    finally:
        DynamicLayer.crop = whole
