"""RoPE whose factors change with the length of the sequence: where they do, and what may share one computation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vlmprobe.errors import CapabilityError

__all__ = ["may_continue", "require_one_side", "rope_switch"]


def rope_switch(config: Any) -> int | None:
    """The greatest length [positions] with the RoPE factors of short prompts; None if no length changes them.

    Args:
        config: of the model: ``longrope`` has a second set of factors beyond it, ``dynamic`` others for each length.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limits = []
    for rope in _ropes(text):
        kind = str(rope.get("rope_type"))
        if kind == "longrope":
            limits.append(rope.get("original_max_position_embeddings"))
        elif "dynamic" in kind:
            limits.append(getattr(text, "max_position_embeddings", None))
    return min((each for each in limits if isinstance(each, int)), default=None)


def may_continue(adapter: Any, before: int, after: int) -> bool:
    """Whether a cache of ``before`` positions may be continued up to ``after`` with the numbers of one whole forward.

    Keys in the cache keep the rotation that they were computed with, so both lengths must have the same factors.
    """
    limit = adapter.capabilities.prefix_limit
    if limit is None or after <= limit or after == before:
        return True
    return before > limit and not _grows(adapter.model.config)


def require_one_side(adapter: Any, lengths: Iterable[int], new: int) -> None:
    """Reject a batch whose rows, run alone, would have other RoPE factors than those of its longest row.

    Args:
        adapter: of the model.
        lengths: of the prompts.
        new: how many tokens each is continued by, at most.

    Raises:
        CapabilityError: it names the length where the factors change.
    """
    lengths, limit = sorted(lengths), adapter.capabilities.prefix_limit
    if limit is None or len(lengths) < 2:
        return
    ends = lengths[-1] + new
    if not may_continue(adapter, lengths[0], ends):
        raise CapabilityError(
            f"{adapter.name}: prompts of {lengths[0]:,} to {ends:,} positions cannot share a batch, since RoPE factors "
            f"change beyond {limit:,} positions and the longest row decides for all: run them one by one."
        )


def _grows(config: Any) -> bool:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return any("dynamic" in str(rope.get("rope_type")) for rope in _ropes(text))


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    """The RoPE parameters of a text config: one set, or one for each type of layer."""
    held = getattr(config, "rope_parameters", None)
    if isinstance(held, Mapping):
        yield from (each for each in (held, *held.values()) if isinstance(each, Mapping))
