"""Write a checkpoint folder: construct the model, randomise its weights, save what ``from_pretrained`` reads."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

from vlmprobe.adapter.quiet import quiet
from vlmprobe.testing.tiny.registry import Family
from vlmprobe.testing.tiny.weights import placeholder_ids, randomise, silence

__all__ = ["write"]


def write(entry: Family, folder: Path) -> Path:
    """Build the family's :class:`Parts` and save them all into ``folder``."""
    parts = entry.make()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the few initial values that randomise keeps come from the global generator
        model = AutoModelForImageTextToText.from_config(parts.config, dtype=torch.float32).eval()
    randomise(model, scales=parts.scales, shifts=parts.shifts)
    silence(model, placeholder_ids(parts.config, parts.processor))
    tokenizer = getattr(parts.processor, "tokenizer", parts.processor)
    eos = [tokenizer.convert_tokens_to_ids(token) for token in parts.eos]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=eos if len(eos) > 1 else eos[0],
        pad_token_id=tokenizer.pad_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    return folder
