"""Document readers with a SAM tower (DeepSeek-OCR 2, Unlimited-OCR), and the Inkling models."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.chat_formats import chatml_template, qwen_tokenizer
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.templates import chat
from vlmprobe.testing.tiny.text_configs import decoder
from vlmprobe.testing.tiny.tokenizers import byte_level
from vlmprobe.testing.tiny.vision_configs import square

__all__: list[str] = []

BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


def _reader(kind: str, size: int, tile: int) -> tuple[Any, Any]:
    """Tokenizer and processor: images of ``size`` pixels, tiles of ``tile``, patches of two, merged four by four."""
    tokenizer = byte_level(
        specials=(BEGIN, END, "<｜▁pad▁｜>", "<image>"),
        bos=BEGIN,
        eos=END,
        pad="<｜▁pad▁｜>",
        add_bos=True,
        named={"image_token": "<image>"},
    )
    roles = {"system": ("", "\n"), "user": ("", "\n"), "assistant": ("", END)}
    processor = getattr(hf, f"{kind}Processor")(
        image_processor=getattr(hf, f"{kind}ImageProcessor")(size=square(size), tile_size=tile, max_patches=4),
        tokenizer=tokenizer,
        patch_size=2,
        downsample_ratio=4,
        chat_template=chat(roles, start=BEGIN, generation="", image="<image>\n"),
    )
    return tokenizer, processor


def _sam(size: int, channels: list[int]) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": 2,
        "window_size": 8,
        "global_attn_indexes": [],
        "mlp_dim": 32,
        "downsample_channels": channels,
    }


def _experts(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return decoder(
        tokenizer,
        num_key_value_heads=4,
        moe_intermediate_size=32,
        n_routed_experts=4,
        n_shared_experts=1,
        num_experts_per_tok=2,
        mlp_layer_types=["dense", "sparse", "sparse"],
        **more,
    )


@family(
    "deepseek_ocr2",
    since="5.23.0",
    before="it refuses a conversation without an image",
    notes="An image has 257 tokens and more.",
)
def _deepseek_ocr2() -> Parts:
    tokenizer, processor = _reader("DeepseekOcr2", size=128, tile=96)
    config = hf.DeepseekOcr2Config(
        vision_config={
            "sam_config": _sam(128, [16, 32]),
            "encoder_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "vocab_size": 8,
            },
        },
        text_config=_experts(tokenizer),
        image_token_id=processor.image_token_id,
    )
    return Parts(config, processor, (END,))


@family("unlimited_ocr")
def _unlimited_ocr() -> Parts:
    tokenizer, processor = _reader("UnlimitedOcr", size=64, tile=48)
    config = hf.UnlimitedOcrConfig(
        vision_config={
            "sam_config": _sam(64, [16, 32]),
            "encoder_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 64,
                "patch_size": 8,
            },
        },
        text_config=_experts(tokenizer, sliding_window=128),
        image_token_id=processor.image_token_id,
    )
    return Parts(config, processor, (END,))


def _inkling_text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return decoder(
        tokenizer,
        layers=4,
        head_dim=16,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=16,
        sliding_window_size=12,
        d_rel=4,
        rel_extent=16,
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        route_scale=1.0,
        unpadded_vocab_size=len(tokenizer),
        layer_types=["hybrid_sliding", "hybrid", "hybrid_sliding", "hybrid"],
        **more,
    )


@family("inkling_mm_model")
def _inkling() -> Parts:
    tokenizer = qwen_tokenizer(
        "<|content_image|>",
        "<|content_audio|>",
        cls="PreTrainedTokenizerFast",
        image_token="<|unused_200054|>",
        audio_token="<|unused_200053|>",
    )
    processor = hf.InklingProcessor(
        feature_extractor=hf.InklingFeatureExtractor(),
        image_processor=hf.InklingImageProcessor(size=square(40)),
        tokenizer=tokenizer,
        chat_template=chatml_template("<|content_image|><|unused_200054|>"),
    )
    config = hf.InklingConfig(
        text_config=_inkling_text(
            tokenizer,
            n_shared_experts=1,
            mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
            logits_mup_width_multiplier=1.5,
        ),
        vision_config={"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 40},
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 16},
        image_token_id=tokenizer.image_token_id,
        audio_token_id=tokenizer.audio_token_id,
        image_bos_token_id=tokenizer.convert_tokens_to_ids("<|content_image|>"),
        audio_bos_token_id=tokenizer.convert_tokens_to_ids("<|content_audio|>"),
    )
    return Parts(config, processor, ("<|im_end|>", "<|endoftext|>"))


def _second_inkling(kind: str, **more: Any) -> Parts:
    tokenizer = qwen_tokenizer("<|content_image|>", cls="PreTrainedTokenizerFast", image_token="<|unused_200054|>")
    processor = hf.Inkling2Processor(
        image_processor=hf.Inkling2ImageProcessor(size=square(40)),
        tokenizer=tokenizer,
        chat_template=chatml_template("<|content_image|><|unused_200054|>"),
    )
    text = _inkling_text(tokenizer, final_logit_softcapping=5.0, **more)
    del text["intermediate_size"]
    config = getattr(hf, f"{kind}Config")(
        text_config=text,
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 20,
            "posemb_grid_size": 4,
            "projection_hidden_dim": 64,
            "text_hidden_size": 64,
        },
        image_token_id=tokenizer.image_token_id,
    )
    return Parts(config, processor, ("<|im_end|>", "<|endoftext|>"))


@family("inkling2")
def _inkling2() -> Parts:
    return _second_inkling("Inkling2", n_layers_per_attn_res_block=2)


@family(
    "inkling2_loop",
    notes="Layers 1 and 2 of 4 run three times, and each pass after the first takes messages from the previous one.",
)
def _inkling2_loop() -> Parts:
    return _second_inkling(
        "Inkling2Loop",
        n_layers_per_attn_res_block=1,
        loop_layer_index_start=1,
        loop_layer_index_end=3,
        loop_num_passes=3,
        loop_gate_rank=8,
    )
