"""Token ids to text: whole characters, and the offsets of each token in the text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, overload

import numpy as np

__all__ = ["Detokenizer", "TextsOfIds"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")  # how SentencePiece writes a single byte
FEW = 4  # tokens whose text is kept
WAITING = 64  # tokens in a row that complete no character, after which they are taken as they are


class _Window(NamedTuple):
    """Ordinary ids that affect how the next one decodes; special ones take no part in decoding."""

    ids: tuple[int, ...] = ()  # ids[:done] is context, ids[done:] ends in an incomplete character
    done: int = 0
    given: int = 0  # how many characters of the text of ids have been yielded


class Detokenizer:
    """Decodes the tokens of one tokenizer. Holds small caches and no per-call state."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self.special = frozenset(tokenizer.all_special_ids) | {key for key, token in added.items() if token.special}
        self.alone = lru_cache(maxsize=65536)(self._alone)
        self._few = lru_cache(maxsize=16384)(self._decoded)  # neighbours in a text, which come again in the next
        self._next = lru_cache(maxsize=16384)(self._step)

    def decode(self, ids: Sequence[int]) -> str:
        """The tokenizer's own text of the ids, special tokens kept, without clean-up."""
        return self._few(tuple(ids)) if len(ids) <= FEW else self._decoded(ids)

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Text of each token in context, so that the ordinary tokens concatenate to the decoded text.

        A character split over several tokens is in the row that completes it; the rows before are empty. An
        incomplete character at the end is dropped. Special tokens appear as in the vocabulary.
        """
        return list(self.running(ids))

    def texts_after(self, context: Sequence[int], ids: Sequence[int]) -> list[str]:
        """Text of each token in :meth:`texts` of a context and these ids."""
        window = _Window()
        for each in context:
            _, window = self._next(window, each)
        return list(self._running(window, ids))

    def texts_of_next(self, context: Sequence[int], ids: Iterable[int]) -> list[str]:
        """What each of these ids would add to the text of the same context; see :meth:`texts`."""
        window = _Window()
        for each in context:
            _, window = self._next(window, each)
        return [self._step(window, each)[0] for each in ids]

    def running(self, ids: Iterable[int]) -> Iterator[str]:
        """Streaming :meth:`texts`: the text of each token is yielded before the next id is read."""
        return self._running(_Window(), ids)

    def _running(self, window: _Window, ids: Iterable[int]) -> Iterator[str]:
        for each in ids:
            text, window = self._next(window, each)
            yield text

    def _step(self, window: _Window, each: int) -> tuple[str, _Window]:
        """The text of the next token after a window, and the window after it."""
        if each in self.special:
            return self.alone(each), window
        ids = (*window.ids, each)
        now = self.decode(ids)
        # Byte fallback decodes a whole run of bytes to replacement characters until its last character is complete,
        # so nothing is yielded before that, however long the run is.
        if now.endswith(REPLACEMENT) and len(ids) - window.done < WAITING:
            whole = now.rstrip(REPLACEMENT)
            return whole[window.given :], _Window(ids, window.done, max(window.given, len(whole)))
        last = ids[window.done :]
        return now[window.given :], _Window(last, len(last), len(self.decode(last)))

    def offsets(self, ids: Sequence[int], texts: Sequence[str]) -> list[tuple[int, int]]:
        """Start and stop of each token in the concatenated text of the ordinary tokens.

        All pieces of one character share its span; a special token has an empty span at its place.
        """
        spans: list[tuple[int, int]] = []
        pieces: list[int] = []  # rows of a character that is not complete yet
        stop = 0
        for row, (each, text) in enumerate(zip(ids, texts, strict=True)):
            if each in self.special:
                spans.append((stop, stop))
                continue
            start, stop = stop, stop + len(text)
            spans.append((start, stop))
            pieces.append(row)
            if text:
                for piece in pieces:
                    spans[piece] = (start, stop)
                pieces = []
        return spans

    def join(self, ids: Iterable[int], texts: Iterable[str]) -> str:
        """The text without special tokens."""
        return "".join(text for each, text in zip(ids, texts, strict=True) if each not in self.special)

    def bytes_of(self, each: int) -> bytes:
        """The UTF-8 bytes that a token adds to a text; empty for an id that is no token."""
        if self.tokenizer.convert_ids_to_tokens(each) is None:
            return b""
        found = self._text_or_bytes(each)
        return found if isinstance(found, bytes) else found.encode()

    def _alone(self, each: int) -> str:
        """Text of a token out of context; bytes of an incomplete character are written as ``<0xE7>``."""
        if each < 0:
            return ""
        found = self._text_or_bytes(each)
        return found if isinstance(found, str) else "".join(f"<0x{byte:02X}>" for byte in found)

    def _text_or_bytes(self, each: int) -> str | bytes:
        """The text of a token out of context, or its bytes if they are no whole characters."""
        text = self.decode([each])
        piece = self.tokenizer.convert_ids_to_tokens(each)
        if not isinstance(piece, str):
            return text
        if BYTE_PIECE.fullmatch(piece):
            byte = int(piece[3:-1], 16)
            return chr(byte) if byte < 0x80 else bytes([byte])  # decoders drop a leading space
        if REPLACEMENT in text:
            table = _byte_of_character()
            known = all(character in table for character in piece)
            return bytes(table[character] for character in piece) if known else piece
        if piece.startswith("\N{LOWER ONE EIGHTH BLOCK}") and not text.startswith(" "):
            return " " + text  # SentencePiece decoders drop the space of a first token
        return text


class TextsOfIds(Sequence[list[str]]):
    """The texts [T][K] of ids [T, K], decoded when they are read: as strings they take ten times the memory of ids, and
    most are never looked at. Equal to the same lists of texts, and pickled and copied as such.
    """

    def __init__(self, alone: Callable[[int], str], ids: np.ndarray) -> None:
        self._alone, self._ids = alone, ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, row: int) -> list[str]: ...

    @overload
    def __getitem__(self, row: slice) -> TextsOfIds: ...

    def __getitem__(self, row: int | slice) -> list[str] | TextsOfIds:
        if isinstance(row, slice):
            return TextsOfIds(self._alone, self._ids[row])
        return [self._alone(each) for each in self._ids[row].tolist()]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[type[list[list[str]]], tuple[list[list[str]]]]:
        return list, (list(self),)


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (Radford et al. 2019), reversed."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(moved)}
