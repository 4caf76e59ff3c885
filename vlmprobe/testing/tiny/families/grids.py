"""Further families whose towers take grids of patches: EXAONE, HyperCLOVA X, LFM, Cosmos, Kimi, Video-LLaMA 3."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.chat_formats import chatml_template, qwen_ids, qwen_tokenizer
from vlmprobe.testing.tiny.grids import grid_processor, mrope, vision3
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.text_configs import decoder, latent
from vlmprobe.testing.tiny.vision_configs import square, tower

__all__: list[str] = []

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
END = ("<|im_end|>", "<|endoftext|>")
WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"]


def _window_tower(**more: Any) -> dict[str, Any]:
    """The tower of Qwen2.5-VL: windows of two merged patches in all blocks but the last."""
    return {
        "depth": 3,
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 14,
        "window_size": 56,
        "fullatt_block_indexes": [2],
        **more,
    }


@family("exaone4_5")
def _exaone4_5() -> Parts:
    tokenizer = qwen_tokenizer(
        "[|system|]", "[|user|]", "[|assistant|]", "[|endofturn|]", cls="PreTrainedTokenizerFast"
    )
    config = hf.Exaone4_5_Config(
        vision_config=_window_tower(num_key_value_heads=1),
        text_config={
            "model_type": "exaone4",
            **decoder(tokenizer, head_dim=16, sliding_window=12, layer_types=WINDOWED),
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    processor = grid_processor("Exaone4_5_Processor", tokenizer, chatml_template(IMAGE), patch=14)
    return Parts(config, processor, END)


@family("hyperclovax_vision_v2")
def _hyperclovax_vision_v2() -> Parts:
    tokenizer = qwen_tokenizer(cls="GPT2Tokenizer")
    config = hf.HyperCLOVAXVisionV2Config(
        vision_config={"model_type": "qwen2_5_vl_vision", **_window_tower()},
        text_config={
            "model_type": "hyperclovax",
            **decoder(
                tokenizer,
                embedding_multiplier=1.5,
                logits_scaling=0.6,
                residual_multiplier=0.7,
                attention_multiplier=0.3,
                tie_word_embeddings=False,
            ),
        },
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        tie_word_embeddings=False,
    )
    processor = grid_processor("HyperCLOVAXVisionV2Processor", tokenizer, chatml_template(IMAGE), patch=14)
    return Parts(config, processor, END)


@family("video_llama_3", notes="Its forward ignores logits_to_keep.")
def _video_llama_3() -> Parts:
    tokenizer = qwen_tokenizer()
    config = hf.VideoLlama3Config(
        vision_config={key: value for key, value in tower(patch=14).items() if key != "image_size"},
        text_config=hf.Qwen2Config(**decoder(tokenizer)),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    processor = grid_processor(
        "VideoLlama3Processor",
        tokenizer,
        chatml_template("<|image_pad|>\n"),
        patch=14,
        image="VideoLlama3",
        video="VideoLlama3",
        frames=1,
    )
    return Parts(config, processor, END)


@family("cosmos3_omni")
def _cosmos3_omni() -> Parts:
    tokenizer = qwen_tokenizer()
    config = hf.Cosmos3OmniConfig(
        vision_config={"model_type": "qwen3_vl_vision", **vision3(deepstack_visual_indexes=[0, 1])},
        text_config={
            "model_type": "qwen3_vl_text",
            **decoder(tokenizer, head_dim=16, rope_parameters=mrope(4, 2, 2, mrope_interleaved=True)),
        },
        **qwen_ids(tokenizer),
    )
    processor = grid_processor("Qwen3VLProcessor", tokenizer, chatml_template(IMAGE), patch=16, video="Qwen3VL")
    return Parts(config, processor, END)


@family(
    "cosmos3_edge",
    processor_kwargs={"return_mm_token_type_ids": True},
    notes="The model needs mm_token_type_ids, which its processor returns only on request.",
)
def _cosmos3_edge() -> Parts:
    tokenizer = qwen_tokenizer(cls="PreTrainedTokenizerFast")
    config = hf.Cosmos3EdgeConfig(
        vision_config={
            **{key: value for key, value in tower(patch=16).items() if key != "image_size"},
            "num_patches": 64,
        },
        text_config=decoder(tokenizer, head_dim=16, rope_parameters=mrope(4, 2, 2)),
        projector_hidden_size=64,
        **qwen_ids(tokenizer),
    )
    processor = grid_processor(
        "Cosmos3EdgeProcessor",
        tokenizer,
        chatml_template(IMAGE),
        patch=16,
        image="Cosmos3Edge",
        video="Cosmos3Edge",
        frames=1,
    )
    return Parts(config, processor, END)


@family("lfm2_vl")
def _lfm2_vl() -> Parts:
    rows = tuple(f"<|img_row_{row}_col_{column}|>" for row in (1, 2) for column in (1, 2))
    tokenizer = qwen_tokenizer(
        *rows,
        cls="PreTrainedTokenizerFast",
        image_token="<image>",
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
        image_thumbnail_token="<|img_thumbnail|>",
    )
    processor = hf.Lfm2VlProcessor(
        image_processor=hf.Lfm2VlImageProcessor(
            size=square(32),
            tile_size=32,
            encoder_patch_size=8,
            min_tiles=2,
            max_tiles=4,
            min_image_tokens=4,
            max_image_tokens=16,
        ),
        tokenizer=tokenizer,
        chat_template=chatml_template("<image>"),
    )
    config = hf.Lfm2VlConfig(
        vision_config={
            "model_type": "siglip2_vision_model",
            **{key: value for key, value in tower().items() if key != "image_size"},
            "num_patches": 64,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "lfm2",
            **decoder(tokenizer, layer_types=["conv", "full_attention", "conv"], block_multiple_of=16),
        },
        image_token_id=tokenizer.image_token_id,
        projector_hidden_size=64,
        downsample_factor=2,
    )
    return Parts(config, processor, END)


@family("lfm3_vl")
def _lfm3_vl() -> Parts:
    tokenizer = qwen_tokenizer(cls="PreTrainedTokenizerFast")
    config = hf.Lfm3VlConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "patch_size": 16,
        },
        text_config={
            "model_type": "lfm3",
            **decoder(tokenizer, head_dim=16, sliding_window=12, layer_types=["conv", *WINDOWED[:2]]),
        },
        projector_hidden_size=64,
        **qwen_ids(tokenizer),
    )
    processor = grid_processor("Lfm3VlProcessor", tokenizer, chatml_template(IMAGE), patch=16, video="Qwen3VL")
    return Parts(config, processor, END)


@family("kimi_k25")
def _kimi_k25() -> Parts:
    tokenizer = qwen_tokenizer(
        "<|media_begin|>",
        "<|media_end|>",
        cls="PreTrainedTokenizerFast",
        image_token="<|media_pad|>",
        video_token="<|kimi_k25_video_placeholder|>",
    )
    ids = tokenizer.convert_tokens_to_ids
    sizes = {"patch_size": 14, "merge_size": 2, "max_patches": 64}
    processor = hf.Kimi_K25Processor(
        image_processor=hf.Kimi_K25ImageProcessor(size={"max_height": 8, "max_width": 8}, **sizes),
        video_processor=hf.Kimi_K25VideoProcessor(size={"max_height": 8, "max_width": 8}, **sizes),
        tokenizer=tokenizer,
        chat_template=chatml_template("<|media_begin|><|media_pad|><|media_end|>"),
    )
    config = hf.Kimi_K25Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": 14,
            "pos_emb_height": 8,
            "pos_emb_width": 8,
        },
        text_config={
            "model_type": "deepseek_v3",
            **decoder(tokenizer, **latent(q_lora_rank=24, first_k_dense_replace=1)),
        },
        projection_hidden_size=32,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=ids("<|media_begin|>"),
        vision_end_token_id=ids("<|media_end|>"),
        tie_word_embeddings=False,
    )
    return Parts(config, processor, END)


@family("dots3_note")
def _dots3_note() -> Parts:
    tokenizer = qwen_tokenizer("<|imgpad|>", "<|img|>", "<|endofimg|>", "<|audio_comp_pad|>")
    ids = tokenizer.convert_tokens_to_ids
    area = 28 * 28
    processor = hf.Dots3NoteProcessor(
        image_processor=hf.Qwen2VLImageProcessor(
            size={"shortest_edge": 4 * area, "longest_edge": 16 * area}, temporal_patch_size=1
        ),
        tokenizer=tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(
            size={"shortest_edge": 4 * area, "longest_edge": 16 * area}, patch_size=14, temporal_patch_size=1
        ),
        feature_extractor=hf.Dots3NoteFeatureExtractor(),
        chat_template=chatml_template("<|img|><|imgpad|><|endofimg|>"),
    )
    config = hf.Dots3NoteConfig(
        vision_config={
            **{key: value for key, value in tower(patch=14).items() if key != "image_size"},
            "moe_intermediate_size": 32,
            "mlp_layer_types": ["dense", "sparse"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "adapter_in_dim": 32,
            "adapter_out_dim": 64,
        },
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "feature_size": 16,
            "downsample_hidden_size": 8,
            "adapter_input_size": 32,
            "adapter_out_dim": 64,
        },
        text_config={
            **decoder(tokenizer, **latent(q_lora_rank=24)),
            "shared_experts_intermediate_size": 32,
            "index_topk": 512,
            "index_head_dim": 16,
            "index_n_heads": 2,
            "head_dim": 24,
            "sliding_window": 12,
            "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "swa_q_lora_rank": 24,
            "swa_kv_lora_rank": 16,
            "swa_head_dim": 24,
            "swa_qk_nope_head_dim": 16,
            "swa_v_head_dim": 16,
        },
        image_token_id=ids("<|imgpad|>"),
        video_token_id=ids("<|video_pad|>"),
        audio_token_id=ids("<|audio_comp_pad|>"),
    )
    return Parts(config, processor, END)


@family(
    "nemotron_h_omni",
    since="5.23.0",
    before="its processor needs the package librosa",
    notes="Its step on a cache does not clamp the time step as its full forward does. Here the bound is too low to "
    "matter; with that of released checkpoints, 0.001, cached and full logits differ by 0.005.",
)
def _nemotron_h_omni() -> Parts:
    tokenizer = qwen_tokenizer(
        "<img>",
        "</img>",
        "<so_start>",
        "<so_end>",
        cls="PreTrainedTokenizerFast",
        image_token="<image>",
        video_token="<video>",
        audio_token="<so_embedding>",
    )
    processor = hf.NemotronH_Omni_Reasoning_V3Processor(
        image_processor=hf.NemotronH_Omni_Reasoning_V3ImageProcessor(
            patch_size=16, min_num_patches=16, max_num_patches=64
        ),
        video_processor=hf.NemotronH_Omni_Reasoning_V3VideoProcessor(),
        tokenizer=tokenizer,
        feature_extractor=hf.ParakeetFeatureExtractor(feature_size=16),
        chat_template=chatml_template("<image>"),
    )
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        vision_config={
            "model_type": "radio",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "mlp_ratio": 2.0,
            "patch_size": 16,
            "image_size": 64,
            "max_img_size": 128,
            "video_temporal_patch_size": 2,
        },
        text_config={
            "model_type": "nemotron_h",
            **decoder(tokenizer, head_dim=16),
            "layers_block_type": ["mamba", "attention", "moe"],
            "ssm_state_size": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "moe_shared_expert_intermediate_size": 32,
            "use_mamba_kernels": False,
            "time_step_min": 1e-6,
        },
        audio_config={
            "model_type": "parakeet_encoder",
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "subsampling_conv_channels": 8,
            "num_mel_bins": 16,
            "projection_hidden_size": 64,
            "projection_bias": True,
        },
        projector_hidden_size=64,
        vision_hidden_size=32,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        audio_token_id=tokenizer.audio_token_id,
    )
    return Parts(config, processor, END)
