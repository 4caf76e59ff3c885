"""Names and layouts of the weights: from ``InternVLChatModel`` to the model here."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Concatenate, MergeModulelist
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

__all__ = ["CONVERSIONS", "SplitKeyValueGroups"]


class SplitKeyValueGroups(ConversionOps):
    """InternLM2 packs its projections by key-value head: the queries that share the head, its key, its value."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **context: Any
    ) -> dict[str, Any]:
        """Split [groups * (q + 2) * head_dim, ...] into the rows of queries, keys and values, in that order."""
        (held,) = input_dict.values()
        packed = held[0] if isinstance(held, list) else held
        language = context["config"].text_config
        groups = language.num_key_value_heads
        shared = language.num_attention_heads // groups
        width = language.hidden_size // language.num_attention_heads
        view = packed.view(groups, shared + 2, width, *packed.shape[1:])
        parts = view[:, :shared], view[:, shared], view[:, shared + 1]
        return {
            name: part.reshape(-1, *packed.shape[1:]).contiguous()
            for name, part in zip(target_patterns, parts, strict=True)
        }


INTERNLM2 = r"^language_model\.model\.layers\.(\d+)\."
LLAMA = r"model.language_model.layers.\1."

CONVERSIONS: list[WeightRenaming | WeightConverter] = [
    WeightRenaming(r"^vision_model\.", "model.vision_tower."),
    WeightRenaming(r"^mlp1\.", "model.projector."),
    WeightRenaming(INTERNLM2 + r"attention\.wo\.", LLAMA + "self_attn.o_proj."),
    WeightRenaming(INTERNLM2 + r"attention_norm\.", LLAMA + "input_layernorm."),
    WeightRenaming(INTERNLM2 + r"ffn_norm\.", LLAMA + "post_attention_layernorm."),
    WeightRenaming(INTERNLM2 + r"feed_forward\.w1\.", LLAMA + "mlp.gate_proj."),
    WeightRenaming(INTERNLM2 + r"feed_forward\.w2\.", LLAMA + "mlp.down_proj."),
    WeightRenaming(INTERNLM2 + r"feed_forward\.w3\.", LLAMA + "mlp.up_proj."),
    WeightRenaming(r"^language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    WeightRenaming(r"^language_model\.model\.", "model.language_model."),  # after InternLM2's: the rest keeps its names
    WeightRenaming(r"^language_model\.(?:output|lm_head)\.", "lm_head."),
    WeightConverter(
        r"\.attention\.wqkv\.",
        [".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj."],
        operations=[SplitKeyValueGroups()],
    ),
    # A mixture of experts stores each expert apart, and runs them stacked.
    WeightConverter(
        ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
        "mlp.experts.gate_up_proj",
        operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
    ),
    WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", operations=[MergeModulelist(dim=0)]),
]
