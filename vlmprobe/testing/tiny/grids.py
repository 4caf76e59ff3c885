"""Shared by families with grids of patches: processor, M-RoPE, Qwen3-VL's vision tower, experts, DeltaNet."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.registry import hf

__all__ = ["deltanet", "experts", "grid_processor", "mrope", "vision3"]


def grid_processor(
    name: str,
    tokenizer: Any,
    template: str,
    *,
    patch: int,
    image: str = "Qwen2VL",
    video: str | None = "Qwen2VL",
    frames: int = 2,
    **video_options: Any,
) -> Any:
    """A processor over grids of patches, for images of 4 to 16 merged patches.

    Args:
        name: processor class.
        tokenizer: the tokenizer.
        template: the chat template.
        patch: side of a patch in pixels; two by two are merged.
        image: image processor class, without the suffix ``ImageProcessor``.
        video: video processor class, without the suffix ``VideoProcessor``; None if the processor has none.
        frames: temporal patch size, in frames.
        **video_options: further arguments of the video processor.
    """
    area = (2 * patch) ** 2
    sizes = {
        "size": {"shortest_edge": 4 * area, "longest_edge": 16 * area},
        "patch_size": patch,
        "temporal_patch_size": frames,
        "merge_size": 2,
    }
    parts = {"image_processor": getattr(hf, f"{image}ImageProcessor")(**sizes), "tokenizer": tokenizer}
    if video is not None:
        parts["video_processor"] = getattr(hf, f"{video}VideoProcessor")(**{**sizes, **video_options})
    return getattr(hf, name)(chat_template=template, **parts)


def mrope(*section: int, **more: Any) -> dict[str, Any]:
    """M-RoPE over time, height and width; the sections sum to half the rotary dimension of a head."""
    return {"rope_type": "default", "mrope_section": list(section), "rope_theta": 10000.0, **more}


def vision3(*, layers: int = 3, **more: Any) -> dict[str, Any]:
    """The vision tower of Qwen3-VL and related models."""
    return {
        "depth": layers,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 16,
        "num_position_embeddings": 64,
        **more,
    }


def experts(*, count: int = 4, each: int = 2, **more: Any) -> dict[str, Any]:
    """A mixture of ``count`` experts, of which ``each`` are active per token."""
    return {"num_experts": count, "num_experts_per_tok": each, "moe_intermediate_size": 32, **more}


def deltanet(**more: Any) -> dict[str, Any]:
    """Gated linear attention in all layers but one, as in Qwen3.5."""
    return {
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "rope_parameters": mrope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5),
        **more,
    }
