"""Families unlike the others: Molmo 2, Muse, MiniMax M3, Step 3.7, Perception LM, FastVLM, Video-LLaVA, MiniCPM-OCR."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.chat_formats import (
    chatml_template,
    llama3_template,
    llama3_tokenizer,
    qwen_tokenizer,
    vicuna_template,
    vicuna_tokenizer,
)
from vlmprobe.testing.tiny.families.patchwise import minicpm_v
from vlmprobe.testing.tiny.grids import grid_processor
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.templates import chat
from vlmprobe.testing.tiny.text_configs import decoder
from vlmprobe.testing.tiny.tokenizers import byte_level
from vlmprobe.testing.tiny.vision_configs import square, tower

__all__: list[str] = []

END = ("<|im_end|>", "<|endoftext|>")
WINDOWED = ["sliding_attention", "sliding_attention", "full_attention"]


@family("video_llava")
def _video_llava() -> Parts:
    tokenizer = vicuna_tokenizer(image_token="<image>", video_token="<video>")
    size: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": square(32)}
    processor = hf.VideoLlavaProcessor(
        image_processor=hf.VideoLlavaImageProcessor(**size),
        video_processor=hf.VideoLlavaVideoProcessor(**size),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=vicuna_template(),
    )
    config = hf.VideoLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**tower(layers=3)),
        text_config=hf.LlamaConfig(**decoder(tokenizer)),
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_seq_length=16,
    )
    return Parts(config, processor, ("</s>",))


@family(
    "perception_lm",
    packages=("timm",),
    batching=False,
    notes="Its processor cannot stack images that were split into different numbers of tiles.",
)
def _perception_lm() -> Parts:
    tokenizer = llama3_tokenizer(image_token="<|image|>", video_token="<|video|>")
    processor = hf.PerceptionLMProcessor(
        image_processor=hf.PerceptionLMImageProcessor(tile_size=32, max_num_tiles=4, size=square(32)),
        video_processor=hf.PerceptionLMVideoProcessor(size=square(32)),
        tokenizer=tokenizer,
        patch_size=8,
        pooling_ratio=2,
        chat_template=llama3_template("<|image|>"),
    )
    config = hf.PerceptionLMConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "do_pooling": True,
            "num_classes": 1,
            "model_args": {
                "embed_dim": 32,
                "img_size": [32, 32],
                "patch_size": 8,
                "depth": 2,
                "num_heads": 2,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": [4, 4],
            },
        },
        text_config=hf.LlamaConfig(**decoder(tokenizer)),
        vision_use_cls_token=True,
        projector_pooling_ratio=2,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    return Parts(config, processor, ("<|eot_id|>", "<|end_of_text|>"))


@family("fast_vlm", packages=("timm",), notes="The vision tower is timm's test_efficientnet instead of FastViT.")
def _fast_vlm() -> Parts:
    tokenizer = qwen_tokenizer(image_token="<image>")
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 128}, crop_size=square(128)),
        tokenizer=tokenizer,
        patch_size=32,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=chatml_template("<image>\n"),
    )
    config = hf.FastVlmConfig(
        vision_config={
            "model_type": "timm_wrapper",
            "architecture": "test_efficientnet",
            "do_pooling": True,
            "num_classes": 1,
            "hidden_size": 256,
            "image_size": 128,
        },
        text_config=hf.Qwen2Config(**decoder(tokenizer)),
        image_token_index=processor.image_token_id,
        image_seq_length=16,
    )
    return Parts(config, processor, END)


@family("minicpm_ocr")
def _minicpm_ocr() -> Parts:
    return minicpm_v("Ocr", "MiniCPMOcr")


@family("molmo2", notes="The tokenizer has more entries than the head: an image's markers have no logit.")
def _molmo2() -> Parts:
    marks = (
        "<im_start>",
        "<im_end>",
        "<im_patch>",
        "<im_col>",
        "<low_res_im_start>",
        "<|image|>",
        "<im_low>",
        "<frame_start>",
        "<frame_end>",
        "<|video|>",
    )
    tokenizer = qwen_tokenizer(cls="PreTrainedTokenizerFast", image_token="<|image|>", video_token="<|video|>")
    base = len(tokenizer) - 2
    tokenizer.add_tokens([mark for mark in marks if mark not in tokenizer.get_vocab()], special_tokens=True)
    ids = tokenizer.convert_tokens_to_ids
    processor = hf.Molmo2Processor(
        image_processor=hf.Molmo2ImageProcessor(
            size=square(32), max_crops=2, overlap_margins=[1, 1], patch_size=8, pooling_size=[2, 2]
        ),
        video_processor=hf.Molmo2VideoProcessor(size=square(32), patch_size=8, pooling_size=[2, 2]),
        tokenizer=tokenizer,
        chat_template=chatml_template("<|image|>", images_first=True),
    )
    config = hf.Molmo2Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "image_size": [32, 32],
            "patch_size": 8,
        },
        adapter_config={
            "vision_feature_layer": [-1, -2],
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 64,
            "text_hidden_size": 64,
        },
        text_config=decoder(tokenizer, head_dim=16, vocab_size=base, additional_vocab_size=len(tokenizer) - base),
        image_start_token_id=ids("<im_start>"),
        low_res_image_start_token_id=ids("<low_res_im_start>"),
        image_end_token_id=ids("<im_end>"),
        image_patch_id=ids("<im_patch>"),
        frame_start_token_id=ids("<frame_start>"),
        frame_end_token_id=ids("<frame_end>"),
    )
    return Parts(config, processor, END)


def _muse_vision() -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 14,
        "pos_emb_height": 8,
        "pos_emb_width": 8,
        "max_position_embeddings": 64,
        "layer_types": ["window_attention", "full_attention"],
    }


def _muse_tokenizer() -> Any:
    return llama3_tokenizer(
        "<|image_start|>",
        "<|image_end|>",
        "<|patch|>",
        "<|video|>",
        "<|audio|>",
        "<|soft_audio_start|>",
        "<|soft_audio_end|>",
    )


@family("muse_glimmer")
def _muse_glimmer() -> Parts:
    tokenizer = _muse_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    processor = hf.MuseGlimmerProcessor(
        image_processor=hf.MuseGlimmerImageProcessor(patch_size=14, max_image_tokens=16),
        video_processor=hf.MuseGlimmerVideoProcessor(patch_size=14),
        tokenizer=tokenizer,
        chat_template=llama3_template("<|patch|>"),
    )
    config = hf.MuseGlimmerConfig(
        vision_config=_muse_vision(),
        text_config=decoder(
            tokenizer,
            head_dim=16,
            sliding_window=12,
            layer_types=WINDOWED,
            final_logit_softcapping=5.0,
            output_multiplier=1.5,
            qk_scale_factor=2.0,
        ),
        image_token_id=ids("<|patch|>"),
        video_token_id=ids("<|video|>"),
        out_hidden_size=128,
        projector_hidden_size=64,
    )
    return Parts(config, processor, ("<|eot_id|>", "<|end_of_text|>"))


@family("muse_spark")
def _muse_spark() -> Parts:
    tokenizer = _muse_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    processor = hf.MuseSparkProcessor(
        image_processor=hf.MuseGlimmerImageProcessor(patch_size=14, max_image_tokens=16),
        video_processor=hf.MuseGlimmerVideoProcessor(patch_size=14),
        tokenizer=tokenizer,
        feature_extractor=hf.MuseSparkFeatureExtractor(),
        chat_template=llama3_template("<|patch|>"),
    )
    config = hf.MuseSparkConfig(
        vision_config=_muse_vision(),
        audio_config={"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "out_hidden_size": 64},
        text_config=decoder(
            tokenizer,
            head_dim=16,
            sliding_window=12,
            layer_types=WINDOWED,
            final_logit_softcapping=5.0,
            output_multiplier=1.5,
            qk_scale_factor=2.0,
            moe_intermediate_size=32,
            moe_hidden_size=32,
            num_local_experts=4,
            num_experts_per_tok=2,
            mlp_layer_types=["dense", "sparse", "sparse"],
        ),
        image_token_id=ids("<|patch|>"),
        video_token_id=ids("<|video|>"),
        audio_token_id=ids("<|audio|>"),
        out_hidden_size=128,
        projector_hidden_size=64,
    )
    return Parts(config, processor, ("<|eot_id|>", "<|end_of_text|>"))


@family("minimax_m3_vl", since="5.23.0", before="an image changes the features of the one next to it")
def _minimax_m3_vl() -> Parts:
    marks = ("]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>[")
    tokenizer = byte_level(
        specials=("]~!b[", "]~b]", "[e~[", *marks),
        bos="]~!b[",
        eos="[e~[",
        pad="]~!b[",
    )
    ids = tokenizer.convert_tokens_to_ids
    roles = {
        "system": ("]~b]system\n", "[e~[\n"),
        "user": ("]~b]user\n", "[e~[\n"),
        "assistant": ("]~b]ai\n", "[e~[\n"),
    }
    template = chat(roles, start="]~!b[", generation="]~b]ai\n", image="]<]image[>[")
    config = hf.MiniMaxM3VLConfig(
        vision_config=tower(image=112, patch=14),
        text_config=decoder(
            tokenizer,
            head_dim=16,
            rotary_dim=8,
            num_local_experts=4,
            num_experts_per_tok=2,
            dense_intermediate_size=96,
            shared_intermediate_size=32,
            mlp_layer_types=["dense", "sparse", "sparse"],
            index_n_heads=2,
            index_head_dim=16,
            index_block_size=4,
            index_topk_blocks=64,
            layer_types=["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
        ),
        image_token_index=ids("]<]image[>["),
        video_token_index=ids("]<]video[>["),
        projector_hidden_size=64,
    )
    processor = grid_processor(
        "MiniMaxM3VLProcessor", tokenizer, template, patch=14, image="MiniMaxM3VL", video="MiniMaxM3VL"
    )
    return Parts(config, processor, ("[e~[",))


@family("step3p7")
def _step3p7() -> Parts:
    tokenizer = qwen_tokenizer(
        "<im_patch>",
        "<im_start>",
        "<im_end>",
        "<patch_start>",
        "<patch_end>",
        "<patch_newline>",
        cls="PreTrainedTokenizerFast",
    )
    processor = hf.Step3p7Processor(
        image_processor=hf.Step3p7ImageProcessor(
            size=square(64), patch_size=32, max_image_size=128, vision_patch_size=8, downsampler_stride=4
        ),
        tokenizer=tokenizer,
        chat_template=chatml_template("<im_patch>"),
    )
    config = hf.Step3p7Config(
        vision_config={**tower(image=64), "mlp_ratio": 2.0, "max_position_embeddings": 64},
        text_config=decoder(
            tokenizer,
            head_dim=16,
            sliding_window=12,
            layer_types=WINDOWED,
            mlp_layer_types=["dense", "sparse", "sparse"],
            moe_intermediate_size=32,
            n_routed_experts=4,
            num_local_experts=4,
            num_experts_per_tok=2,
            share_expert_dim=32,
        ),
        image_token_id=processor.image_token_id,
    )
    return Parts(config, processor, END)
