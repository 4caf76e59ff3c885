"""Warns of prompts that are longer than the model's context."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from vlmprobe.adapter import EncodedPrompt
from vlmprobe.errors import VlmprobeWarning, outside

__all__ = ["context_length", "warn_if_beyond"]


def context_length(config: Any) -> int | None:
    """``max_position_embeddings`` of a model's text config; None if it does not say."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def warn_if_beyond(config: Any, prompts: Sequence[EncodedPrompt]) -> None:
    """Warn if the longest of the prompts of a call is longer than the model's context.

    The caller's line is named, so that Python shows the warning once for it, however often the call runs the model.
    """
    longest, context = max((len(each.ids) for each in prompts), default=0), context_length(config)
    if context is not None and longest > context:
        warnings.warn(
            f"The prompt has {longest:,} tokens and the model's context {context:,} (max_position_embeddings): its "
            "numbers are of positions that the model was not trained on. Shorten the text, or pass fewer or smaller "
            "images.",
            VlmprobeWarning,
            stacklevel=outside(),
        )
