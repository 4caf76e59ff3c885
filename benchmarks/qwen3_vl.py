"""A Qwen3-VL of about 20M parameters with random weights: small enough for a CPU, and glance-vlm reads it."""

from __future__ import annotations

from typing import Any

from benchmarks.model import CACHE, cached, tokenizer_of

__all__ = ["SIDES", "build"]

SIDES = (512, 384)  # pixels of a picture: 16 x 12 positions
VOCABULARY = 10_000
PATCH, MERGE = 16, 2
SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|endoftext|>",
)
NAMED = dict(zip(("vision_start_token", "vision_end_token", "image_token", "video_token"), SPECIAL[2:6], strict=True))
# Words of the prompts that a real vocabulary has, so that a question is as short as there.
FURTHER = ("user", "assistant", "Image", "Question", "Answer", "\u0120Is", "\u0120or")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.content is string %}"
    "{{ message.content }}{% else %}{% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
        "rope_theta": 10_000.0,
    },
    "tie_word_embeddings": True,
}
VISION = {
    "depth": 4,
    "hidden_size": 256,
    "out_hidden_size": 384,
    "intermediate_size": 512,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [1, 3],
}


def build(dtype: str) -> tuple[Any, Any]:
    """The model and its processor, both transformers' own.

    Args:
        dtype: ``"float32"`` or ``"bfloat16"``.
    """
    import transformers as hf

    tokenizer = tokenizer_of(VOCABULARY, SPECIAL, NAMED, FURTHER)
    patches = {"patch_size": PATCH, "temporal_patch_size": 2, "merge_size": MERGE}
    processor = hf.Qwen3VLProcessor(
        image_processor=hf.Qwen2VLImageProcessor(
            **patches, size={"shortest_edge": 64 * (PATCH * MERGE) ** 2, "longest_edge": 768 * (PATCH * MERGE) ** 2}
        ),
        tokenizer=tokenizer,
        video_processor=hf.Qwen3VLVideoProcessor(**patches),
        chat_template=TEMPLATE,
    )
    config = hf.Qwen3VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
        vision_config=VISION,
        tie_word_embeddings=True,
        **{f"{name}_id": getattr(tokenizer, f"{name}_id") for name in NAMED},
    )
    model = cached(hf.Qwen3VLForConditionalGeneration, config, dtype, CACHE / f"qwen3_vl-{dtype}-{len(tokenizer)}")
    model.generation_config = hf.GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return model, processor
