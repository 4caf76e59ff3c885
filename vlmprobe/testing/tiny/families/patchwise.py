"""Families that cut an image of any shape into rows, strips or slices: Idefics 3, SmolVLM, Mistral 3, MiniCPM-V."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.chat_formats import (
    chatml_template,
    llama3_tokenizer,
    mistral_template,
    mistral_tokenizer,
    qwen_tokenizer,
)
from vlmprobe.testing.tiny.grids import deltanet
from vlmprobe.testing.tiny.registry import Parts, family, hf
from vlmprobe.testing.tiny.templates import chat
from vlmprobe.testing.tiny.text_configs import decoder
from vlmprobe.testing.tiny.tokenizers import byte_level
from vlmprobe.testing.tiny.vision_configs import tower

__all__ = ["minicpm_v"]

IDEFICS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
ROWS = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
IDEFICS_ROLES = {
    "system": ("System: ", "<end_of_utterance>\n"),
    "user": ("User: ", "<end_of_utterance>\n"),
    "assistant": ("Assistant: ", "<end_of_utterance>\n"),
}
SPLIT: dict[str, Any] = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 32}}


@family("idefics3")
def _idefics3() -> Parts:
    tokenizer = llama3_tokenizer(*IDEFICS, *ROWS)
    processor = hf.Idefics3Processor(
        image_processor=hf.Idefics3ImageProcessor(**SPLIT),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=chat(IDEFICS_ROLES, start="<|begin_of_text|>", generation="Assistant:", image="<image>"),
    )
    config = hf.Idefics3Config(
        vision_config=tower(),
        text_config=hf.LlamaConfig(**decoder(tokenizer)),
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
    )
    return Parts(config, processor, ("<end_of_utterance>", "<|end_of_text|>"))


@family("smolvlm", packages=("num2words",))
def _smolvlm() -> Parts:
    tokenizer = byte_level(
        specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *IDEFICS, *ROWS),
        bos="<|im_start|>",
        eos="<end_of_utterance>",
        pad="<|im_end|>",
    )
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(**SPLIT),
        tokenizer=tokenizer,
        video_processor=hf.SmolVLMVideoProcessor(**SPLIT),
        image_seq_len=4,
        chat_template=chat(IDEFICS_ROLES, start="<|im_start|>", generation="Assistant:", image="<image>"),
    )
    config = hf.SmolVLMConfig(
        vision_config=tower(),
        text_config=hf.LlamaConfig(**decoder(tokenizer, tie_word_embeddings=True)),
        image_token_id=processor.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=True,
    )
    return Parts(config, processor, ("<end_of_utterance>",))


@family("mistral3")
def _mistral3() -> Parts:
    tokenizer = mistral_tokenizer()
    processor = hf.PixtralProcessor(
        image_processor=hf.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": 8, "width": 8}),
        tokenizer=tokenizer,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=mistral_template(),
    )
    config = hf.Mistral3Config(
        vision_config=hf.PixtralVisionConfig(**tower(image=64)),
        text_config=hf.MistralConfig(**decoder(tokenizer, head_dim=16, sliding_window=None)),
        image_token_index=processor.image_token_id,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return Parts(config, processor, ("</s>",))


def minicpm_v(version: str, family_name: str = "MiniCPMV4_6") -> Parts:
    """The parts of MiniCPM-V 4.6 and its successors.

    Args:
        version: what follows ``MiniCPM`` in the names of processor and configuration.
        family_name: what the names of the image and video processors begin with.
    """
    names = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "image_start_token": "<image>",
        "image_end_token": "</image>",
        "slice_start_token": "<slice>",
        "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>",
        "image_id_end_token": "</image_id>",
    }
    tokenizer = qwen_tokenizer(cls="PreTrainedTokenizerFast", **names)
    slices = {"patch_size": 4, "scale_resolution": 32, "max_slice_nums": 4}
    processor = getattr(hf, f"MiniCPM{version}Processor")(
        image_processor=getattr(hf, f"{family_name}ImageProcessor")(**slices),
        video_processor=getattr(hf, f"{family_name}VideoProcessor")(**slices),
        tokenizer=tokenizer,
        chat_template=chatml_template("<|image_pad|>"),
    )
    ids = tokenizer.convert_tokens_to_ids
    marks = {
        "image_start_id": ids("<image>"),
        "image_end_id": ids("</image>"),
        "slice_start_id": ids("<slice>"),
        "slice_end_id": ids("</slice>"),
        "newline_id": tokenizer.encode("\n", add_special_tokens=False)[0],
    }
    config = getattr(hf, f"MiniCPM{version}Config")(
        vision_config=tower(layers=3, image=32, patch=4),
        text_config={
            "model_type": "qwen3_5_text",
            **decoder(tokenizer, **deltanet()),
        },
        insert_layer_id=0,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        **({} if version == "Ocr" else {"image_size": 32}),
        **(marks if version == "V4_7" else {}),
    )
    return Parts(config, processor, ("<|im_end|>", "<|endoftext|>"))


@family("minicpmv4_6", since="5.23.0")
def _minicpmv4_6() -> Parts:
    return minicpm_v("V4_6")


@family("minicpmv4_7")
def _minicpmv4_7() -> Parts:
    return minicpm_v("V4_7")
