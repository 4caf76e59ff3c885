"""The untrained demo model: an InternVL with a million parameters, its tokenizer, processor and chat template.

All classes are from transformers, so the saved folder loads with ``AutoModelForImageTextToText`` and
``AutoProcessor`` like any hub checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from vlmprobe.demo.drawing import COLOURS
from vlmprobe.demo.handwriting import DIGITS
from vlmprobe.demo.wordings import WORDINGS

__all__ = ["DIGIT_SCENES", "WIDTH", "Look", "build_model", "build_processor", "build_tokenizer"]


@dataclass(frozen=True)
class Look:
    """What the vision tower takes."""

    picture: int  # side of the image, pixels
    patch: int  # side of a patch, pixels
    mean: tuple[float, float, float]  # of the training images, rounded
    std: tuple[float, float, float]

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.picture // self.patch

    @property
    def tokens(self) -> int:
        """Tokens of an image: four patches are merged into one."""
        return (self.grid // 2) ** 2


DIGIT_SCENES = Look(picture=32, patch=4, mean=(0.16, 0.16, 0.18), std=(0.26, 0.23, 0.23))
WIDTH = 96
HEADS = 4
VISION_LAYERS = 4
LANGUAGE_LAYERS = 4

SPECIAL = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<img>", "</img>", "<image>", "<video>")
ANSWER_WORDS = ("a", "an", "and", "on", "the", "left", "right", "yes", "no", *COLOURS, *DIGITS)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|{{ message.role }}|>
{%- if message.content is string -%}
{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}<image>
{%- elif part.type == 'video' -%}<video>
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


def build_tokenizer(
    questions: Sequence[str] = WORDINGS, answers: Sequence[str] = ANSWER_WORDS
) -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word of the questions and answers, and bytes for everything else.

    Byte-level as in GPT-2 and Qwen: a word at the beginning of a text and the same word after a space are
    different tokens, and every text can be encoded without loss.
    """
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    words: dict[str, None] = {}
    for text in questions:
        words.update(dict.fromkeys(piece for piece, _ in splitter.pre_tokenize_str(text)))
    for word in answers:
        for form in (word, word.capitalize(), f" {word}"):
            words.update(dict.fromkeys(piece for piece, _ in splitter.pre_tokenize_str(form)))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = dict.fromkeys([*SPECIAL, *alphabet, *words])
    ids = {token: place for place, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<image>",
            "video_token": "<video>",
            "system_token": "<|system|>",
            "user_token": "<|user|>",
            "assistant_token": "<|assistant|>",
        },
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, look: Look = DIGIT_SCENES) -> InternVLProcessor:
    """A processor that resizes any image to the size of the vision tower's, without tiles."""
    asked: dict[str, Any] = {
        "size": {"height": look.picture, "width": look.picture},
        "image_mean": list(look.mean),
        "image_std": list(look.std),
    }
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(crop_to_patches=False, min_patches=1, max_patches=1, **asked),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(**asked),
        image_seq_length=look.tokens,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, look: Look = DIGIT_SCENES
) -> InternVLForConditionalGeneration:
    """The model with random weights, float32, drawn from ``seed``; torch's global random state is not changed."""
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LANGUAGE_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        initializer_range=0.04,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = InternVLVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=[look.picture, look.picture],
        patch_size=[look.patch, look.patch],
        attention_bias=True,
        initializer_range=0.08,  # the usual 0.02 suits a width of a thousand; at width 96 attention would start uniform
        layer_scale_init_value=1.0,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=look.tokens,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(config)
    place_patches(model, look.grid)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, max_new_tokens=32, do_sample=False
    )
    return model


def place_patches(model: InternVLForConditionalGeneration, grid: int) -> None:
    """Initialise the vision position embeddings with 2-D sinusoids instead of transformers' zeros.

    From zeros this model needs a thousand steps to tell left from right.
    """
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    rates = 1.0 / 100.0 ** (torch.arange(WIDTH // 4) / (WIDTH // 4))
    waves = [way(place.flatten()[:, None] * rates) for place in (rows, columns) for way in (torch.sin, torch.cos)]
    embeddings = model.model.vision_tower.embeddings.position_embeddings
    with torch.no_grad():
        embeddings[0, 1:] = 0.5 * torch.cat(waves, dim=1)
