"""The benchmarked models: one with the dimensions of InternVL2-1B and random weights, and smaller ones."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["SIZES", "build", "picture", "words"]

CACHE = Path(os.environ.get("VLMPROBE_BENCH_CACHE", "~/.cache/vlmprobe/benchmarks")).expanduser()
VOCABULARY = 151_655  # of InternVL2-1B
SIZES: dict[str, dict[str, Any]] = {
    "1b": {
        "vocabulary": VOCABULARY,
        "side": 448,
        "vision": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": [14, 14],
            "image_size": [448, 448],
        },
        "text": {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
        },
    },
    "small": {
        "vocabulary": 32_000,
        "side": 448,
        "vision": {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "patch_size": [14, 14],
            "image_size": [448, 448],
        },
        "text": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
        },
    },
    "tiny": {
        "vocabulary": 2048,
        "side": 56,
        "vision": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "patch_size": [14, 14],
            "image_size": [56, 56],
        },
        "text": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
        },
    },
}


@cache
def build(size: str, dtype: str, vocabulary: int | None = None) -> tuple[Any, Any]:
    """A model with random weights and its processor, both transformers' own InternVL. Weights are created on first use
    and then loaded from the folder ``CACHE`` (``VLMPROBE_BENCH_CACHE``).

    Args:
        size: ``"1b"``, ``"small"`` or ``"tiny"``.
        dtype: ``"float32"`` or ``"bfloat16"``.
        vocabulary: overrides the vocabulary size.
    """
    import torch
    import transformers as hf

    wanted = SIZES[size]
    side, patches = wanted["side"], wanted["side"] // wanted["vision"]["patch_size"][0]
    tokenizer = _tokenizer(vocabulary or wanted["vocabulary"])
    positions = patches**2 // 4
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(
            size={"height": side, "width": side}, crop_to_patches=True, min_patches=1, max_patches=12
        ),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size={"height": side, "width": side}),
        image_seq_length=positions,
        chat_template=TEMPLATE,
    )
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**wanted["vision"], norm_type="layer_norm", use_qk_norm=False),
        text_config=hf.Qwen2Config(
            **wanted["text"], vocab_size=len(tokenizer), tie_word_embeddings=False, rope_theta=1e6, eos_token_id=END
        ),
        image_token_id=processor.image_token_id,
        image_seq_length=positions,
        tie_word_embeddings=False,
    )
    folder = CACHE / f"{size}-{dtype}-{len(tokenizer)}"
    if not folder.is_dir():
        _draw(config, dtype, folder)
    kind = hf.InternVLForConditionalGeneration
    model = kind.from_pretrained(folder, config=config, dtype=getattr(torch, dtype)).eval()
    model.generation_config = hf.GenerationConfig(eos_token_id=END, pad_token_id=tokenizer.pad_token_id)
    return model, processor


def _draw(config: Any, dtype: str, folder: Path) -> None:
    """Write a checkpoint with random weights."""
    import torch
    import transformers as hf

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = hf.InternVLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    model.save_pretrained(unfinished)
    unfinished.rename(folder)


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = 1
SPECIAL = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<|endoftext|>")


def _tokenizer(size: int) -> Any:
    """A byte-level BPE tokenizer of ``size`` tokens: every word of :func:`words`, with its leading space, is one token;
    the rest of the vocabulary never occurs in a prompt and only makes it as large as a real one."""
    import transformers as hf
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIAL, *alphabet]
    merges = []
    for word in ("\u0120" + each for each in WORDS):
        for stop in range(2, len(word) + 1):
            if word[:stop] not in pieces:
                pieces.append(word[:stop])
                merges.append((word[: stop - 1], word[stop - 1]))
    pieces += [f"\u0120w{number}" for number in range(size - len(pieces))]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    for name, token in zip(
        ("start_image_token", "end_image_token", "context_image_token", "video_token"), SPECIAL[2:6], strict=True
    ):
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


SENTENCE = (
    "describe the picture and say what animal it shows which colour is on left right how many people are there in "
    "grass under a tree beside river cat dog tiger horse bird red blue green yellow small large old young walks sleeps"
)
WORDS = SENTENCE.split(" ")


def words(count: int, seed: int = 0) -> str:
    """Text of exactly ``count`` tokens."""
    drawn = np.random.default_rng(seed).choice(WORDS, count)
    return "".join(f" {word}" for word in drawn)


def picture(tiles: int, side: int, seed: int = 0) -> Image.Image:
    """An image that is split into ``tiles`` tiles in a row (plus a thumbnail if there are several)."""
    patches = np.random.default_rng(seed).integers(0, 256, (16, 16 * tiles, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((side * tiles, side), Image.Resampling.BICUBIC)
