"""Random weights that give informative logits.

The default initialisation of transformers (normal, 0.02) gives a tiny model a nearly uniform distribution, which hides
errors of any kind. Here every parameter is drawn with a variance-preserving scale, so that logits have a standard
deviation of one to four, and position, image and gates all have an effect.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["placeholder_ids", "randomise", "silence"]

KEPT = ("A_log", "dt_bias", "e_score_correction_bias")  # recurrences and routers that need their own initial values
EMBEDDINGS = 0.8
TIED_LOGITS = 2.5  # standard deviation of logits if the head is the embedding matrix
LINEAR = 1.3  # times 1/sqrt(fan in): slightly more than preserves the variance, so that signals do not decay to zero
HEAD = 2.5
VECTORS = 0.5  # learned positions, queries, class tokens
GATES = 0.6
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PLACEHOLDER = re.compile(r"(image|img|video|audio|vision|patch|boi|eoi|boa|eoa|pad).*token_(id|index)$")


@torch.no_grad()
def randomise(
    model: nn.Module,
    *,
    seed: int = 0,
    scales: Mapping[str, float] | None = None,
    shifts: Mapping[str, float] | None = None,
) -> None:
    """Draw every parameter of ``model`` anew, each from a generator seeded by its own name.

    Args:
        model: a freshly constructed model, whose own initial values give the mean of norm weights.
        seed: another seed gives other weights.
        scales: part of a parameter's name -> factor on its standard deviation.
        shifts: part of a parameter's name -> added to its mean.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    head_weight = getattr(head, "weight", None)
    tied = head_weight is not None and embeddings is not None and head_weight is getattr(embeddings, "weight", None)
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner_name, _, leaf = name.rpartition(".")
        if not parameter.is_floating_point() or leaf in KEPT:
            continue
        factor = math.prod(value for fragment, value in (scales or {}).items() if fragment in name)
        shift = sum(value for fragment, value in (shifts or {}).items() if fragment in name)
        if parameter is head_weight:
            centre, scale = 0.0, (TIED_LOGITS if tied else HEAD) / parameter.shape[-1] ** 0.5
        else:
            centre, scale = _law(modules[owner_name], leaf, parameter)
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        parameter.copy_(centre + shift + scale * factor * noise)


def _law(owner: nn.Module, leaf: str, parameter: nn.Parameter) -> tuple[float, float]:
    """The mean and standard deviation of one parameter that is not the head."""
    kind = type(owner).__name__.lower()
    shape = parameter.shape
    if "norm" in kind and parameter.dim() == 1:
        return (parameter.mean().item(), 0.1) if leaf == "weight" else (0.0, 0.05)
    if isinstance(owner, nn.Embedding):
        return 0.0, EMBEDDINGS
    if leaf.endswith("bias"):
        return 0.0, 0.05
    if any(part in leaf for part in ("position", "pos_emb", "cls", "class", "query", "queries", "latents", "token")):
        return 0.0, VECTORS
    if parameter.dim() <= 1 or shape.numel() == max(shape):
        # A gate or layer scale that starts at zero or 1e-5 would hide the branch behind it.
        return GATES, 0.1
    fan_in = shape[1:].numel() if isinstance(owner, CONVOLUTIONS) else max(shape[-2:])
    if isinstance(owner, nn.Linear):
        fan_in = shape[1]
    return 0.0, LINEAR / fan_in**0.5


@torch.no_grad()
def silence(model: nn.Module, ids: Iterable[int]) -> None:
    """Keep tokens that a trained model never emits from being the most likely: zero their row of the head.

    A random model would otherwise generate image placeholders, which no forward pass accepts without their image.
    A logit of zero lies some nine nats below the largest of a few hundred with standard deviation two to three.
    """
    weight = getattr(getattr(model, "get_output_embeddings", lambda: None)(), "weight", None)
    if weight is not None:
        weight[[each for each in sorted(set(ids)) if each < len(weight)]] = 0.0


def placeholder_ids(config: Any, processor: Any) -> set[int]:
    """The placeholder ids of images and their frames, and padding, as named by config and processor."""
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = set()
    for key, value in [*config.to_dict().items(), *vars(processor).items()]:
        if isinstance(value, str) and PLACEHOLDER.search(f"{key}_id"):
            value = tokenizer.convert_tokens_to_ids(value)
        elif not PLACEHOLDER.search(key):
            continue
        if isinstance(value, int) and value >= 0:
            ids.add(value)
    return ids - {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id}
