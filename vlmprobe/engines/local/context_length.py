"""Warns of prompts longer than the model's context, and of answers that cross a length where RoPE changes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from vlmprobe.adapter import Adapter, EncodedPrompt
from vlmprobe.adapter.rope import may_continue
from vlmprobe.errors import VlmprobeWarning, outside

__all__ = ["context_length", "switch_within", "warn_if_beyond"]


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


def switch_within(adapter: Adapter, prompt: EncodedPrompt, made: int) -> int | None:
    """The length beyond which RoPE factors change if an answer of ``made`` tokens goes there, with a warning, or None.

    Rows before it are of other factors than a forward over the whole sequence has; beyond it, the model's own decoding
    keeps the keys of earlier positions as they were rotated, or runs the sequence anew.
    """
    length, limit = len(prompt.ids), adapter.capabilities.prefix_limit
    if may_continue(adapter, length, length + made - 1):  # the last token is not run
        return None
    warnings.warn(
        f"The answer goes beyond {limit:,} positions, where the model's RoPE factors change. As in its own generate, "
        "earlier rows keep theirs, so not all rows are those of a forward over the whole text: Probe.score gives "
        "these. Shorten the prompt, or pass fewer max_new_tokens.",
        VlmprobeWarning,
        stacklevel=outside(),
    )
    return limit
