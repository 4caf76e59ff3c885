"""LLaVA and the families derived from it: a CLIP or SigLIP tower, a projector, a decoder."""

from __future__ import annotations

from vlmprobe.testing.tiny.chat_formats import (
    chatml_template,
    llama3_template,
    llama3_tokenizer,
    qwen_tokenizer,
    vicuna_template,
    vicuna_tokenizer,
)
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.templates import chat
from vlmprobe.testing.tiny.text_configs import decoder
from vlmprobe.testing.tiny.tokenizers import byte_level
from vlmprobe.testing.tiny.vision_configs import square, tower

__all__: list[str] = []

GRID = [[32, 64], [64, 32], [64, 64]]  # the sizes at which images are cut into squares of 32 pixels


@family("internvl")
def _internvl() -> Parts:
    tokenizer = qwen_tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=square(32), crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=square(32)),
        image_seq_length=4,
        chat_template=chatml_template("<IMG_CONTEXT>\n"),
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
    tokenizer = vicuna_tokenizer()
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square(32)),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=vicuna_template(),
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


@family("llava_next")
def _llava_next() -> Parts:
    tokenizer = vicuna_tokenizer()
    processor = hf.LlavaNextProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size=square(32), image_grid_pinpoints=GRID
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        # The space at the end is the trap: it may merge with the first token of the answer.
        chat_template=vicuna_template(generation="ASSISTANT: "),
    )
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**tower(layers=3)),
        # Mistral, as in the 1.6 release of that name; its window is shorter than any prompt with an image.
        text_config=hf.MistralConfig(**decoder(tokenizer, sliding_window=24, head_dim=16)),
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=GRID,
        image_seq_length=16,
    )
    return Parts(config, processor, ("</s>",))


@family("llava_next_video")
def _llava_next_video() -> Parts:
    tokenizer = vicuna_tokenizer(image_token="<image>", video_token="<video>")
    processor = hf.LlavaNextVideoProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size=square(32), image_grid_pinpoints=GRID
        ),
        tokenizer=tokenizer,
        video_processor=hf.LlavaNextVideoVideoProcessor(size={"shortest_edge": 32}, crop_size=square(32)),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=vicuna_template(),
    )
    config = hf.LlavaNextVideoConfig(
        vision_config=hf.CLIPVisionConfig(**tower(layers=3)),
        text_config=hf.LlamaConfig(**decoder(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRID,
        image_seq_length=16,
    )
    return Parts(config, processor, ("</s>",))


@family("llava_onevision")
def _llava_onevision() -> Parts:
    tokenizer = qwen_tokenizer(image_token="<image>", video_token="<video>")
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=square(32), image_grid_pinpoints=[[32, 32], *GRID]),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=square(32)),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=chatml_template("<image>\n", images_first=True),
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**tower(vision_use_head=False)),
        text_config=hf.Qwen2Config(**decoder(tokenizer, tie_word_embeddings=True)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[32, 32], *GRID],
        tie_word_embeddings=True,
    )
    return Parts(config, processor, ("<|im_end|>",))


@family("vipllava")
def _vipllava() -> Parts:
    tokenizer = vicuna_tokenizer()
    roles = {"system": ("", "\n"), "user": ("###Human: ", ""), "assistant": ("###Assistant: ", "</s>")}
    processor = hf.LlavaProcessor(
        image_processor=hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square(32)),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat(roles, generation="###Assistant:", image="<image>\n", images_first=True),
    )
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**tower(layers=4)),
        text_config=hf.LlamaConfig(**decoder(tokenizer)),
        image_token_index=processor.image_token_id,
        vision_feature_layers=[-2, -3, -4],
        image_seq_length=16,
    )
    return Parts(config, processor, ("</s>",))


@family("granite4_vision")
def _granite4_vision() -> Parts:
    tokenizer = byte_level(
        specials=("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|pad|>", "<image>"),
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
        pad="<|pad|>",
        named={"image_token": "<image>"},
    )
    roles = {
        role: (f"<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n")
        for role in ("system", "user", "assistant")
    }
    processor = hf.Granite4VisionProcessor(
        image_processor=hf.LlavaNextImageProcessor(
            size=square(32), crop_size=square(32), image_grid_pinpoints=GRID, do_center_crop=False
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        downsample_rate="1/2",
        chat_template=chat(
            roles, generation="<|start_of_role|>assistant<|end_of_role|>", image="<image>\n", images_first=True
        ),
    )
    config = hf.Granite4VisionConfig(
        vision_config=hf.SiglipVisionConfig(**tower(layers=3, width=64, vision_use_head=False)),
        text_config=hf.Granite4VisionTextConfig(
            **decoder(
                tokenizer,
                embedding_multiplier=1.5,
                logits_scaling=1.6,
                residual_multiplier=0.7,
                attention_multiplier=0.3,
            )
        ),
        qformer_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 64,
            "encoder_hidden_size": 64,
            "num_attention_heads": 1,
            "num_hidden_layers": 1,
            "intermediate_size": 64,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
        },
        image_token_index=processor.image_token_id,
        image_grid_pinpoints=GRID,
        image_seq_length=4,
        vision_feature_select_strategy="full",
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0], [-2, 1]],
        spatial_vision_layer=-1,
        spatial_target_layers=[1, 2],
    )
    return Parts(config, processor, ("<|end_of_text|>",))


@family(
    "mllama",
    since="5.19.0",
    before="a repetition penalty fails on its image token, which has no row in the head",
    notes="Its processor refuses a batch in which one prompt has an image and another has none.",
)
def _mllama() -> Parts:
    tokenizer = llama3_tokenizer("<|python_tag|>", "<|image|>")
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    processor = hf.MllamaProcessor(
        image_processor=hf.MllamaImageProcessor(size=square(32), max_image_tiles=4),
        tokenizer=tokenizer,
        chat_template=llama3_template("<|image|>"),
    )
    config = hf.MllamaConfig(
        vision_config={
            **tower(layers=3),
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
