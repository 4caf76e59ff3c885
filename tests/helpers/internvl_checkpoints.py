"""Tiny random InternVL checkpoints in the original format, around any language model.

The vision side, the images and, unless another is given, the tokenizer are those of a reference case; the language
model is a stock one of transformers, whose weights are written under the names of the original.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from common import GOLDEN
from safetensors.torch import load_file, save_file

from vlmprobe.testing.tiny.tokenizers import byte_level
from vlmprobe.testing.tiny.weights import randomise

__all__ = ["harmony_tokenizer", "write"]

TOKENIZER_FILES = ("added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.model", "vocab.json")
IMAGE_TOKENS = ("<IMG_CONTEXT>", "<img>", "</img>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")


def write(
    folder: Path,
    case: str,
    language: Any,
    *,
    llm_config: Mapping[str, Any],
    tokenizer: Any = None,
    tokenizer_config: Mapping[str, Any] | None = None,
    rename: Callable[[str], str] = lambda name: name,
    **fields: Any,
) -> Path:
    """Write a checkpoint.

    Args:
        folder: to create.
        case: the reference case that the rest comes from; the hidden size of its language model is kept.
        language: the language model with its head, which gets random weights here.
        llm_config: its configuration under the original field names.
        tokenizer: another than that of the case.
        tokenizer_config: fields to change in its tokenizer_config.json.
        rename: from the stock names of weights to those of the original; other names are dropped where it gives "".
        **fields: to change in config.json.
    """
    folder.mkdir(parents=True)
    source = GOLDEN / case
    config = json.loads((source / "config.json").read_text()) | {"llm_config": dict(llm_config)} | fields
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer is None:
        told = json.loads((source / "tokenizer_config.json").read_text()) | dict(tokenizer_config or {})
        (folder / "tokenizer_config.json").write_text(json.dumps(told))
        for file in (source / name for name in TOKENIZER_FILES if (source / name).is_file()):
            shutil.copyfile(file, folder / file.name)
    else:
        tokenizer.save_pretrained(folder)
    randomise(language.eval())
    weights = {
        name: weight
        for file in source.glob("model*.safetensors")
        for name, weight in load_file(file).items()
        if not name.startswith("language_model.")
    }
    written = folder / "language"
    language.save_pretrained(written)  # which stores experts one by one
    for name, weight in load_file(written / "model.safetensors").items():
        weights["language_model." + rename(name)] = weight
    shutil.rmtree(written)
    save_file(
        {name: each.to(torch.float32).contiguous() for name, each in weights.items()}, folder / "model.safetensors"
    )
    return folder


def harmony_tokenizer() -> Any:
    """A byte-level tokenizer with the special tokens of GPT-OSS and those of images."""
    names = ("<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>")
    return byte_level(specials=[*names, *IMAGE_TOKENS], bos="<|startoftext|>", eos="<|return|>", pad="<|endoftext|>")
