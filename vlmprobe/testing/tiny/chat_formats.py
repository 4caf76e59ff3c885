"""Chat formats that several families share: tokenizers with their special tokens, and templates."""

from __future__ import annotations

from typing import Any

from vlmprobe.testing.tiny.templates import CHATML, LLAMA3, chat
from vlmprobe.testing.tiny.tokenizers import byte_level, sentence_piece

__all__ = [
    "QWEN_SYSTEM",
    "chatml_template",
    "cohere_template",
    "cohere_tokenizer",
    "gemma_template",
    "gemma_tokenizer",
    "llama3_template",
    "llama3_tokenizer",
    "mistral_template",
    "mistral_tokenizer",
    "qwen_ids",
    "qwen_tokenizer",
    "vicuna_template",
    "vicuna_tokenizer",
]

QWEN_VISION = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
QWEN_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"


def qwen_tokenizer(*specials: str, cls: str = "Qwen2Tokenizer", **named: str) -> Any:
    """Byte-level BPE with ChatML markers, the vision tokens of Qwen-VL and further special tokens of a family.

    Args:
        *specials: further special tokens.
        cls: tokenizer class.
        **named: attribute -> token; these tokens are added too.
    """
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", **named}
    base = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *QWEN_VISION)
    return byte_level(
        cls,
        specials=tuple(dict.fromkeys((*base, *specials, *named.values()))),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        named=named,
    )


def qwen_ids(tokenizer: Any) -> dict[str, int]:
    """The token ids that the configurations of Qwen-VL and related models contain."""
    return {
        "image_token_id": tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        "video_token_id": tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }


def chatml_template(image: str, *, generation: str = "<|im_start|>assistant\n", **options: Any) -> str:
    """``<|im_start|>role``, a newline, the content, ``<|im_end|>``; the generation prompt ends in a newline."""
    return chat(CHATML, generation=generation, image=image, **options)


def llama3_tokenizer(*specials: str, **named: str) -> Any:
    """Byte-level BPE with the special tokens of Llama 3; encoding prepends BOS."""
    base = (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
    )
    return byte_level(
        specials=tuple(dict.fromkeys((*base, *specials, *named.values()))),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad="<|finetune_right_pad_id|>",
        add_bos=True,
        named=named,
    )


def llama3_template(image: str, **options: Any) -> str:
    """Header, two newlines, content, end of turn; the generation prompt ends in two newlines."""
    return chat(
        LLAMA3,
        start="<|begin_of_text|>",
        generation="<|start_header_id|>assistant<|end_header_id|>\n\n",
        image=image,
        **options,
    )


def vicuna_tokenizer(*specials: str, **named: str) -> Any:
    """SentencePiece-style BPE of Llama 2: a space marker before the first word, byte fallback."""
    named = named or {"image_token": "<image>"}
    added = tuple(dict.fromkeys((*named.values(), "<pad>", *specials)))
    return sentence_piece(specials=added, pad="<pad>", named=named)


def vicuna_template(image: str = "<image>\n", *, generation: str = "ASSISTANT:", **options: Any) -> str:
    """``USER: ... ASSISTANT: ...``, with the images of a message before its text."""
    roles = {"system": ("", " "), "user": ("USER: ", " "), "assistant": ("ASSISTANT: ", "</s>")}
    return chat(roles, generation=generation, image=image, images_first=True, **options)


def mistral_tokenizer(*specials: str, **named: str) -> Any:
    """Byte-level BPE with the instruction and image markers of Mistral's newer models."""
    base = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    images = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    return byte_level(
        specials=tuple(dict.fromkeys((*base, *images, *specials, *named.values()))),
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        unk="<unk>",
        add_bos=True,
        named=named,
    )


def mistral_template(image: str = "[IMG]", **options: Any) -> str:
    """``[INST]question[/INST]answer</s>``: the marker after the question is itself the generation prompt."""
    roles = {
        "system": ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
        "user": ("[INST]", "[/INST]"),
        "assistant": ("", "</s>"),
    }
    return chat(roles, start="<s>", generation="", image=image, **options)


def gemma_tokenizer(*specials: str, **named: str) -> Any:
    """SentencePiece-style BPE of Gemma: no space marker before the first word, special ids first."""
    base = ("<start_of_turn>", "<end_of_turn>")
    return sentence_piece(
        "GemmaTokenizer",
        first=("<pad>", "<eos>", "<bos>", "<unk>"),
        specials=tuple(dict.fromkeys((*base, *specials, *named.values()))),
        eos="<eos>",
        pad="<pad>",
        bos="<bos>",
        named=named,
    )


def gemma_template(image: str, *, opens: str = "<start_of_turn>", closes: str = "<end_of_turn>", **options: Any) -> str:
    """Turns of ``user`` and ``model``; the generation prompt ends in a newline."""
    roles = {
        "system": (f"{opens}system\n", f"{closes}\n"),
        "user": (f"{opens}user\n", f"{closes}\n"),
        "assistant": (f"{opens}model\n", f"{closes}\n"),
    }
    return chat(roles, start="<bos>", generation=f"{opens}model\n", image=image, trim=True, **options)


def cohere_tokenizer(*specials: str, **named: str) -> Any:
    """Byte-level BPE with the turn markers of Cohere's models."""
    base = (
        "<PAD>",
        "<UNK>",
        "<BOS_TOKEN>",
        "<EOS_TOKEN>",
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
        "<|SYSTEM_TOKEN|>",
    )
    return byte_level(
        "CohereTokenizer",
        specials=tuple(dict.fromkeys((*base, *specials, *named.values()))),
        bos="<BOS_TOKEN>",
        eos="<|END_OF_TURN_TOKEN|>",
        pad="<PAD>",
        unk="<UNK>",
        add_bos=True,
        named=named,
    )


def cohere_template(image: str, **options: Any) -> str:
    """Turn marker, speaker marker, content, end of turn."""
    speakers = {"system": "SYSTEM", "user": "USER", "assistant": "CHATBOT"}
    roles = {
        role: (f"<|START_OF_TURN_TOKEN|><|{speaker}_TOKEN|>", "<|END_OF_TURN_TOKEN|>")
        for role, speaker in speakers.items()
    }
    generation = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
    return chat(roles, start="<BOS_TOKEN>", generation=generation, image=image, **options)
