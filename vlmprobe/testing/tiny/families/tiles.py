"""Families of tiles or variable image sizes: Ovis 2, Granite Docling, GOT-OCR 2, Qianfan-OCR, Idefics 2, LightOnOCR."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.chat_formats import (
    chatml_template,
    mistral_template,
    mistral_tokenizer,
    qwen_tokenizer,
    vicuna_tokenizer,
)
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.templates import chat
from vlmprobe.testing.tiny.text_configs import decoder, latent
from vlmprobe.testing.tiny.tokenizers import byte_level
from vlmprobe.testing.tiny.vision_configs import square, tower

__all__: list[str] = []

END = ("<|im_end|>", "<|endoftext|>")


@family("ovis2")
def _ovis2() -> Parts:
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tokenizer = qwen_tokenizer("<image>", "<IMG_ATOM>", *marks)
    ids = tokenizer.convert_tokens_to_ids
    processor = hf.Ovis2Processor(
        image_processor=hf.Ovis2ImageProcessor(size=square(32), crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        image_seq_length=16,
        chat_template=chatml_template("<image>\n"),
    )
    config = hf.Ovis2Config(
        vision_config=hf.Ovis2VisionConfig(**tower(vocab_size=40, hidden_stride=1)),
        text_config=hf.Qwen2Config(**decoder(tokenizer, tie_word_embeddings=True)),
        image_token_id=ids("<IMG_ATOM>"),
        visual_indicator_token_ids=[ids(mark) for mark in marks],
        vocab_size=len(tokenizer),
        hidden_size=64,
        tie_word_embeddings=True,
    )
    return Parts(config, processor, END)


@family("granite_docling")
def _granite_docling() -> Parts:
    rows = tuple(f"<row_{row}_col_{column}>" for row in (1, 2, 3, 4) for column in (1, 2, 3, 4))
    tokenizer = byte_level(
        specials=(
            "<|end_of_text|>",
            "<|start_of_role|>",
            "<|end_of_role|>",
            "<|pad|>",
            "<image>",
            "<fake_token_around_image>",
            "<global-img>",
            *rows,
        ),
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
        pad="<|pad|>",
        named={"image_token": "<image>"},
    )
    roles = {
        role: (f"<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n")
        for role in ("system", "user", "assistant")
    }
    processor = hf.GraniteDoclingProcessor(
        image_processor=hf.GraniteDoclingImageProcessor(size=square(32), max_patches=4),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=chat(roles, generation="<|start_of_role|>assistant<|end_of_role|>", image="<image>"),
    )
    config = hf.GraniteDoclingConfig(
        vision_config={
            **tower(layers=3),
            "out_hidden_size": 64,
            "scale_factor": 2,
            "deepstack_visual_indexes": [0, 1],
            "use_fine_route": False,
        },
        text_config=decoder(
            tokenizer,
            embedding_multiplier=1.5,
            logits_scaling=1.5,
            residual_multiplier=0.7,
            attention_multiplier=0.3,
            tie_word_embeddings=True,
        ),
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Parts(config, processor, ("<|end_of_text|>",))


def _got_vision() -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 128,
        "patch_size": 2,
        "window_size": 8,
        "global_attn_indexes": [],
        "mlp_dim": 32,
    }


@family(
    "got_ocr2",
    text_only=False,
    several_images=False,
    processor_kwargs={"multi_page": True},
    notes="The processor refuses text only, and takes images of a chat with multi_page=True. An image has 256 tokens.",
)
def _got_ocr2() -> Parts:
    tokenizer = qwen_tokenizer("<img>", "</img>", cls="PreTrainedTokenizerFast", image_token="<imgpad>")
    processor = hf.GotOcr2Processor(
        image_processor=hf.GotOcr2ImageProcessor(size=square(128), crop_to_patches=False),
        tokenizer=tokenizer,
        chat_template=chatml_template("<img><imgpad></img>\n"),
    )
    config = hf.GotOcr2Config(
        vision_config=_got_vision(),
        text_config=hf.Qwen2Config(**decoder(tokenizer, tie_word_embeddings=True)),
        image_token_index=processor.image_token_id,
        image_seq_length=256,
        tie_word_embeddings=True,
    )
    return Parts(config, processor, END)


@family(
    "pp_chart2table", text_only=False, notes="Its processor refuses text only; the template writes 256 image tokens."
)
def _pp_chart2table() -> Parts:
    tokenizer = qwen_tokenizer("<img>", "</img>", cls="PreTrainedTokenizerFast", image_token="<imgpad>")
    processor = hf.PPChart2TableProcessor(
        image_processor=hf.PPChart2TableImageProcessor(size=square(128)),
        tokenizer=tokenizer,
        chat_template=chatml_template("<img>" + "<imgpad>" * 256 + "</img>\n"),
    )
    config = hf.PPChart2TableConfig(
        vision_config=_got_vision(),
        text_config=hf.Qwen2Config(**decoder(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        image_seq_length=256,
    )
    return Parts(config, processor, END)


@family("qianfan_ocr")
def _qianfan_ocr() -> Parts:
    tokenizer = qwen_tokenizer(
        "<image>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
    )
    processor = hf.QianfanOCRProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=square(32), crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=chatml_template("<image>\n"),
    )
    config = hf.QianfanOCRConfig(
        vision_config=tower(image=[32, 32], patch=[8, 8]),
        text_config={"model_type": "qwen3", **decoder(tokenizer, head_dim=16)},
        image_token_id=processor.image_token_id,
        image_seq_length=4,
    )
    return Parts(config, processor, END)


@family("idefics2")
def _idefics2() -> Parts:
    tokenizer = vicuna_tokenizer(
        "<end_of_utterance>", image_token="<image>", image_boundary_token="<fake_token_around_image>"
    )
    roles = {
        "system": ("System: ", "<end_of_utterance>\n"),
        "user": ("User: ", "<end_of_utterance>\n"),
        "assistant": ("Assistant: ", "<end_of_utterance>\n"),
    }
    processor = hf.Idefics2Processor(
        image_processor=hf.Idefics2ImageProcessor(size={"shortest_edge": 24, "longest_edge": 64}),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=chat(roles, generation="Assistant:", image="<image>"),
    )
    config = hf.Idefics2Config(
        vision_config=tower(image=64),
        perceiver_config={
            "hidden_size": 64,
            "resampler_n_latents": 4,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 16,
            "num_key_value_heads": 2,
        },
        text_config=hf.MistralConfig(**decoder(tokenizer, head_dim=16, sliding_window=24)),
        image_token_id=processor.image_token_id,
    )
    return Parts(config, processor, ("<end_of_utterance>", "</s>"))


@family("lighton_ocr")
def _lighton_ocr() -> Parts:
    tokenizer = qwen_tokenizer(image_break_token="<|vision_pad|>", image_end_token="<|vision_end|>")
    processor = hf.LightOnOcrProcessor(
        image_processor=hf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=chatml_template("<|image_pad|>"),
    )
    config = hf.LightOnOcrConfig(
        vision_config={"model_type": "pixtral", **tower(image=64)},
        text_config={"model_type": "qwen3", **decoder(tokenizer, head_dim=16, tie_word_embeddings=True)},
        image_token_id=processor.image_token_id,
        tie_word_embeddings=True,
    )
    return Parts(config, processor, END)


@family(
    "mistral_large4",
    positions=True,
    notes="Its queries are scaled by their position: without position_ids a logit differs by 3.9.",
)
def _mistral_large4() -> Parts:
    tokenizer = mistral_tokenizer()
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8}),
        tokenizer=tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=mistral_template(),
    )
    text = {
        **decoder(tokenizer, **latent()),
        "index_topk": 512,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "final_logit_softcapping": 5.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    del text["q_lora_rank"]
    config = hf.MistralLarge4Config(
        vision_config={"model_type": "pixtral", **tower(image=64)},
        text_config=text,
        image_token_index=processor.image_token_id,
    )
    return Parts(config, processor, ("</s>",))
