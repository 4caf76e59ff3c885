"""Beginnings of prompts that are not those of the prompt: C24."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import vlmprobe.engines.local.scoring
import vlmprobe.engines.local.shared_prefix
from broken_adapters.case import broken


@broken("C24")
@contextmanager
def a_beginning_about_any_image() -> Iterator[None]:
    """Prompts with equal ids share the cache of whichever image came first."""
    module = vlmprobe.engines.local.scoring
    whole = module.images_key
    module.images_key = lambda conversation: len(conversation.images)
    try:
        yield
    finally:
        module.images_key = whole


@broken("C24")
@contextmanager
def padding_left_in_the_cache() -> Iterator[None]:
    """Candidates go on from the question and the tokens that it was padded with."""
    module = vlmprobe.engines.local.shared_prefix
    whole = module._cropped
    module._cropped = lambda *_: True
    try:
        yield
    finally:
        module._cropped = whole
