"""Prompts after which the answer has begun: the ids of its beginning after those of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vlmprobe.adapter.encoding import EncodedPrompt, Encoding
from vlmprobe.inputs.begun import NOTHING
from vlmprobe.inputs.messages import Conversation

__all__ = ["unbegun", "with_begun"]


def unbegun(conversations: Sequence[Conversation]) -> list[Conversation]:
    """The conversations without the beginnings of their answers."""
    return [replace(each, begun=NOTHING) if each.begun else each for each in conversations]


def with_begun(adapter: Any, encoding: Encoding, conversations: Sequence[Conversation]) -> Encoding:
    """The encoding of prompts, each followed by the beginning of its answer, left-padded to one length again.

    Raises:
        MessageError: for a beginning that contains an image placeholder of the model.
    """
    if not any(each.begun for each in conversations):
        return encoding
    import torch

    prompts = [_begun(adapter, *pair) for pair in zip(encoding.prompts, conversations, strict=True)]
    pairs = list(zip(encoding.prompts, prompts, strict=True))
    # Where the tokenizer merges a beginning with its prompt, the last ids of the prompt are replaced.
    shared = [_in_common(old.ids, new.ids) for old, new in pairs]
    drop = max(len(old.ids) - kept for (old, _), kept in zip(pairs, shared, strict=True))
    added = [new.ids[len(old.ids) - drop :] for old, new in pairs]
    longest = max(map(len, added))
    short = [longest - len(each) for each in added]
    padding = adapter.tokenizer.pad_token_id or 0
    ids = torch.tensor([[*each.tolist(), *[padding] * less] for each, less in zip(added, short, strict=True)])
    inputs = adapter.extend(encoding.inputs, ids, drop)
    return Encoding(_left_padded(inputs, short, padding), tuple(prompts))


def _begun(adapter: Any, prompt: EncodedPrompt, conversation: Conversation) -> EncodedPrompt:
    begun = conversation.begun
    kept, ids = len(prompt.ids), begun.ids
    if begun.opened:
        opened = adapter.continuation(prompt, begun.opened)
        kept, ids = opened.shared, (*opened.ids, *ids)
    adapter.require_answer(ids)
    whole = np.concatenate([prompt.ids[:kept], np.array(ids, dtype=np.int64)])
    return EncodedPrompt(whole, prompt.spans, prompt.text + begun.text)


def _in_common(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if len(differs) else length


def _left_padded(inputs: dict[str, Any], short: Sequence[int], padding: int) -> dict[str, Any]:
    """Inputs whose rows end in some positions of padding, with these moved to their start."""
    import torch

    if not any(short):
        return inputs
    shape = inputs["input_ids"].shape
    moved = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor) and value.shape[:2] == shape:
            fill = padding if name == "input_ids" else 0
            rows = []
            for row, less in zip(value, short, strict=True):
                rolled = row.roll(less, 0)
                rolled[:less] = fill
                rows.append(rolled)
            moved[name] = torch.stack(rows)
    return moved
