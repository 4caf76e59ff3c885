"""Prompts of a fused model as one left-padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlmprobe.adapter import EncodedPrompt

__all__ = ["sequence_inputs"]


def sequence_inputs(
    prompts: Sequence[EncodedPrompt], *, pad_id: int = 0, hidden_id: int | None = None
) -> dict[str, torch.Tensor]:
    """``input_ids``, ``attention_mask`` and, if there are images, ``image_index``, each [N, S] int64.

    Args:
        prompts: N prompts; their spans take the feature rows of the batch in order.
        pad_id: the id for left padding.
        hidden_id: a token id that the original masks from attention wherever it occurs.
    """
    length = max(len(prompt.ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), length), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    image_index = torch.zeros_like(input_ids)
    rows = 0
    for item, prompt in enumerate(prompts):
        start = length - len(prompt.ids)
        ids = torch.from_numpy(prompt.ids)
        input_ids[item, start:] = ids
        attention_mask[item, start:] = 1 if hidden_id is None else (ids != hidden_id).long()
        for span in prompt.spans:
            taken = span.stop - span.start
            image_index[item, start + span.start : start + span.stop] = torch.arange(rows + 1, rows + taken + 1)
            rows += taken
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
    return {**inputs, "image_index": image_index} if rows else inputs
