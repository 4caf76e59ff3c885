"""Likeliest next tokens of an engine that only scores texts: those listed beside the token that follows a beginning."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from vlmprobe.analysis.value_search import NextTokens
from vlmprobe.engines.base import Engine, Options
from vlmprobe.errors import CapabilityError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.table import TokenTable

__all__ = ["NextByScoring"]

LISTED = 20  # tokens that are asked for: what most servers list at most
FILLS = ("\n", "x")  # what is written after a beginning: one of them is not merged with it
SPECIAL = re.compile(r"<\|[^|]*\|>|</?s>|<eos>|<pad>|<end_of_turn>")  # as servers write them among the likeliest


class NextByScoring:
    """Asks for the next tokens after beginnings of an answer, as texts of tokens, by scoring them as candidates.

    An engine tokenises a text in one way. A beginning that it would tokenise in another one cannot be asked for.
    """

    def __init__(self, engine: Engine, conversation: Conversation, before: tuple[str, ...]) -> None:
        self.engine, self.conversation, self.before = engine, conversation, before

    def __call__(self, beginnings: Sequence[tuple[str, ...]], at_least: Sequence[float]) -> list[NextTokens | None]:
        """The listed tokens of at least this probability after each beginning.

        Raises:
            CapabilityError: if the engine cannot score, or tokenises the answer before the value in another way.
        """
        found: list[NextTokens | None] = [None] * len(beginnings)
        for fill in FILLS:
            left = [place for place, each in enumerate(found) if each is None]
            if not left:
                break
            texts = ["".join((*self.before, *beginnings[place])) + fill for place in left]
            options = Options(alternatives=LISTED, demanded=frozenset())
            single = list(dict.fromkeys(texts))
            tables = dict(zip(single, self.engine.score(self.conversation, single, options).tables, strict=True))
            for place, text in zip(left, texts, strict=True):
                found[place] = self._listed(tables[text], beginnings[place], at_least[place])
        if () in beginnings and found[list(beginnings).index(())] is None:
            raise CapabilityError(
                f"{type(self.engine).__name__} tokenises the answer before the field in another way than it was "
                "generated, or merges it with the prompt: open the checkpoint with vlmprobe.load."
            )
        return found

    def _listed(self, table: TokenTable, beginning: tuple[str, ...], least: float) -> NextTokens | None:
        told = [*self.before, *beginning]
        if table.tokens[: len(told)] != told or len(table) == len(told):
            return None
        row = len(told)
        logprobs = table.top_logprobs[row].astype(np.float64)
        kept = np.flatnonzero(np.exp(logprobs) >= least)
        kept = kept[np.argsort(-logprobs[kept], kind="stable")]
        texts = [table.top_tokens[row][place] for place in kept.tolist()]
        ids = np.empty(len(texts), dtype=object)
        ids[:] = texts
        return NextTokens(ids, logprobs[kept], texts, np.array([bool(SPECIAL.fullmatch(each)) for each in texts]))
