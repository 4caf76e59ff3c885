"""Encodes questions about the same images: the first by the processor, of the others the text that differs.

What a processor does for a question takes several times as long as the tokens of the question, and most of it is the
same for all. A processor that lets the question change anything else is found out the first time: all are then compared
with what it makes of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from vlmprobe.adapter import Adapter, EncodedPrompt, Encoding
from vlmprobe.adapter.encoding import is_along
from vlmprobe.adapter.prompts import common_prefix
from vlmprobe.engines.local.feature_cache import same
from vlmprobe.inputs.image_spans import require_no_placeholder
from vlmprobe.inputs.messages import Conversation

__all__ = ["derives", "encode_each", "encode_groups"]

# Whether a question changes only the ids at the end of the inputs, by adapter, where that was tried.
ONLY_IDS: WeakKeyDictionary[Adapter, bool] = WeakKeyDictionary()


def derives(adapter: Adapter) -> bool:
    """Whether it is not known that questions about one image must be encoded each by the processor."""
    return ONLY_IDS.get(adapter, True) and adapter.text_ends is not None


def encode_each(adapter: Adapter, conversations: Sequence[Conversation]) -> list[Encoding]:
    """The encodings of conversations about the same images, each alone.

    Raises:
        VlmprobeError: as :meth:`Adapter.encode`.
    """
    first = adapter.encode(conversations[:1])
    rest = conversations[1:]
    if not rest:
        return [first]
    derived: list[Encoding | None] = (
        [None] * len(rest) if ONLY_IDS.get(adapter) is False else _derived(adapter, first, conversations)
    )
    if ONLY_IDS.get(adapter):
        pairs = zip(derived, rest, strict=True)
        return [first, *(adapter.encode([each]) if known is None else known for known, each in pairs)]
    whole = [adapter.encode([each]) for each in rest]
    tried = [
        _same(known, each)
        for known, each in zip(derived, whole, strict=True)
        if known is not None and known.prompts[0].text != first.prompts[0].text
    ]
    if tried:
        ONLY_IDS[adapter] = all(tried)
    return [first, *(_sharing(first, each) for each in whole)]


def encode_groups(
    adapter: Adapter, groups: Sequence[Sequence[Conversation]]
) -> tuple[dict[str, Any], list[list[Encoding]]] | None:
    """Encodings of groups of conversations, each about images of its own; None where it is not known how to derive one.

    Returns:
        What the first conversations of all groups are encoded with beside what runs along the sequence (pixels), in
        order; and the encodings of each group without these.
    """
    if not ONLY_IDS.get(adapter):
        return None
    together = adapter.encode([each[0] for each in groups])
    inputs = together.inputs
    along = [name for name in inputs if is_along(inputs, name)]
    found: list[list[Encoding]] = []
    for row, (group, prompt) in enumerate(zip(groups, together.prompts, strict=True)):
        start = inputs["input_ids"].shape[1] - len(prompt.ids)  # of its padding
        first = Encoding({name: inputs[name][row : row + 1, start:] for name in along}, (prompt,))
        others = [each for each in _derived(adapter, first, group) if each is not None]
        if len(others) < len(group) - 1:
            return None
        found.append([first, *others])
    return {name: value for name, value in inputs.items() if name not in along}, found


def _derived(adapter: Adapter, first: Encoding, conversations: Sequence[Conversation]) -> list[Encoding | None]:
    """The encodings of all but the first, from that; None of one that is not the first with another text at its end."""
    ends = adapter.text_ends
    opening, rest = conversations[0], conversations[1:]
    lone = [name for name, value in first.inputs.items() if is_along(first.inputs, name) and value.dim() != 2]
    alike = [each.format == opening.format and not each.begun for each in conversations]
    if ends is None or lone or not all(alike):
        return [None] * len(rest)
    written = adapter.placeholders()
    for each in rest:
        adapter.check(each)
        if not each.format.raw_prompt:
            require_no_placeholder(each, written)
    prompt = first.prompts[0]
    known = [*prompt.ids.tolist(), *adapter.tokenizer.convert_tokens_to_ids(list(written))]
    # A raw prompt may say itself where its images are, and those of one call are written alike.
    texts = adapter.render(rest) if not opening.format.raw_prompt else [adapter.render([each])[0] for each in rest]
    starts = [ends.start(prompt.text, known, common_prefix(prompt.text, text)) for text in texts]
    ends.read(text[start:] for text, start in zip(texts, starts, strict=True) if start is not None)
    return [
        None if start is None else _with_end(adapter, first, ends.ids(prompt.text[start:]), text, start)
        for text, start in zip(texts, starts, strict=True)
    ]


def _with_end(adapter: Adapter, first: Encoding, known: tuple[int, ...], text: str, start: int) -> Encoding | None:
    """The encoding of ``text`` from the first one, where this has other ids after the added token at ``start``.

    ``known`` are the ids of the first text from there on. The token may be an image's, of which a processor makes many.
    """
    ends = adapter.text_ends
    assert ends is not None
    prompt = first.prompts[0]
    kept = len(prompt.ids) - len(known) + 1
    end = ends.ids(text[start:])
    apart = int(prompt.ids[kept - 1]) in ends.cuts and all(span.stop <= kept for span in prompt.spans)
    if not apart or tuple(prompt.ids[kept:].tolist()) != known[1:] or end[0] != known[0]:
        return None
    if not set(end) & ends.added <= set(known) or not adapter.image_ids.isdisjoint(end[1:]):
        return None  # a mark that a processor may read
    inputs = adapter.extend(first.inputs, torch.tensor([end[1:]]), len(known) - 1)
    ids = np.concatenate([prompt.ids[:kept], np.array(end[1:], dtype=np.int64)])
    return Encoding(inputs, (EncodedPrompt(ids, prompt.spans, text),))


def _sharing(first: Encoding, other: Encoding) -> Encoding:
    """The encoding with the pixels of the first, where they are equal, so that they are in memory once."""
    held = {
        name: first.inputs[name] if name in first.inputs and same(first.inputs[name], value) else value
        for name, value in other.inputs.items()
    }
    return Encoding(held, other.prompts)


def _same(one: Encoding, other: Encoding) -> bool:
    """Whether two encodings of one conversation are equal, number for number."""
    mine, its = one.prompts[0], other.prompts[0]
    alike = mine.text == its.text and mine.spans == its.spans and np.array_equal(mine.ids, its.ids)
    return alike and same(one.inputs, other.inputs)
