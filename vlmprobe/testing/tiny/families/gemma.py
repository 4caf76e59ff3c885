"""Gemma 3, 3n and 4, and PaliGemma: scaled embeddings, sliding windows, soft-capped logits."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.chat_formats import gemma_template, gemma_tokenizer
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.templates import chat
from vlmprobe.testing.tiny.text_configs import decoder
from vlmprobe.testing.tiny.vision_configs import MEAN_STD, square, tower

__all__: list[str] = []

# Gemma multiplies its embeddings, tied to its head, by the square root of the width: the model would mostly repeat its
# input token. With smaller embeddings and larger norms the layers dominate.
QUIET: dict[str, Any] = {
    "scales": {"embed_tokens.weight": 0.5},
    "shifts": {"language_model.norm.weight": 1.0, "post_attention_layernorm": 0.5, "post_feedforward_layernorm": 0.5},
}
WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"]


def _gemma3_like(kind: str, **text: Any) -> Parts:
    tokenizer = gemma_tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    processor = getattr(hf, f"{kind}Processor")(
        image_processor=hf.Gemma3ImageProcessor(size=square(32)),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=gemma_template("<start_of_image>"),
    )
    config = getattr(hf, f"{kind}Config")(
        vision_config=hf.SiglipVisionConfig(**tower(vision_use_head=False)),
        text_config=hf.Gemma3TextConfig(
            **decoder(tokenizer, head_dim=16, query_pre_attn_scalar=16, sliding_window=12, layer_types=WINDOWED, **text)
        ),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=True,
    )
    return Parts(config, processor, ("<end_of_turn>", "<eos>"), **QUIET)


@family("gemma3")
def _gemma3() -> Parts:
    # Gemma 3 for images does not soft-cap, although its config may say so.
    return _gemma3_like("Gemma3", final_logit_softcapping=4.0)


@family(
    "gemma3n",
    packages=("timm",),
    notes="The vision tower is timm's test_efficientnet instead of MobileNetV5, which has no tiny variant.",
)
def _gemma3n() -> Parts:
    tokenizer = gemma_tokenizer(
        boi_token="<start_of_image>",
        boa_token="<start_of_audio>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
        eoa_token="<end_of_audio>",
        audio_token="<audio_soft_token>",
    )
    processor = hf.Gemma3nProcessor(
        feature_extractor=hf.Gemma3nAudioFeatureExtractor(feature_size=16),
        image_processor=hf.SiglipImageProcessor(size=square(64), **MEAN_STD),
        tokenizer=tokenizer,
        audio_seq_length=4,
        image_seq_length=4,
        chat_template=gemma_template("<image_soft_token>"),
    )
    config = hf.Gemma3nConfig(
        vision_config={
            "architecture": "test_efficientnet",
            "hidden_size": 256,
            "vocab_offset": tokenizer.eoi_token_id,
            "vocab_size": 2,
        },
        audio_config={
            "hidden_size": 32,
            "input_feat_size": 16,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 1,
            "sscp_conv_channel_size": [4, 2],
            "vocab_offset": tokenizer.eoa_token_id,
            "vocab_size": 2,
        },
        text_config=hf.Gemma3nTextConfig(
            **decoder(
                tokenizer,
                layers=4,
                head_dim=16,
                sliding_window=12,
                layer_types=["sliding_attention", "full_attention"] * 2,
                num_kv_shared_layers=2,
                activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
                final_logit_softcapping=5.0,
                vocab_size_per_layer_input=tokenizer.eoi_token_id,
                hidden_size_per_layer_input=16,
                laurel_rank=8,
            )
        ),
        vision_soft_tokens_per_image=4,
        audio_soft_tokens_per_image=4,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        image_token_id=tokenizer.image_token_id,
        boa_token_id=tokenizer.boa_token_id,
        eoa_token_id=tokenizer.eoa_token_id,
        audio_token_id=tokenizer.audio_token_id,
    )
    return Parts(config, processor, ("<end_of_turn>", "<eos>"), **QUIET)


def _gemma4_tokenizer() -> Any:
    return gemma_tokenizer(
        "<|turn>",
        "<turn|>",
        "<|video|>",
        boi_token="<|image>",
        eoi_token="<image|>",
        image_token="<|image|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
        audio_token="<|audio|>",
    )


def _gemma4_processor(kind: str, tokenizer: Any) -> Any:
    sizes = {"patch_size": 4, "max_soft_tokens": 70, "pooling_kernel_size": 3}
    return getattr(hf, f"{kind}Processor")(
        feature_extractor=getattr(hf, f"{kind}AudioFeatureExtractor")(),
        image_processor=getattr(hf, f"{kind}ImageProcessor")(**sizes),
        tokenizer=tokenizer,
        video_processor=getattr(hf, f"{kind}VideoProcessor")(**sizes),
        image_seq_length=70,
        chat_template=gemma_template("<|image|>", opens="<|turn>", closes="<turn|>"),
    )


def _gemma4_text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return decoder(
        tokenizer,
        head_dim=16,
        global_head_dim=32,
        sliding_window=12,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        final_logit_softcapping=5.0,
        use_bidirectional_attention="vision",
        **more,
    )


def _gemma4_ids(tokenizer: Any) -> dict[str, int]:
    return {
        "boi_token_id": tokenizer.boi_token_id,
        "eoi_token_id": tokenizer.eoi_token_id,
        "image_token_id": tokenizer.image_token_id,
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video|>"),
        "boa_token_id": tokenizer.boa_token_id,
        "eoa_token_index": tokenizer.eoa_token_id,
        "audio_token_id": tokenizer.audio_token_id,
    }


@family("gemma4")
def _gemma4() -> Parts:
    tokenizer = _gemma4_tokenizer()
    config = hf.Gemma4Config(
        vision_config=hf.Gemma4VisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            patch_size=4,
            pooling_kernel_size=3,
            position_embedding_size=256,
        ),
        text_config=hf.Gemma4TextConfig(
            **_gemma4_text(tokenizer, vocab_size_per_layer_input=len(tokenizer), hidden_size_per_layer_input=16)
        ),
        audio_config=None,
        **_gemma4_ids(tokenizer),
    )
    return Parts(config, _gemma4_processor("Gemma4", tokenizer), ("<turn|>", "<eos>"), **QUIET)


@family("gemma4_unified")
def _gemma4_unified() -> Parts:
    tokenizer = _gemma4_tokenizer()
    config = hf.Gemma4UnifiedConfig(
        vision_config={
            "patch_size": 4,
            "pooling_kernel_size": 3,
            "mm_embed_dim": 48,
            "mm_posemb_size": 128,
            "output_proj_dims": 48,
        },
        text_config=hf.Gemma4UnifiedTextConfig(**_gemma4_text(tokenizer)),
        audio_config=None,
        **_gemma4_ids(tokenizer),
    )
    return Parts(config, _gemma4_processor("Gemma4Unified", tokenizer), ("<turn|>", "<eos>"), **QUIET)


@family(
    "paligemma",
    text_only=False,
    notes="The processor refuses text only, and adds <bos> after the images and a newline at the end. The prompt "
    "attends bidirectionally: token_type_ids of further tokens must be 1, or it attends to them (7.4 in a logit).",
)
def _paligemma() -> Parts:
    tokenizer = gemma_tokenizer(image_token="<image>")
    image_processor = hf.SiglipImageProcessor(size=square(32), **MEAN_STD)
    image_processor.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        chat_template=chat(
            {"system": ("", "\n"), "user": ("", ""), "assistant": ("\n", "")}, generation="", image="<image>"
        ),
    )
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**tower(vision_use_head=False)),
        text_config=hf.Gemma2Config(
            **decoder(
                tokenizer,
                head_dim=16,
                query_pre_attn_scalar=16,
                sliding_window=12,
                layer_types=WINDOWED,
                final_logit_softcapping=5.0,
                attn_logit_softcapping=20.0,
            )
        ),
        projection_dim=64,
        hidden_size=64,
        vocab_size=len(tokenizer),
        image_token_index=processor.image_token_id,
    )
    return Parts(config, processor, ("<eos>",), **QUIET)
