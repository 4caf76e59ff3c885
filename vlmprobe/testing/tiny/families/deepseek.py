"""DeepSeek-VL, Janus, Aria, Emu 3, Apertus 1.5 and Llama 4: other ways of turning images into tokens."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.chat_formats import llama3_tokenizer
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.templates import CHATML, chat
from vlmprobe.testing.tiny.text_configs import decoder
from vlmprobe.testing.tiny.tokenizers import byte_level, sentence_piece
from vlmprobe.testing.tiny.vision_configs import square, tower

__all__: list[str] = []

MARKS = {
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
ROLES = {"system": ("", "\n\n"), "user": ("User: ", "\n\n"), "assistant": ("Assistant: ", END)}


def _tokenizer() -> Any:
    return byte_level(
        specials=(BEGIN, END, "<｜▁pad▁｜>", *MARKS.values()),
        bos=BEGIN,
        eos=END,
        pad="<｜▁pad▁｜>",
        add_bos=True,
        named=MARKS,
    )


def _template(image: str) -> str:
    return chat(ROLES, start=BEGIN, generation="Assistant:", image=image)


@family("deepseek_vl")
def _deepseek_vl() -> Parts:
    tokenizer = _tokenizer()
    processor = hf.DeepseekVLProcessor(
        image_processor=hf.DeepseekVLImageProcessor(size=square(32)),
        tokenizer=tokenizer,
        num_image_tokens=16,
        chat_template=_template("<image_placeholder>"),
    )
    config = hf.DeepseekVLConfig(
        vision_config=hf.SiglipVisionConfig(**tower(vision_use_head=False)),
        text_config=hf.LlamaConfig(**decoder(tokenizer)),
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
    )
    return Parts(config, processor, (END,))


@family("deepseek_vl_hybrid")
def _deepseek_vl_hybrid() -> Parts:
    tokenizer = _tokenizer()
    processor = hf.DeepseekVLHybridProcessor(
        image_processor=hf.DeepseekVLHybridImageProcessor(size=square(32), high_res_size=square(64)),
        tokenizer=tokenizer,
        num_image_tokens=16,
        chat_template=_template("<image_placeholder>"),
    )
    config = hf.DeepseekVLHybridConfig(
        vision_config=hf.SiglipVisionConfig(**tower(vision_use_head=False)),
        high_res_vision_config={
            "model_type": "sam_vision_model",
            "hidden_size": 32,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 64,
        },
        text_config=hf.LlamaConfig(**decoder(tokenizer)),
        image_token_id=processor.image_token_id,
        tie_word_embeddings=False,
    )
    return Parts(config, processor, (END,))


@family("janus")
def _janus() -> Parts:
    tokenizer = _tokenizer()
    processor = hf.JanusProcessor(
        image_processor=hf.JanusImageProcessor(size=square(32)),
        tokenizer=tokenizer,
        num_image_tokens=16,
        chat_template=_template("<image_placeholder>\n"),
    )
    config = hf.JanusConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "mlp_ratio": 2.0,
            "projection_dim": 64,
            "num_image_tokens": 16,
        },
        vq_config={
            "num_embeddings": 16,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "num_patches": 4,
            "projection_dim": 64,
            "image_token_embed_dim": 64,
        },
        text_config=hf.LlamaConfig(**decoder(tokenizer)),
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    return Parts(config, processor, (END,))


@family("aria", notes="Images are scaled to 980 pixels; an image has 256 tokens.")
def _aria() -> Parts:
    tokenizer = sentence_piece(
        specials=("<|im_start|>", "<|im_end|>", "<fim_prefix>", "<fim_suffix>", "<|img|>", "<pad>"),
        eos="<|im_end|>",
        pad="<pad>",
        add_bos=False,
        named={"image_token": "<|img|>"},
    )
    processor = hf.AriaProcessor(
        image_processor=hf.AriaImageProcessor(max_image_size=980, min_image_size=336),
        tokenizer=tokenizer,
        size_conversion={490: 128, 980: 256},
        chat_template=chat(CHATML, generation="<|im_start|>assistant\n", image="<fim_prefix><|img|><fim_suffix>"),
    )
    config = hf.AriaConfig(
        vision_config=hf.Idefics3VisionConfig(**tower(width=16, image=980, patch=70)),
        text_config=hf.AriaTextConfig(
            **decoder(tokenizer, intermediate_size=32, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
        ),
        projector_patch_to_query_dict={196: 256},
        image_token_index=processor.image_token_id,
    )
    return Parts(config, processor, ("<|im_end|>", "</s>"))


@family(
    "llama4",
    positions=True,
    notes="Its processor returns bfloat16 pixels whatever the model's dtype.",
    broken={"5.24.0": "its own forward fails after the language model has run"},
)
def _llama4() -> Parts:
    tokenizer = llama3_tokenizer(
        "<|begin_of_text|>",
        "<|header_start|>",
        "<|header_end|>",
        "<|eot|>",
        "<|image_start|>",
        "<|image_end|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
        "<|image|>",
        "<|patch|>",
    )
    ids = tokenizer.convert_tokens_to_ids
    roles = {role: (f"<|header_start|>{role}<|header_end|>\n\n", "<|eot|>") for role in ("system", "user", "assistant")}
    processor = hf.Llama4Processor(
        image_processor=hf.Llama4ImageProcessor(size=square(32), max_patches=4),
        tokenizer=tokenizer,
        patch_size=8,
        pixel_shuffle_ratio=0.5,
        chat_template=chat(
            roles,
            start="<|begin_of_text|>",
            generation="<|header_start|>assistant<|header_end|>\n\n",
            image="<|image|>",
        ),
    )
    config = hf.Llama4Config(
        vision_config={
            **tower(),
            "intermediate_size": 128,
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        text_config=decoder(
            tokenizer,
            layers=4,
            head_dim=16,
            intermediate_size_mlp=96,
            num_local_experts=4,
            interleave_moe_layer_step=2,
            attention_chunk_size=16,
            no_rope_layers=[1, 1, 1, 0],
            pad_token_id=None,
        ),
        boi_token_index=ids("<|image_start|>"),
        eoi_token_index=ids("<|image_end|>"),
        image_token_index=ids("<|patch|>"),
    )
    return Parts(config, processor, ("<|eot|>", "<|end_of_text|>"))


@family(
    "emu3",
    batching=False,
    notes="Images become tokens of a codebook, one id per patch. In a batch they are padded to the largest, which "
    "changes the codes of the others (1.9 in a logit).",
)
def _emu3() -> Parts:
    codes = tuple(f"<|visual token {code:06d}|>" for code in range(16))
    named = {
        "image_token": "<image>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eof_token": "<|extra_201|>",
    }
    tokenizer = byte_level(
        specials=("<|extra_203|>", "<|extra_204|>", "<|endoftext|>", "<|extra_200|>", *named.values(), *codes),
        bos="<|extra_203|>",
        eos="<|extra_204|>",
        pad="<|endoftext|>",
        named=named,
    )
    roles = {"system": ("", "\n"), "user": ("USER: ", " "), "assistant": ("ASSISTANT: ", "<|extra_204|>")}
    processor = hf.Emu3Processor(
        image_processor=hf.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64, spatial_factor=8),
        tokenizer=tokenizer,
        chat_template=chat(roles, generation="ASSISTANT:", image="<image>", images_first=True),
    )
    names = ("<image>", "<|extra_200|>", *codes)
    config = hf.Emu3Config(
        vq_config={
            "codebook_size": len(codes),
            "embed_dim": 4,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "hidden_size": 32,
        },
        text_config=decoder(tokenizer, attention_dropout=0.0),
        vocabulary_map={name: tokenizer.convert_tokens_to_ids(name) for name in names},
    )
    return Parts(config, processor, ("<|extra_204|>",))


@family(
    "apertus1p5",
    notes="Images become tokens of a codebook, each at its own size. As in the released checkpoints, the head does not "
    "cover those tokens: they have no logit.",
)
def _apertus1p5() -> Parts:
    named = {
        "image_token": "<|image|>",
        "audio_token": "<|audio|>",
        "boi_token": "<|image start|>",
        "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>",
        "eol_token": "<|image eol|>",
        "boa_token": "<|audio start|>",
        "eoa_token": "<|audio end|>",
    }
    roles = {role: (f"<|{role}_start|>", f"<|{role}_end|>") for role in ("system", "user", "assistant")}
    seen = tuple(f"<|visual token {code}|>" for code in range(16))
    heard = tuple(f"<|audio token {code}|>" for code in range(8))
    turns = tuple(mark for pair in roles.values() for mark in pair)
    tokenizer = byte_level(
        specials=("<unk>", "<s>", "</s>", "<pad>", *turns, *named.values(), *seen, *heard),
        bos="<s>",
        eos="<|assistant_end|>",
        pad="<pad>",
        unk="<unk>",
        add_bos=True,
        named=named,
    )
    ids = tokenizer.convert_tokens_to_ids
    processor = hf.Apertus1p5Processor(
        image_processor=hf.Apertus1p5ImageProcessor(
            size={"min_pixels": 32 * 32, "max_pixels": 64 * 64}, spatial_factor=8
        ),
        feature_extractor=hf.WavTokenizerFeatureExtractor(hop_length=16, normalize_audio=True),
        tokenizer=tokenizer,
        chat_template=chat(roles, start="<s>", generation="<|assistant_start|>", image="<|image|>"),
    )
    config = hf.Apertus1p5Config(
        vision_config={
            "codebook_size": len(seen),
            "embed_dim": 4,
            "latent_channels": 4,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [],
        },
        audio_config={
            "model_type": "wavtokenizer_encoder",
            "num_filters": 2,
            "upsampling_ratios": [2, 2, 2, 2],
            "hidden_size": 8,
            "codebook_dim": 8,
            "codebook_size": len(heard),
        },
        text_config=decoder(tokenizer, max_position_embeddings=65536, output_vocab_size=ids(seen[0])),
        image_token_id=ids("<|image|>"),
        audio_token_id=ids("<|audio|>"),
        image_token_offset=ids(seen[0]),
        audio_token_offset=ids(heard[0]),
    )
    return Parts(config, processor, ("<|assistant_end|>", "</s>"))
