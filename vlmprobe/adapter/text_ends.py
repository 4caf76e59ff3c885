"""Ends of prompts that are tokenised apart from what is before them, because tokenizers cut a text at added tokens.

A tokenizer of the ``tokenizers`` library first finds its added tokens in a text (``<|im_start|>``), then normalises and
tokenises each piece between them by itself. So the ids of a text from an added token on do not depend on what is before
it, and the ids of one end are those of the same end of every other prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vlmprobe.adapter.prompts import common_prefix

__all__ = ["TextEnds", "continued", "held_at_end"]

MOST = 4096  # ends whose ids are kept


class TextEnds:
    """Cuts texts at the added tokens of a tokenizer, and tokenises what begins with one."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers import PreTrainedTokenizerBase

        self._tokenizer = tokenizer
        self._size = len(tokenizer)
        plain = getattr(tokenizer, "is_fast", False) and type(tokenizer).__call__ is PreTrainedTokenizerBase.__call__
        added = tokenizer.added_tokens_decoder if plain else {}
        self.added = frozenset(added)
        # Which tokens are found may depend on what is around them: where one may begin within another one, or is looked
        # for in the normalised text, or only between words.
        inside = {character for each in added.values() for character in each.content[1:]}
        self.cuts = {
            key: each.content
            for key, each in added.items()
            if each.special and not each.normalized and not each.single_word and each.content[0] not in inside
        }
        self._ids: dict[str, tuple[int, ...]] = {}
        self._continued: dict[tuple[str, str], tuple[int, tuple[int, ...]]] = {}

    def fits(self, tokenizer: Any) -> bool:
        """Whether it is of this tokenizer, to which no token has been added since."""
        return tokenizer is self._tokenizer and len(tokenizer) == self._size

    def forget(self) -> None:
        """Tokenise anew: the tokenizer may write the same text otherwise now, by another normaliser."""
        self._ids.clear()
        self._continued.clear()

    def start(self, text: str, ids: Iterable[int], stop: int | None = None) -> int | None:
        """Where the last added token that cuts a text begins; None if there is none.

        Args:
            text: to cut.
            ids: of the text, or of one that begins as it does.
            stop: where the token ends at most.
        """
        contents = (self.cuts[each] for each in set(ids) & self.cuts.keys())
        return max((place for each in contents if (place := text.rfind(each, 0, stop)) >= 0), default=None)

    def ids(self, end: str) -> tuple[int, ...]:
        """The ids of a text that begins with an added token."""
        found = self._ids.get(end)
        return self._read([end])[0] if found is None else found

    def read(self, ends: Iterable[str]) -> None:
        """Tokenise several, which takes less time at once than one by one."""
        if new := [each for each in dict.fromkeys(ends) if each not in self._ids]:
            self._read(new)

    def _read(self, ends: Sequence[str]) -> list[tuple[int, ...]]:
        found = [tuple(ids) for ids in self._tokenizer(list(ends), add_special_tokens=False)["input_ids"]]
        if len(self._ids) + len(found) > MOST:
            self._ids.clear()
        self._ids.update(zip(ends, found, strict=True))
        return found

    def continued(self, end: str, text: str) -> tuple[int, tuple[int, ...]]:
        """What :func:`continued` says of the ids of such an end, and of those of the end with a text after it."""
        found = self._continued.get((end, text))
        if found is None:
            if len(self._continued) >= MOST:
                self._continued.clear()
            found = self._continued[end, text] = continued(self.ids(end), self.ids(end + text))
        return found


def continued(alone: Sequence[int], whole: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """How many ids at the end of a text merge with what comes after it, and the ids from there on.

    Args:
        alone: ids of the text.
        whole: ids of the text with another one after it.
    """
    kept = common_prefix(alone, whole)
    return len(alone) - kept, tuple(whole[kept:])


def held_at_end(ids: np.ndarray, end: Sequence[int]) -> int:
    """How many ids at the end of a prompt [S] are those at the end of another sequence."""
    return common_prefix(end[::-1], ids[: -len(end) - 1 : -1].tolist())
