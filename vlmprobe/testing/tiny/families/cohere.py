"""Aya Vision and Command A Vision: tiles of patches, one norm for attention and feed-forward."""

from __future__ import annotations

from vlmprobe.testing.tiny.chat_formats import cohere_template, cohere_tokenizer
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.text_configs import decoder
from vlmprobe.testing.tiny.vision_configs import square, tower

__all__: list[str] = []

END = ("<|END_OF_TURN_TOKEN|>", "<EOS_TOKEN>")
LAYERS = ["sliding_attention", "sliding_attention", "full_attention"]


@family("aya_vision")
def _aya_vision() -> Parts:
    tokenizer = cohere_tokenizer(
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "TILE",
        "TILE_GLOBAL",
        "<image>",
    )
    processor = hf.AyaVisionProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=square(32), crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        patch_size=8,
        img_size=32,
        downsample_factor=2,
        chat_template=cohere_template("<image>"),
    )
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**tower(vision_use_head=False)),
        text_config=hf.Cohere2Config(**decoder(tokenizer, logit_scale=0.25, sliding_window=12, layer_types=LAYERS)),
        image_token_index=processor.image_token_id,
    )
    return Parts(config, processor, END)


@family("cohere2_vision")
def _cohere2_vision() -> Parts:
    tokenizer = cohere_tokenizer(
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        image_token="<|IMG_PATCH|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    processor = hf.Cohere2VisionProcessor(
        image_processor=hf.Cohere2VisionImageProcessor(size=square(32), max_patches=4, patch_size=2),
        tokenizer=tokenizer,
        chat_template=cohere_template("<|IMG_PATCH|>"),
    )
    config = hf.Cohere2VisionConfig(
        vision_config=hf.SiglipVisionConfig(**tower(vision_use_head=False)),
        text_config=hf.Cohere2Config(**decoder(tokenizer, logit_scale=0.25, sliding_window=12, layer_types=LAYERS)),
        image_token_id=processor.image_token_id,
        alignment_intermediate_size=96,
    )
    return Parts(config, processor, END)
