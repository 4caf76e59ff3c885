"""The GLM-V models: one vision tower, dense or mixture-of-experts decoders, an OCR model."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.grids import grid_processor, mrope
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.templates import chat
from vlmprobe.testing.tiny.text_configs import decoder
from vlmprobe.testing.tiny.tokenizers import byte_level

__all__: list[str] = []

MARKS = {
    "image_start_token_id": "<|begin_of_image|>",
    "image_end_token_id": "<|end_of_image|>",
    "video_start_token_id": "<|begin_of_video|>",
    "video_end_token_id": "<|end_of_video|>",
    "image_token_id": "<|image|>",
    "video_token_id": "<|video|>",
}
END = ("<|endoftext|>", "<|user|>", "<|observation|>")
ROLES = {role: (f"<|{role}|>\n", "\n" if role == "system" else "") for role in ("system", "user", "assistant")}
TEMPLATE = chat(
    ROLES,
    start="[gMASK]<sop>",
    generation="<|assistant|>\n",
    image="<|begin_of_image|><|image|><|end_of_image|>",
)
ROPE = {"partial_rotary_factor": 0.5}


def _tokenizer() -> Any:
    return byte_level(
        specials=(
            "<|endoftext|>",
            "[gMASK]",
            "<sop>",
            "<|system|>",
            "<|user|>",
            "<|assistant|>",
            "<|observation|>",
            *MARKS.values(),
        ),
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        named={"image_token": "<|image|>", "video_token": "<|video|>"},
    )


def _ids(tokenizer: Any) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in MARKS.items()}


def _vision(**more: Any) -> dict[str, Any]:
    return {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 64,
        "num_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        **more,
    }


@family("glm4v")
def _glm4v() -> Parts:
    tokenizer = _tokenizer()
    config = hf.Glm4vConfig(
        vision_config=_vision(),
        text_config=decoder(tokenizer, rope_parameters=mrope(2, 1, 1, **ROPE)),
        **_ids(tokenizer),
    )
    processor = grid_processor("Glm4vProcessor", tokenizer, TEMPLATE, patch=14, image="Glm4v", video="Glm4v")
    return Parts(config, processor, END)


@family("glm46v")
def _glm46v() -> Parts:
    tokenizer = _tokenizer()
    config = hf.Glm46VConfig(
        vision_config={"model_type": "glm4v_vision", **_vision()},
        text_config={"model_type": "glm4v_text", **decoder(tokenizer, rope_parameters=mrope(2, 1, 1, **ROPE))},
        **_ids(tokenizer),
    )
    processor = grid_processor("Glm46VProcessor", tokenizer, TEMPLATE, patch=14, image="Glm46V", video="Glm46V")
    return Parts(config, processor, END)


@family("glmga")
def _glmga() -> Parts:
    tokenizer = _tokenizer()
    config = hf.GlmgaConfig(
        vision_config={"model_type": "glm4v_vision", **_vision()},
        text_config={"model_type": "glm4v_text", **decoder(tokenizer, rope_parameters=mrope(2, 1, 1, **ROPE))},
        **_ids(tokenizer),
    )
    processor = grid_processor("Glm46VProcessor", tokenizer, TEMPLATE, patch=14, image="Glmga", video="Glmga")
    return Parts(config, processor, END)


@family("glm4v_moe")
def _glm4v_moe() -> Parts:
    tokenizer = _tokenizer()
    config = hf.Glm4vMoeConfig(
        vision_config=_vision(),
        text_config=decoder(
            tokenizer,
            rope_parameters=mrope(2, 1, 1, **ROPE),
            moe_intermediate_size=32,
            num_experts_per_tok=2,
            n_routed_experts=4,
            first_k_dense_replace=1,
        ),
        **_ids(tokenizer),
    )
    processor = grid_processor("Glm4vProcessor", tokenizer, TEMPLATE, patch=14, image="Glm4v", video="Glm4v")
    return Parts(config, processor, END)


@family("glm_ocr")
def _glm_ocr() -> Parts:
    tokenizer = _tokenizer()
    config = hf.GlmOcrConfig(
        vision_config=_vision(),
        text_config=decoder(tokenizer, head_dim=16, rope_parameters=mrope(2, 3, 3)),
        **_ids(tokenizer),
    )
    processor = grid_processor("Glm46VProcessor", tokenizer, TEMPLATE, patch=14, image="Glm46V", video="Glm46V")
    return Parts(config, processor, END)


@family(
    "glm5_next",
    notes="Its sparse attention selects up to 512 positions here, that is, all. With 16, decoding on a cache differs "
    "from the full forward (8.0 in a logit).",
)
def _glm5_next() -> Parts:
    tokenizer = _tokenizer()
    config = hf.Glm5NextConfig(
        vision_config=_vision(projection_intermediate_size=64),
        text_config={
            **decoder(tokenizer, layers=3),
            "num_key_value_heads": 4,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "v_head_dim": 16,
            "qk_nope_head_dim": 16,
            "index_topk": 512,
            "index_kpool": 4,
            "index_head_dim": 16,
            "index_n_heads": 2,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "linear_head_dim": 16,
            "linear_num_heads": 4,
            "hc_mult": 2,
        },
        **_ids(tokenizer),
    )
    processor = grid_processor("Glm5NextProcessor", tokenizer, TEMPLATE, patch=14, image="Glm5Next", video="Glm5Next")
    processor.image_processor.min_image_tokens = 4
    processor.image_processor.max_image_tokens = 16
    return Parts(config, processor, END)
