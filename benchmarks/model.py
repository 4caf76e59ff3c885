"""The benchmarked models: of the dimensions of InternVL2-1B with random weights, smaller ones, and the embedded one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["SIZES", "build", "cached", "load", "picture", "tokenizer_of", "words"]

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
def load(size: str, dtype: str, vocabulary: int | None = None) -> tuple[Any, Any]:
    """A model and its processor: one of :data:`SIZES`, ``"20m"`` (Qwen3-VL) or ``"embedded"`` (the one shipped).

    Args:
        size: its name.
        dtype: ``"float32"`` or ``"bfloat16"``.
        vocabulary: overrides the vocabulary size, of :data:`SIZES` only.
    """
    import torch

    if size == "20m":
        from benchmarks.qwen3_vl import build as build_qwen3_vl

        return build_qwen3_vl(dtype)
    if size == "embedded":
        import vlmprobe

        probe = vlmprobe.load("demo", dtype=getattr(torch, dtype), device="cpu")
        return probe.model, probe.processor
    return build(size, dtype, vocabulary)


def build(size: str, dtype: str, vocabulary: int | None = None) -> tuple[Any, Any]:
    """A model with random weights and its processor, both transformers' own InternVL. Weights are created on first use
    and then loaded from the folder ``CACHE`` (``VLMPROBE_BENCH_CACHE``).

    Args:
        size: ``"1b"``, ``"small"`` or ``"tiny"``.
        dtype: ``"float32"`` or ``"bfloat16"``.
        vocabulary: overrides the vocabulary size.
    """
    import transformers as hf

    wanted = SIZES[size]
    side, patches = wanted["side"], wanted["side"] // wanted["vision"]["patch_size"][0]
    tokenizer = tokenizer_of(vocabulary or wanted["vocabulary"], SPECIAL, IMAGE_TOKENS)
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
    model = cached(hf.InternVLForConditionalGeneration, config, dtype, folder)
    model.generation_config = hf.GenerationConfig(eos_token_id=END, pad_token_id=tokenizer.pad_token_id)
    return model, processor


def cached(kind: Any, config: Any, dtype: str, folder: Path) -> Any:
    """A model of this class with random weights, which are drawn once and kept in the folder."""
    import torch

    if not folder.is_dir():
        _draw(kind, config, dtype, folder)
    return kind.from_pretrained(folder, config=config, dtype=getattr(torch, dtype)).eval()


def _draw(kind: Any, config: Any, dtype: str, folder: Path) -> None:
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = kind(config)
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


IMAGE_TOKENS = dict(
    zip(("start_image_token", "end_image_token", "context_image_token", "video_token"), SPECIAL[2:6], strict=True)
)
# One token each, as in a real vocabulary. Their merges come after those of the words, which stay as they are without.
SPELLINGS = ("Yes", "yes", "YES", "No", "no", "NO")
ANSWERS = (*(f"\u0120{each}" for each in SPELLINGS), *SPELLINGS)


def tokenizer_of(size: int, special: tuple[str, ...], named: Mapping[str, str], further: tuple[str, ...] = ()) -> Any:
    """A byte-level BPE tokenizer of ``size`` tokens: every word of :func:`words`, with its leading space, is one token;
    so are the spellings of yes and no, and the rest of the vocabulary never occurs in a prompt and only makes it as
    large as a real one.

    Args:
        size: tokens, the special ones among them.
        special: the special tokens; the second ends an answer, the last pads.
        named: attributes that the processor reads, and the special token that each names.
        further: texts that are one token, too; a space is written as the letter U+0120.
    """
    import transformers as hf
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = dict.fromkeys([*special, *alphabet])
    merges = []
    for word in (*("\u0120" + each for each in WORDS), *ANSWERS, *further):
        for stop in range(2, len(word) + 1):
            if word[:stop] not in pieces:
                pieces[word[:stop]] = None
                merges.append((word[: stop - 1], word[stop - 1]))
    pieces |= dict.fromkeys(f"\u0120w{number}" for number in range(size - len(pieces)))
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=special[1], pad_token=special[-1])
    for name, token in named.items():
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
