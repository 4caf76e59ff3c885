"""Document readers, and families with similar processors: ERNIE 4.5 VL, PaddleOCR-VL, HunYuan VL, Hy 4."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.grids import grid_processor, mrope
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.templates import chat
from vlmprobe.testing.tiny.text_configs import decoder, latent
from vlmprobe.testing.tiny.tokenizers import byte_level, sentence_piece
from vlmprobe.testing.tiny.vision_configs import tower

__all__: list[str] = []

ERNIE = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}
ERNIE_IMAGE = "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"


def _ernie_tokenizer() -> Any:
    return sentence_piece(
        "LlamaTokenizer",
        specials=("<|begin_of_sentence|>", "<|end_of_sentence|>", *ERNIE.values()),
        bos="<|begin_of_sentence|>",
        eos="</s>",
        pad="<unk>",
        add_bos=False,
        named=ERNIE,
    )


def _ernie_template(image: str) -> str:
    # The generation prompt ends in a space, which may merge with the first token of the answer.
    roles = {
        "system": ("", "\n"),
        "user": ("User: ", "\n"),
        "assistant": ("Assistant: ", "<|end_of_sentence|>"),
    }
    return chat(roles, start="<|begin_of_sentence|>", generation="Assistant: ", image=image)


@family("ernie4_5_vl_moe")
def _ernie4_5_vl_moe() -> Parts:
    tokenizer = _ernie_tokenizer()
    config = hf.Ernie4_5_VLMoeConfig(
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 14},
        text_config=decoder(
            tokenizer,
            rope_parameters=mrope(3, 3, 2),
            moe_intermediate_size=[32, 16],
            moe_k=2,
            moe_num_experts=4,
            moe_num_shared_experts=1,
            mlp_layer_types=["dense", "sparse", "sparse"],
        ),
        **{f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in ERNIE.items()},
    )
    processor = grid_processor(
        "Ernie4_5_VLMoeProcessor",
        tokenizer,
        _ernie_template(f"Picture 1:{ERNIE_IMAGE}"),
        patch=14,
        image="Ernie4_5_VLMoe",
        video="Ernie4_5_VLMoe",
        frames=1,
        temporal_patch_size=2,  # the video processor supports no other
        draw_on_frames=False,  # drawing needs a font file in the folder
    )
    return Parts(config, processor, ("</s>", "<|end_of_sentence|>"))


@family("paddleocr_vl")
def _paddleocr_vl() -> Parts:
    tokenizer = _ernie_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    config = hf.PaddleOCRVLConfig(
        vision_config=tower(image=56, patch=14),
        text_config=decoder(tokenizer, head_dim=16, rope_parameters=mrope(2, 3, 3)),
        image_token_id=ids("<|IMAGE_PLACEHOLDER|>"),
        video_token_id=ids("<|VIDEO_PLACEHOLDER|>"),
        vision_start_token_id=ids("<|IMAGE_START|>"),
        vision_end_token_id=ids("<|IMAGE_END|>"),
    )
    processor = grid_processor(
        "PaddleOCRVLProcessor",
        tokenizer,
        _ernie_template(ERNIE_IMAGE),
        patch=14,
        image="PaddleOCRVL",
        video=None,
        frames=1,
    )
    return Parts(config, processor, ("</s>", "<|end_of_sentence|>"))


@family(
    "hunyuan_vl",
    batching=False,
    notes="Its positions count images over the whole batch, not per prompt: batched rows differ from single ones "
    "(0.014 in a logit).",
)
def _hunyuan_vl() -> Parts:
    marks = {
        "image_token": "<｜hy_place▁holder▁no▁102｜>",
        "image_start_token": "<｜hy_place▁holder▁no▁100｜>",
        "image_end_token": "<｜hy_place▁holder▁no▁101｜>",
    }
    tokenizer = byte_level(
        "Qwen2Tokenizer",
        specials=(
            "<｜hy_begin▁of▁sentence｜>",
            "<｜hy_end▁of▁sentence｜>",
            "<｜hy_▁pad▁｜>",
            "<｜hy_User｜>",
            "<｜hy_Assistant｜>",
            "<｜hy_place▁holder▁no▁3｜>",
            "<｜hy_place▁holder▁no▁103｜>",
            *marks.values(),
        ),
        bos="<｜hy_begin▁of▁sentence｜>",
        eos="<｜hy_Assistant｜>",
        pad="<｜hy_▁pad▁｜>",
        named=marks,
    )
    ids = tokenizer.convert_tokens_to_ids
    template = chat(
        {
            "system": ("", "<｜hy_place▁holder▁no▁3｜>"),
            "user": ("", "<｜hy_User｜>"),
            "assistant": ("", "<｜hy_Assistant｜>"),
        },
        start="<｜hy_begin▁of▁sentence｜>",
        generation="",
        image=marks["image_start_token"] + marks["image_token"] + marks["image_end_token"],
    )
    config = hf.HunYuanVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "out_hidden_size": 64,
            "text_hidden_size": 64,
            "patch_size": 16,
            "max_image_size": 128,
            "min_image_size": 32,
        },
        text_config=decoder(tokenizer, head_dim=16, rope_parameters=mrope(2, 2, 2, 2)),
        image_token_id=ids(marks["image_token"]),
        im_start_id=ids(marks["image_start_token"]),
        im_end_id=ids(marks["image_end_token"]),
        im_newline_id=ids("<｜hy_place▁holder▁no▁103｜>"),
    )
    processor = grid_processor(
        "HunYuanVLProcessor", tokenizer, template, patch=16, image="HunYuanVL", video=None, frames=1
    )
    return Parts(config, processor, ("<｜hy_Assistant｜>", "<｜hy_end▁of▁sentence｜>"))


@family("hy_v4_vl", notes="Its sparse attention selects 16 positions, fewer than most prompts with an image have.")
def _hy_v4_vl() -> Parts:
    begin, end, pad = "<｜hy_begin▁of▁sentence｜>", "<｜hy_end▁of▁sentence｜>", "<｜hy_▁pad▁｜>"
    marks = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    around = ("<|vision_start|>", "<|vision_end|>")
    tokenizer = byte_level(
        "PreTrainedTokenizerFast",
        specials=(begin, end, pad, "<｜hy_User｜>", "<｜hy_Assistant｜>", *around, *marks.values()),
        bos=begin,
        eos=end,
        pad=pad,
        named=marks,
    )
    template = chat(
        {"system": ("", ""), "user": ("<｜hy_User｜>", ""), "assistant": ("<｜hy_Assistant｜>", end)},
        start=begin,
        generation="<｜hy_Assistant｜>",
        image=marks["image_token"].join(around),
    )
    config = hf.HYV4VLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "out_hidden_size": 64,
            "patch_size": 16,
            "max_image_size": 128,
        },
        text_config=decoder(
            tokenizer,
            **latent(q_lora_rank=24),
            routed_scaling_factor=1.0,
            rope_parameters=mrope(2, 1, 1),
            index_topk=16,
            index_head_dim=16,
            # Positions whose score is zero in every head tie, and a tie may be broken differently on a cache. With 32
            # heads, the configuration's default, the suite meets none; with 8 it met one, which moved a logit by 0.85.
            index_n_heads=32,
            indexer_types=["full", "full", "shared"],
            hc_mult=2,
        ),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    processor = grid_processor(
        "HYV4VLProcessor", tokenizer, template, patch=16, image="HYV4VL", video="HYV4VL", frames=1
    )
    return Parts(config, processor, (end,))
