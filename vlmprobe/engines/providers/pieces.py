"""Texts of tokens from their bytes, where a server sends the true ones: pieces of one character are joined."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

__all__ = ["texts_of_bytes"]


def texts_of_bytes(tokens: Sequence[Sequence[int]]) -> list[str]:
    """The text of each token; a character that spans tokens stands in the one that completes it.

    Bytes that are no UTF-8 show as replacement characters, in the token after which that is certain.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    last = len(tokens) - 1
    return [decoder.decode(bytes(each), final=place == last) for place, each in enumerate(tokens)]
