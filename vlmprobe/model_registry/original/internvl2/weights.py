"""Names and layouts of the weights: from ``InternVLChatModel`` to the model here."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Concatenate, MergeModulelist
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from vlmprobe.errors import CapabilityError

__all__ = ["CONVERSIONS", "SplitKeyValueGroups"]

QUANTISED = ("qweight", "qzeros", "scales")  # what AWQ and GPTQ store of a layer, with the outputs last
KINDS = ("weight", "bias", *QUANTISED)


class SplitKeyValueGroups(ConversionOps):
    """InternLM2 packs its projections by key-value head: the queries that share the head, its key, its value."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **context: Any
    ) -> dict[str, Any]:
        """Split [groups * (q + 2) * head_dim, ...] into the rows of queries, keys and values, in that order.

        What AWQ and GPTQ store has the outputs last, and the order of inputs (``g_idx``) is the same for all three.
        """
        (packed,) = map(_only, input_dict.values())
        kind = str(context["full_layer_name"]).rpartition(".")[2]
        if kind == "g_idx":
            return {name: packed.clone() for name in target_patterns}
        groups, shared, _ = _layout(context["config"])
        view = _outputs_first(packed, kind).unflatten(0, (groups, shared + 2, -1))
        parts = view[:, :shared], view[:, shared], view[:, shared + 1]
        return {
            name: _outputs_first(part.reshape(-1, *view.shape[3:]), kind).contiguous()
            for name, part in zip(target_patterns, parts, strict=True)
        }

    @property
    def reverse_op(self) -> ConversionOps:
        """For saving in the original layout."""
        return PackKeyValueGroups()


class PackKeyValueGroups(ConversionOps):
    """The reverse of :class:`SplitKeyValueGroups`."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **context: Any
    ) -> dict[str, Any]:
        """Pack the rows of queries, keys and values into [groups * (q + 2) * head_dim, ...]."""
        groups, shared, _ = _layout(context["config"])
        kind = str(context["full_layer_name"]).rpartition(".")[2]
        parts = [_only(input_dict[name]) for name in source_patterns]
        if kind == "g_idx":
            return {target_patterns[0]: parts[0]}
        if kind not in KINDS or not (kind in QUANTISED or parts[0].is_floating_point()):
            raise CapabilityError(
                "InternLM2's format packs the projections of attention, which cannot be done with layers that "
                "bitsandbytes quantised: save the model before it is quantised, or call its dequantize() first."
            )
        counts = (shared, 1, 1)
        views = [
            _outputs_first(part, kind).unflatten(0, (groups, count, -1))
            for part, count in zip(parts, counts, strict=True)
        ]
        return {target_patterns[0]: _outputs_first(torch.cat(views, dim=1).flatten(0, 2), kind).contiguous()}

    @property
    def reverse_op(self) -> ConversionOps:
        """For loading."""
        return SplitKeyValueGroups()


def _only(held: Any) -> torch.Tensor:
    """The tensor that transformers collected for a name, alone or in a list."""
    return held[0] if isinstance(held, list) else held


def _outputs_first(tensor: torch.Tensor, kind: str) -> torch.Tensor:
    """[outputs, ...] of a tensor as it is stored, and back; eight outputs may share an integer."""
    return tensor.T if kind in QUANTISED else tensor


def _layout(config: Any) -> tuple[int, int, int]:
    """Key-value heads, query heads that share one, and the width of a head."""
    language = config.text_config
    heads = language.num_attention_heads
    groups = language.num_key_value_heads
    return groups, heads // groups, language.hidden_size // heads


LAYER, RENAMED_LAYER = r"^model\.language_model\.layers\.(\d+)\.", r"model.language_model.layers.\1."

# In this order, each on what the one before made of a name; saving goes through them from the end.
CONVERSIONS: list[WeightRenaming | WeightConverter] = [
    WeightRenaming(r"^vision_model\.", "model.vision_tower."),
    WeightRenaming(r"^mlp1\.", "model.projector."),
    WeightRenaming(r"^language_model\.lm_head\.", "lm_head."),
    WeightRenaming(r"^language_model\.model\.", "model.language_model."),
    # InternLM2's names; those of the other language models are transformers' own.
    WeightRenaming(r"^language_model\.output\.", "lm_head."),
    WeightRenaming(r"^model\.language_model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    WeightRenaming(LAYER + r"attention\.wo\.", RENAMED_LAYER + "self_attn.o_proj."),
    WeightRenaming(LAYER + r"attention_norm\.", RENAMED_LAYER + "input_layernorm."),
    WeightRenaming(LAYER + r"ffn_norm\.", RENAMED_LAYER + "post_attention_layernorm."),
    WeightRenaming(LAYER + r"feed_forward\.w1\.", RENAMED_LAYER + "mlp.gate_proj."),
    WeightRenaming(LAYER + r"feed_forward\.w2\.", RENAMED_LAYER + "mlp.down_proj."),
    WeightRenaming(LAYER + r"feed_forward\.w3\.", RENAMED_LAYER + "mlp.up_proj."),
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
