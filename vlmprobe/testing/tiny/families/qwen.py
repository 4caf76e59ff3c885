"""Qwen-VL and the families with its grids of patches and M-RoPE (time, height and width)."""

from __future__ import annotations

from vlmprobe.testing.tiny.chat_formats import (
    QWEN_SYSTEM,
    chatml_template,
    cohere_template,
    cohere_tokenizer,
    qwen_ids,
    qwen_tokenizer,
)
from vlmprobe.testing.tiny.grids import grid_processor, mrope, vision3
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.text_configs import decoder

__all__: list[str] = []

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
END = ("<|im_end|>", "<|endoftext|>")


@family("qwen2_vl")
def _qwen2_vl() -> Parts:
    tokenizer = qwen_tokenizer()
    config = hf.Qwen2VLConfig(
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 14,
        },
        text_config=decoder(tokenizer, rope_parameters=mrope(2, 3, 3), tie_word_embeddings=True),
        tie_word_embeddings=True,
        **qwen_ids(tokenizer),
    )
    template = chatml_template(IMAGE, default_system=QWEN_SYSTEM)
    return Parts(config, grid_processor("Qwen2VLProcessor", tokenizer, template, patch=14), END)


@family("qwen2_5_vl")
def _qwen2_5_vl() -> Parts:
    tokenizer = qwen_tokenizer()
    config = hf.Qwen2_5_VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [2],
        },
        # As in the released checkpoints, the head has more rows than the tokenizer has tokens.
        text_config=decoder(tokenizer, vocab_size=len(tokenizer) + 8, rope_parameters=mrope(2, 3, 3)),
        **qwen_ids(tokenizer),
    )
    template = chatml_template(IMAGE, default_system=QWEN_SYSTEM)
    return Parts(config, grid_processor("Qwen2_5_VLProcessor", tokenizer, template, patch=14), END)


@family("qwen3_vl")
def _qwen3_vl() -> Parts:
    tokenizer = qwen_tokenizer()
    rope = mrope(4, 2, 2, mrope_interleaved=True)
    config = hf.Qwen3VLConfig(
        vision_config=vision3(deepstack_visual_indexes=[0, 1]),
        text_config=decoder(tokenizer, head_dim=16, rope_parameters=rope, tie_word_embeddings=True),
        tie_word_embeddings=True,
        **qwen_ids(tokenizer),
    )
    processor = grid_processor("Qwen3VLProcessor", tokenizer, chatml_template(IMAGE), patch=16, video="Qwen3VL")
    return Parts(config, processor, END)


@family("cohere_compass")
def _cohere_compass() -> Parts:
    tokenizer = cohere_tokenizer("<|VISION_START|>", "<|VISION_END|>", "<|IMAGE_PAD|>", "<|VIDEO_PAD|>")
    ids = tokenizer.convert_tokens_to_ids
    config = hf.CohereCompassConfig(
        vision_config=vision3(deepstack_visual_indexes=[0, 1]),
        text_config=decoder(
            tokenizer,
            logit_scale=0.6,
            sliding_window=16,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            # As in Command A, layers without a sliding window have no rotary positions either.
            rope_parameters={
                "sliding_attention": mrope(4, 2, 2, mrope_interleaved=True),
                "full_attention": None,
            },
            tie_word_embeddings=True,
        ),
        image_token_id=ids("<|IMAGE_PAD|>"),
        video_token_id=ids("<|VIDEO_PAD|>"),
        vision_start_token_id=ids("<|VISION_START|>"),
        vision_end_token_id=ids("<|VISION_END|>"),
        tie_word_embeddings=True,
    )
    processor = grid_processor(
        "CohereCompassProcessor",
        tokenizer,
        cohere_template("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>"),
        patch=16,
        image="CohereCompass",
        video="CohereCompass",
    )
    return Parts(config, processor, ("<|END_OF_TURN_TOKEN|>", "<EOS_TOKEN>"))
