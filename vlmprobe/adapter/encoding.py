"""What an adapter says of its family, and what it makes of conversations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmprobe.inputs.image_spans import ImageSpan

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Capabilities", "Continuation", "EncodedPrompt", "Encoding", "is_along"]

# What images are encoded from, whose shape may happen to be that of the prompt (a mask of 64 patches, 64 tokens).
OF_IMAGES = ("pixel", "qformer")


@dataclass(frozen=True)
class Capabilities:
    """What a family supports. The rest raises a clear error, or runs one request at a time.

    ``prefix_limit`` follows from the model's config, and a chat template that moves images or drops a system message
    is found by rendering: an adapter declares what neither tells.
    """

    batching: bool = True  # a left-padded batch of several prompts gives the same numbers as single calls
    several_images: bool = True  # more than one image in a conversation
    text_only: bool = True  # a conversation without an image
    prefix_reuse: bool = True  # one prompt's KV cache can be continued with several candidates
    mixed_images: bool = False  # conversations with different numbers of images can share a batch
    images_first: bool = False  # images stand before the text of their message, whatever the order of its parts
    system: bool = True  # a system message of the caller
    prefix_limit: int | None = None  # positions beyond which RoPE factors change, so a cache is not continued across it
    one_end: bool = True  # an earlier answer in a prompt ends with the token that ends generation


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as the model receives it, without padding."""

    ids: np.ndarray  # int64 [S], image placeholders included
    spans: tuple[ImageSpan, ...]  # in sequence order; empty for text only
    text: str  # the rendered template that was tokenised (image placeholders as the processor reads them)


@dataclass(frozen=True)
class Encoding:
    """A left-padded batch of N prompts: the keyword arguments of the model, and each prompt's own ids and spans."""

    inputs: dict[str, Any]  # for model.forward and model.generate; input_ids [N, S], attention_mask [N, S], pixels, ...
    prompts: tuple[EncodedPrompt, ...]  # N


@dataclass(frozen=True)
class Continuation:
    """Token ids of a prompt followed by a text: the first ``shared`` ids of the prompt, then ``ids``.

    ``shared`` is the full prompt length unless the tokenizer merges across the boundary.
    """

    shared: int
    ids: tuple[int, ...]


def is_along(inputs: Mapping[str, Any], name: str) -> bool:
    """Whether an input of a model has a value for each position of its prompts: [N, S] or [N, S, ...]."""
    shape = inputs[name].shape if hasattr(inputs[name], "dim") else ()  # of a tensor
    return tuple(shape[:2]) == tuple(inputs["input_ids"].shape) and not name.startswith(OF_IMAGES)
