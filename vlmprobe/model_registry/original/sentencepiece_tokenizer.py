"""Tokenizes with a SentencePiece ``tokenizer.model`` exactly as the original (slow) tokenizers do.

transformers 5 converts such files to its own format and gives other ids for some: it drops a lone ``▁`` before
Phi-3's first role token, and inserts one after every added token of a Yi vocabulary. Here SentencePiece itself
splits the text between the added tokens, by the rules of the classes that the checkpoints were trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import AddedToken, PythonBackend

from vlmprobe.errors import CheckpointError, MissingExtraError

__all__ = ["SentencePieceTokenizer"]

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space
# ModelProto{normalizer_spec{add_dummy_prefix: false}}, serialised. Protocol buffers merge concatenated messages, so
# appending it to a model switches the prefix off and changes nothing else (the library has no setter for it).
WITHOUT_DUMMY_PREFIX = bytes([0x1A, 0x02, 0x18, 0x00])


class SentencePieceTokenizer(PythonBackend):
    """Ids of transformers 4's ``LlamaTokenizer`` (use_fast=False) and of InternLM2's tokenizer.

    Args:
        vocab_file: the ``tokenizer.model``.
        legacy: the first ``LlamaTokenizer`` rule: each stretch of text between added tokens is encoded separately, as
            the model file says. Otherwise the whole text gets one leading space, which is removed again only before
            a token of ``named``.
        named: the special tokens that tokenizer_config.json names (``bos_token`` to ``mask_token`` and
            ``additional_special_tokens``); a special token that is only an added one does not count.
        add_bos_token: prepend BOS to every text.
        add_eos_token: append EOS to every text.
        strip_space: decoding drops the leading space of the first piece.
        config: what ``tokenizer_config.json`` of the checkpoint says, for :meth:`save_pretrained`.
        **options: special tokens and ``added_tokens_decoder`` of the base class.

    Raises:
        MissingExtraError: sentencepiece is not installed.
        CheckpointError: the file is not a SentencePiece model.
    """

    def __init__(
        self,
        vocab_file: str,
        *,
        legacy: bool,
        named: Sequence[str],
        add_bos_token: bool = True,
        add_eos_token: bool = False,
        strip_space: bool = True,
        config: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> None:
        self.vocab_file = Path(vocab_file).read_bytes() if Path(vocab_file).is_file() else b""
        self.pieces = _processor(Path(vocab_file), self.vocab_file, dummy_prefix=legacy)
        self.config = dict(config)
        self.legacy = legacy
        self.named = frozenset(named)
        self.add_bos_token = add_bos_token
        self.add_eos_token = add_eos_token
        self.strip_space = strip_space
        super().__init__(clean_up_tokenization_spaces=False, **options)

    @property
    def vocab_size(self) -> int:
        """Number of pieces in the model file, without added tokens."""
        return int(self.pieces.get_piece_size())

    def get_vocab(self) -> dict[str, int]:
        """Every piece and added token with its id."""
        vocab = {self.pieces.id_to_piece(each): each for each in range(self.vocab_size)}
        return {**vocab, **self.get_added_vocab()}

    def tokenize(self, text: str, **options: Any) -> list[str]:  # type: ignore[override]
        """The pieces of a text, without BOS and EOS."""
        if self.legacy or not text:
            return super().tokenize(text, **options)
        pieces = super().tokenize(SPACE + text.replace(SPACE, " "), **options)
        if len(pieces) > 1 and pieces[0] == SPACE and pieces[1] in self.named:
            return pieces[1:]
        return pieces

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        if self.legacy or not text.startswith((SPACE, " ")):
            return list(self.pieces.encode(text, out_type=str))
        # SentencePiece strips leading spaces, so the text is encoded after a guard, whose pieces are cut off.
        guard = str(self.unk_token)
        return list(self.pieces.encode(guard + text, out_type=str))[len(self.pieces.encode(guard)) :]

    def _convert_token_to_id(self, token: str) -> int:
        return int(self.pieces.piece_to_id(token))

    def _convert_id_to_token(self, index: int) -> str:
        return str(self.pieces.id_to_piece(index)) if 0 <= index < self.vocab_size else ""

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The ids with BOS and EOS as the checkpoint requires."""
        begin = [self.bos_token_id] if self.add_bos_token else []
        end = [self.eos_token_id] if self.add_eos_token else []
        first = begin + token_ids_0 + end
        return first if token_ids_1 is None else first + begin + token_ids_1 + end

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of the pieces. Added tokens are written verbatim, without the spaces of the slow classes."""
        if self.strip_space and tokens and tokens[0].startswith(SPACE):
            tokens = [tokens[0][1:], *tokens[1:]]
        text = ""
        run: list[str] = []
        added = self.get_added_vocab()
        for token in tokens:
            if token in added:
                text += self.pieces.decode(run) + token
                run = []
            elif token:
                run.append(token)
        return text + str(self.pieces.decode(run))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Write the model file into a folder."""
        target = Path(save_directory) / f"{filename_prefix + '-' if filename_prefix else ''}tokenizer.model"
        target.write_bytes(self.vocab_file)
        return (str(target),)

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> tuple[str, ...]:
        """As upstream, with the class and the options that the checkpoint names, and the tokens added since."""
        saved: tuple[str, ...] = super().save_pretrained(save_directory, *args, **options)
        file = Path(save_directory) / "tokenizer_config.json"
        added = json.loads(file.read_text(encoding="utf-8"))["added_tokens_decoder"]
        text = json.dumps({**self.config, "added_tokens_decoder": added}, indent=2, ensure_ascii=False)
        file.write_text(text + "\n", encoding="utf-8")
        return saved


def added_tokens(config: Mapping[str, Any], older: Mapping[str, int], named: Sequence[str]) -> dict[int, AddedToken]:
    """Added tokens by id, from tokenizer_config.json or, before transformers 4.34, from added_tokens.json."""
    listed = config.get("added_tokens_decoder")
    if listed is not None:
        fields = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
        return {int(key): AddedToken(**{name: token[name] for name in fields}) for key, token in listed.items()}
    return {
        each: AddedToken(content, normalized=content not in named, special=content in named)
        for content, each in older.items()
    }


def _processor(file: Path, held: bytes, *, dummy_prefix: bool) -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingExtraError("sentencepiece", "sentencepiece") from error
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(held if dummy_prefix else held + WITHOUT_DUMMY_PREFIX)
    except RuntimeError as error:
        raise CheckpointError(
            f"{file} is missing or not a SentencePiece model ({error}); download it again."
        ) from error
    return processor
