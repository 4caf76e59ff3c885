"""Answers with boxes for tests: rows of given probabilities, and a small language model whose every number is known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable, joined


def rows(*given):
    """A table of tokens; each is a text, or a text, its probability, and others with theirs."""
    given = [each if isinstance(each, tuple) else (each, 1.0, {}) for each in given]
    most = max(1 + len(others) for *_, others in given)
    tokens = [token for token, *_ in given]
    top_tokens = [[token, *others] + [""] * (most - 1 - len(others)) for token, _, others in given]
    probabilities = np.full((len(given), most), np.nan)
    for row, (_, own, others) in enumerate(given):
        probabilities[row, : 1 + len(others)] = own, *others.values()
    count = len(given)
    numbers = np.log(probabilities).astype(np.float32)
    top_ids = np.full((count, most), -1)
    top_ids[:, 0] = np.arange(count)
    return TokenTable(
        ids=np.arange(count),
        tokens=tokens,
        kinds=["special" if token.startswith(("<|", "<loc", "<patch")) else "text" for token in tokens],
        positions=np.arange(count),
        offsets=joined(tokens),
        logprobs=numbers[:, 0],
        entropy=np.zeros(count, np.float32),
        ranks=np.zeros(count, np.int64),
        logsumexp=np.zeros(count, np.float32),
        top_ids=top_ids,
        top_logprobs=numbers,
        top_tokens=top_tokens,
    )


def answer(*given, **meta):
    """The answer of such tokens, about an image of 1000 x 1000 pixels if nothing else is said."""
    table = rows(*given)
    text = "".join(token for token, kind in zip(table.tokens, table.kinds, strict=True) if kind == "text")
    return Result(text, None, table, np.arange(3), {"image_sizes": [[1000, 1000]], **meta})


def written(text, **meta):
    """An answer of one token for each character."""
    return answer(*text, **meta)


class ToyModel:
    """Draws each token by its place and the one before; stands in for a probe, its engine and its tokenizer."""

    def __init__(self, vocabulary, seed=0, sharp=2.0):
        self.vocabulary = list(vocabulary)
        random = np.random.default_rng(seed)
        self.logits = sharp * random.normal(size=(8, len(self.vocabulary) + 1, len(self.vocabulary)))
        self.asked = 0
        # of a probe
        self.engine = self
        self.meta = {}
        # of an engine, and its adapter
        self.adapter = SimpleNamespace(tokenizer=self)
        # of a tokenizer
        self.all_special_ids, self.added_tokens_decoder = [], {}

    def __len__(self):
        return len(self.vocabulary)

    def convert_ids_to_tokens(self, ids):
        one = isinstance(ids, (int, np.integer))
        return self.vocabulary[ids] if one else [self.vocabulary[each] for each in ids]

    def decode(self, ids, **options):
        return "".join(self.vocabulary[each] for each in ids)

    def conversation(self, question, image=None):
        return None

    def continuations(self, conversation):
        return self

    def row(self, ids):
        """Probabilities of the token after these ids."""
        logits = self.logits[len(ids) % len(self.logits), ids[-1] if len(ids) else -1]
        exponents = np.exp(logits - logits.max())
        return exponents / exponents.sum()

    def logprobs(self, begin, paths, ids):
        self.asked += len(paths)
        return np.log([self.row((*begin, *path))[list(ids)] for path in paths])

    def answer(self, *tokens, alternatives=3, **meta):
        """An answer of these tokens, with the rows that this model has for them."""
        ids = [self.vocabulary.index(token) for token in tokens]
        found = []
        for place, each in enumerate(ids):
            row = self.row(tuple(ids[:place]))
            best = [other for other in np.argsort(-row) if other != each][:alternatives]
            others = {self.vocabulary[other]: float(row[other]) for other in best}
            found.append((self.vocabulary[each], float(row[each]), others))
        result = answer(*found, **meta)
        top_ids = result.output.top_ids.copy()
        top_ids[:, 0] = ids
        return replace(result, output=replace(result.output, ids=np.array(ids), top_ids=top_ids))
