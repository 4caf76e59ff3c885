"""Tiny tokenizers of the two kinds in use, trained in a few milliseconds on embedded sentences.

Byte-level BPE (GPT-2, Qwen, Llama 3, ...): a Chinese character or an emoji usually spans several tokens.
SentencePiece-style BPE (Llama 2, Gemma, ...): spaces become a visible marker, which may also be put before the first
word, and characters outside the vocabulary fall back to bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from vlmprobe.testing.tiny.corpus import ENGLISH, MIXED

__all__ = ["byte_level", "sentence_piece"]

MERGES = 160
PIECES = 230  # single characters and merges together
SPACE = "▁"


def byte_level(
    cls: str = "PreTrainedTokenizerFast",
    *,
    specials: Sequence[str],
    eos: str,
    pad: str,
    bos: str | None = None,
    unk: str | None = None,
    add_bos: bool = False,
    named: Mapping[str, str] | None = None,
    **options: Any,
) -> Any:
    """A byte-level BPE tokenizer; the special tokens follow the vocabulary, in the order given.

    Args:
        cls: tokenizer class of transformers.
        specials: every special token, in the order of their ids.
        eos: the EOS token.
        pad: the padding token.
        bos: the BOS token, or None.
        unk: the unknown token, which byte-level vocabularies never need.
        add_bos: whether encoding with special tokens prepends ``bos``.
        named: attribute -> token, such as ``image_token``, for processors that read tokens from the tokenizer.
        **options: further arguments of the class.
    """
    vocabulary, merges = _byte_level_model()
    special = {"eos_token": eos, "pad_token": pad, "bos_token": bos, "unk_token": unk}
    if cls == "PreTrainedTokenizerFast":
        backend = Tokenizer(BPE(vocab=dict(vocabulary), merges=list(merges)))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
        source: dict[str, Any] = {"tokenizer_object": backend}
    else:
        # A special token inside the vocabulary keeps its id: the classes add theirs in their own order.
        grown = {**vocabulary, **{token: len(vocabulary) + place for place, token in enumerate(specials)}}
        source = {"vocab": grown, "merges": list(merges)}
    return _finish(cls, source, special, specials, named, add_bos, options)


def sentence_piece(
    cls: str = "LlamaTokenizer",
    *,
    specials: Sequence[str] = (),
    first: Sequence[str] = ("<unk>", "<s>", "</s>"),
    eos: str = "</s>",
    pad: str = "</s>",
    bos: str = "<s>",
    unk: str = "<unk>",
    add_bos: bool = True,
    named: Mapping[str, str] | None = None,
    **options: Any,
) -> Any:
    """A SentencePiece-style BPE tokenizer with byte fallback.

    Args:
        cls: tokenizer class of transformers; it determines where spaces become markers.
        specials: special tokens after the vocabulary, in the order of their ids.
        first: special tokens before the vocabulary.
        eos: the EOS token.
        pad: the padding token.
        bos: the BOS token.
        unk: the unknown token.
        add_bos: whether encoding with special tokens prepends ``bos``.
        named: attribute -> token, as in :func:`byte_level`.
        **options: further arguments of the class.
    """
    pieces, merges = _piece_model()
    rows = [*first, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *specials]
    special = {"eos_token": eos, "pad_token": pad, "bos_token": bos, "unk_token": unk}
    source = {"vocab": {piece: row for row, piece in enumerate(rows)}, "merges": list(merges)}
    return _finish(cls, source, special, [*first, *specials], named, add_bos, options)


def _finish(
    cls: str,
    source: Mapping[str, Any],
    special: Mapping[str, str | None],
    specials: Sequence[str],
    named: Mapping[str, str] | None,
    add_bos: bool,
    options: Mapping[str, Any],
) -> Any:
    taken = {*special.values(), *(named or {}).values()}
    extra = [AddedToken(token, special=True, normalized=False) for token in specials if token not in taken]
    tokenizer = getattr(transformers, cls)(
        **source,
        **{key: token for key, token in special.items() if token is not None},
        extra_special_tokens=extra,
        model_specific_special_tokens=dict(named or {}),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **options,
    )
    bos = special["bos_token"]
    if add_bos and bos is not None:
        backend = tokenizer.backend_tokenizer
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return tokenizer


@lru_cache(maxsize=1)
def _byte_level_model() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + MERGES, initial_alphabet=alphabet, show_progress=False, min_frequency=2
    )
    backend.train_from_iterator(MIXED, trainer)
    return _read(backend)


@lru_cache(maxsize=1)
def _piece_model() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=PIECES, show_progress=False, min_frequency=2)
    backend.train_from_iterator((*ENGLISH, "图片里有什么？图片 \n 0123456789"), trainer)
    vocabulary, merges = _read(backend)
    return tuple(sorted(vocabulary, key=vocabulary.__getitem__)), merges


def _read(backend: Tokenizer) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    vocabulary = backend.get_vocab()
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    merges = json.loads(backend.to_str())["model"]["merges"]
    return ordered, tuple((left, right) for left, right in merges)
