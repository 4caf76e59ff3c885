"""Beginnings of prompts that are not those of the prompt: C24."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.cache_utils import DynamicLayer

from broken_adapters.case import broken
from vlmprobe.engines.local import beginnings, candidate_states, shared_prefix


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


@broken("C24")
@contextmanager
def padding_that_candidates_attend_to() -> Iterator[None]:
    """The cache of prompts of different lengths is continued without the mask of their padding."""
    whole = shared_prefix.SharedPrefix.__init__

    def unmasked(self, *arguments) -> None:
        whole(self, *arguments)
        self.padded = False

    shared_prefix.SharedPrefix.__init__ = unmasked
    try:
        yield
    finally:
        shared_prefix.SharedPrefix.__init__ = whole


@broken("C24")
@contextmanager
def beginnings_of_other_images() -> Iterator[None]:
    """Questions about several images go on from the beginning about the first."""
    whole = candidate_states._continue
    candidate_states._continue = lambda prefix, begins, rows, group: whole(prefix, begins, [0] * len(rows), group)
    try:
        yield
    finally:
        candidate_states._continue = whole
