"""The later Qwen models: mixtures of experts, linear attention, audio besides images."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.chat_formats import chatml_template, qwen_ids, qwen_tokenizer
from vlmprobe.testing.tiny.grids import deltanet, experts, grid_processor, mrope, vision3
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.text_configs import decoder

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
    del text["intermediate_size"]  # every layer is a mixture of experts
    config = hf.Qwen3_5MoeConfig(vision_config=vision3(layers=2), text_config=text, **qwen_ids(tokenizer))
    processor = grid_processor("Qwen3VLProcessor", tokenizer, chatml_template(IMAGE), patch=16, video="Qwen3VL")
    return Parts(config, processor, END)


@family("qwen4_exp", since="5.22.2", before="its cache cannot be repeated for several candidates")
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
        **deltanet(layer_types=["linear_attention", "full_attention", "linear_attention"]),
        **experts(),
    )
    del text["intermediate_size"]
    config = hf.Qwen4ExpConfig(vision_config=vision3(layers=2), text_config=text, **qwen_ids(tokenizer))
    processor = grid_processor("Qwen3VLProcessor", tokenizer, chatml_template(IMAGE), patch=16, video="Qwen3VL")
    return Parts(config, processor, END)


def _omni_processor(name: str, tokenizer: Any, patch: int) -> Any:
    area = (2 * patch) ** 2
    sizes = {"size": {"shortest_edge": 4 * area, "longest_edge": 16 * area}, "patch_size": patch}
    return getattr(hf, name)(
        image_processor=hf.Qwen2VLImageProcessor(**sizes),
        video_processor=hf.Qwen2VLVideoProcessor(**sizes),
        feature_extractor=hf.WhisperFeatureExtractor(feature_size=16),
        tokenizer=tokenizer,
        chat_template=chatml_template("<|vision_bos|><|IMAGE|><|vision_eos|>"),
    )


def _omni_tokenizer() -> Any:
    return qwen_tokenizer(
        image_token="<|IMAGE|>",
        video_token="<|VIDEO|>",
        audio_token="<|AUDIO|>",
        vision_bos_token="<|vision_bos|>",
        vision_eos_token="<|vision_eos|>",
        audio_bos_token="<|audio_bos|>",
        audio_eos_token="<|audio_eos|>",
    )


OMNI_AUDIO = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "d_model": 32,
    "output_dim": 64,
}


@family("qwen2_5_omni_thinker", since="5.23.0", before="its forward and its decoder are one module")
def _qwen2_5_omni_thinker() -> Parts:
    tokenizer = _omni_tokenizer()
    config = hf.Qwen2_5OmniThinkerConfig(
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
        audio_config=OMNI_AUDIO,
        text_config=decoder(tokenizer, rope_parameters=mrope(2, 3, 3), tie_word_embeddings=False),
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        audio_token_index=tokenizer.audio_token_id,
        audio_start_token_id=tokenizer.audio_bos_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
        audio_end_token_id=tokenizer.audio_eos_token_id,
    )
    return Parts(config, _omni_processor("Qwen2_5OmniProcessor", tokenizer, 14), END)


@family("qwen3_omni_moe_thinker", since="5.23.0", before="its forward and its decoder are one module")
def _qwen3_omni_moe_thinker() -> Parts:
    tokenizer = _omni_tokenizer()
    config = hf.Qwen3OmniMoeThinkerConfig(
        vision_config=vision3(deepstack_visual_indexes=[0, 1]),
        audio_config={**OMNI_AUDIO, "downsample_hidden_size": 8},
        text_config=decoder(
            tokenizer, head_dim=16, rope_parameters=mrope(4, 2, 2, mrope_interleaved=True), **experts()
        ),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        audio_token_id=tokenizer.audio_token_id,
        audio_start_token_id=tokenizer.audio_bos_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
    )
    return Parts(config, _omni_processor("Qwen3OmniMoeProcessor", tokenizer, 16), END)
