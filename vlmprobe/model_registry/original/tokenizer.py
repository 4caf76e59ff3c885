"""The tokenizer of an original checkpoint folder, chosen by its files and class name; its code never runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmprobe.errors import CheckpointError
from vlmprobe.model_registry.original.checkpoint import read_json

__all__ = ["original_tokenizer", "token_id"]

FAST_ONLY = ("PreTrainedTokenizer", "TokenizersBackend")  # classes that read tokenizer.json and nothing else
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
INTERNLM2_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
LLAMA_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def original_tokenizer(folder: Path, *, prefer_fast: bool = False) -> Any:
    """The tokenizer that gives the ids of the checkpoint's original code.

    Args:
        folder: a local checkpoint folder.
        prefer_fast: if the folder has both ``tokenizer.json`` and older files, use the former: right for a
            family whose original code does not pass ``use_fast=False``.

    Raises:
        CheckpointError: the folder holds no tokenizer, or one of an unknown class.
        MissingExtraError: a SentencePiece model without sentencepiece installed.
    """
    config = read_json(folder / "tokenizer_config.json")
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    fast = (folder / "tokenizer.json").is_file()
    prefer_fast = prefer_fast or name in FAST_ONLY
    if (folder / "tokenizer.model").is_file() and not (fast and prefer_fast):
        return _sentencepiece(folder, config, name)
    if fast and (prefer_fast or not (folder / "vocab.json").is_file()):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        if name != "Qwen2Tokenizer":
            raise CheckpointError(
                f"{folder} holds vocab.json and merges.txt of a {name or 'tokenizer without class'}; "
                "the only supported byte-level tokenizer is Qwen2Tokenizer."
            )
        from transformers import Qwen2Tokenizer

        return Qwen2Tokenizer.from_pretrained(folder)
    raise CheckpointError(
        f"{folder} holds no tokenizer: expected tokenizer.model, tokenizer.json, or vocab.json with merges.txt."
    )


def token_id(tokenizer: Any, token: str) -> int:
    """Id of a token that a family requires.

    Raises:
        CheckpointError: the tokenizer does not have it.
    """
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise CheckpointError(f"The checkpoint's tokenizer has no token {token}; its files belong to another model.")
    return int(found)


def _sentencepiece(folder: Path, config: Mapping[str, Any], name: str) -> Any:
    from vlmprobe.model_registry.original.sentencepiece_tokenizer import SentencePieceTokenizer, added_tokens

    if name == "InternLM2Tokenizer":
        defaults, legacy = INTERNLM2_DEFAULTS, True  # it has no other rule
    elif name == "InternLM3Tokenizer":
        defaults, legacy = LLAMA_DEFAULTS, True  # the rule of InternLM2
    elif name in ("LlamaTokenizer", "LlamaTokenizerWrapper"):
        defaults, legacy = LLAMA_DEFAULTS, bool(config.get("legacy", True) in (True, None))
    else:
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'} names the class {name or 'none'!r}; "
            "the supported SentencePiece tokenizers are InternLM2Tokenizer, InternLM3Tokenizer and LlamaTokenizer."
        )
    merged = {**config, **({} if "added_tokens_decoder" in config else _optional(folder / "special_tokens_map.json"))}
    special = {key: _content(merged.get(key, defaults.get(key))) for key in NAMED}
    extra = [_content(token) for token in merged.get("additional_special_tokens") or []]
    named = [token for token in (*special.values(), *extra) if token]
    written = {key: token for key, token in special.items() if token} | {"additional_special_tokens": extra}
    return SentencePieceTokenizer(
        str(folder / "tokenizer.model"),
        legacy=legacy,
        named=named,
        add_bos_token=bool(config.get("add_bos_token", True)),
        add_eos_token=bool(config.get("add_eos_token", False)),
        strip_space=name != "InternLM2Tokenizer" and bool(config.get("add_prefix_space", True) in (True, None)),
        added_tokens_decoder=added_tokens(config, _optional(folder / "added_tokens.json"), named),
        extra_special_tokens=[token for token in extra if token],
        chat_template=config.get("chat_template"),
        config={**config, **written},
        **{key: token for key, token in special.items() if token},
    )


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token
