"""The later Qwen models: mixtures of experts, linear attention, speech beside sight."""

from __future__ import annotations

from vlmprobe.testing.tiny.dialects import chatml_template, qwen_ids, qwen_tokenizer
from vlmprobe.testing.tiny.grids import deltanet, experts, grid_processor, mrope, vision3
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.text import decoder

__all__: list[str] = []

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
END = ("<|im_end|>", "<|endoftext|>")


@family("qwen3_vl_moe")
def _qwen3_vl_moe() -> Parts:
    tokenizer = qwen_tokenizer()
    config = hf.Qwen3VLMoeConfig(
        vision_config=vision3(deepstack_visual_indexes=[0, 1]),
        text_config=decoder(
            tokenizer, head_dim=16, rope_parameters=mrope(4, 2, 2, mrope_interleaved=True), **experts()
        ),
        **qwen_ids(tokenizer),
    )
    processor = grid_processor("Qwen3VLProcessor", tokenizer, chatml_template(IMAGE), patch=16, video="Qwen3VL")
    return Parts(config, processor, END)


@family("qwen3_5")
def _qwen3_5() -> Parts:
    tokenizer = qwen_tokenizer(cls="Qwen3_5Tokenizer")
    config = hf.Qwen3_5Config(
        vision_config=vision3(layers=2),
        text_config=decoder(tokenizer, tie_word_embeddings=True, **deltanet()),
        tie_word_embeddings=True,
        **qwen_ids(tokenizer),
    )
    processor = grid_processor("Qwen3VLProcessor", tokenizer, chatml_template(IMAGE), patch=16, video="Qwen3VL")
    return Parts(config, processor, END)


@family("qwen3_5_moe")
def _qwen3_5_moe() -> Parts:
    tokenizer = qwen_tokenizer(cls="Qwen3_5Tokenizer")
    text = decoder(tokenizer, shared_expert_intermediate_size=32, **deltanet(), **experts())
    del text["intermediate_size"]  # every layer is a mixture
    config = hf.Qwen3_5MoeConfig(vision_config=vision3(layers=2), text_config=text, **qwen_ids(tokenizer))
    processor = grid_processor("Qwen3VLProcessor", tokenizer, chatml_template(IMAGE), patch=16, video="Qwen3VL")
    return Parts(config, processor, END)


@family("qwen4_exp")
def _qwen4_exp() -> Parts:
    tokenizer = qwen_tokenizer(cls="Qwen3_5Tokenizer")
    text = decoder(
        tokenizer,
        shared_expert_intermediate_size=32,
        hc_count=2,
        hc_lowrank=8,
        indexer_n_heads=2,
        indexer_kv_heads=1,
        indexer_head_dim=16,
        indexer_budget=16,
        indexer_compress_ratio=4,
        **deltanet(layer_types=["linear_attention", "indexed_attention", "linear_attention"]),
        **experts(),
    )
    del text["intermediate_size"]
    config = hf.Qwen4ExpConfig(vision_config=vision3(layers=2), text_config=text, **qwen_ids(tokenizer))
    processor = grid_processor("Qwen3VLProcessor", tokenizer, chatml_template(IMAGE), patch=16, video="Qwen3VL")
    return Parts(config, processor, END)
