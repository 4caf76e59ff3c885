"""InternVL, LLaVA, Qwen2-VL, Qwen2.5-VL and Mllama."""

from __future__ import annotations

from typing import Any

import transformers as hf

from vlmprobe.testing.tiny.registry import Parts, family
from vlmprobe.testing.tiny.templates import CHATML, LLAMA3, chat
from vlmprobe.testing.tiny.text import decoder
from vlmprobe.testing.tiny.tokenizers import byte_level, sentence_piece
from vlmprobe.testing.tiny.vision import tower

__all__: list[str] = []

QWEN_SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


@family("internvl")
def _internvl() -> Parts:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = byte_level(
        "Qwen2Tokenizer",
        specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        named=named,
    )
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(
            size={"height": 32, "width": 32}, crop_to_patches=True, min_patches=1, max_patches=4
        ),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size={"height": 32, "width": 32}),
        image_seq_length=4,
        chat_template=chat(CHATML, generation="<|im_start|>assistant\n", image="<IMG_CONTEXT>\n"),
    )
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**tower(use_qk_norm=True, norm_type="layer_norm")),
        text_config=hf.Qwen2Config(**decoder(tokenizer, tie_word_embeddings=True)),
        image_token_id=processor.image_token_id,
        image_seq_length=4,
        tie_word_embeddings=True,
    )
    return Parts(config, processor, ("<|im_end|>", "<|endoftext|>"))


@family("llava")
def _llava() -> Parts:
    tokenizer = sentence_piece(specials=("<image>", "<pad>"), pad="<pad>", named={"image_token": "<image>"})
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=True
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat(
            {"system": ("", " "), "user": ("USER: ", " "), "assistant": ("ASSISTANT: ", "</s>")},
            generation="ASSISTANT:",
            image="<image>\n",
            images_first=True,
        ),
    )
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**tower(layers=3)),
        text_config=hf.LlamaConfig(**decoder(tokenizer, rms_norm_eps=1e-5)),
        image_token_index=processor.image_token_id,
        image_seq_length=16,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return Parts(config, processor, ("</s>",))


def qwen_processor(name: str, tokenizer: Any, *, patch: int, **template: Any) -> Any:
    """The processor of a Qwen-VL generation, for pictures of 4 to 16 merged patches."""
    area = (2 * patch) ** 2
    sizes = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2}
    video = hf.Qwen3VLVideoProcessor if "Qwen3" in name else hf.Qwen2VLVideoProcessor
    return getattr(hf, name)(
        image_processor=hf.Qwen2VLImageProcessor(size={"shortest_edge": 4 * area, "longest_edge": 16 * area}, **sizes),
        tokenizer=tokenizer,
        video_processor=video(size={"shortest_edge": 4 * area, "longest_edge": 16 * area}, **sizes),
        chat_template=chat(
            CHATML,
            generation="<|im_start|>assistant\n",
            image="<|vision_start|><|image_pad|><|vision_end|>",
            **template,
        ),
    )


def qwen_tokenizer() -> Any:
    """Byte-level BPE with the special tokens of Qwen-VL."""
    return byte_level(
        "Qwen2Tokenizer",
        specials=QWEN_SPECIALS,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        named={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )


def qwen_ids(tokenizer: Any) -> dict[str, int]:
    """The ids that the configurations of Qwen-VL and its relatives name."""
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }


def mrope(*section: int) -> dict[str, Any]:
    """Rotary positions over time, height and width; the sections add up to half a head's width."""
    return {"rope_type": "default", "mrope_section": list(section), "rope_theta": 10000.0}


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
    processor = qwen_processor("Qwen2VLProcessor", tokenizer, patch=14, default_system=QWEN_SYSTEM)
    return Parts(config, processor, ("<|im_end|>", "<|endoftext|>"))


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
    processor = qwen_processor("Qwen2_5_VLProcessor", tokenizer, patch=14, default_system=QWEN_SYSTEM)
    return Parts(config, processor, ("<|im_end|>", "<|endoftext|>"))


@family("mllama")
def _mllama() -> Parts:
    tokenizer = byte_level(
        specials=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|finetune_right_pad_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eom_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
            "<|image|>",
        ),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        add_bos=True,
    )
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    processor = hf.MllamaProcessor(
        image_processor=hf.MllamaImageProcessor(size={"height": 32, "width": 32}, max_image_tiles=4),
        tokenizer=tokenizer,
        chat_template=chat(
            LLAMA3,
            start="<|begin_of_text|>",
            generation="<|start_header_id|>assistant<|end_header_id|>\n\n",
            image="<|image|>",
        ),
    )
    config = hf.MllamaConfig(
        vision_config={
            **tower(layers=3, heads=2),
            "attention_heads": 2,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
            "max_num_tiles": 4,
        },
        # The image id is the first beyond the head's rows, and the embedding has eight rows more than the head.
        text_config={
            **decoder(tokenizer, layers=4, vocab_size=image, rms_norm_eps=1e-5),
            "cross_attention_layers": [1, 3],
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        },
        image_token_index=image,
    )
    return Parts(config, processor, ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"))
