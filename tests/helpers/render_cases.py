"""Results written by hand for the tests of how results look: no model, every number chosen."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.table import TokenTable, joined

Said = tuple[str, float, Sequence[tuple[str, float]]]  # text, probability, other tokens with theirs


def make_table(
    said: Sequence[Said],
    *,
    special: Sequence[int] = (),
    images: Sequence[int] = (),
    spans: Sequence[ImageSpan] = (),
    alternatives: int = 5,
) -> TokenTable:
    """A table of tokens; the rest of each distribution is left to tokens unnamed, which the entropy takes as one."""
    count = len(said)
    tokens = [text for text, _, _ in said]
    top_ids = np.full((count, alternatives), -1, np.int64)
    top_logprobs = np.full((count, alternatives), np.nan, np.float32)
    top_tokens = [[""] * alternatives for _ in said]
    logprobs, entropy = np.full(count, np.nan, np.float32), np.full(count, np.nan, np.float32)
    ranks = np.full(count, -1, np.int64)
    for row, (text, probability, others) in enumerate(said):
        if math.isnan(probability):
            continue
        everything = sorted([(text, probability), *others], key=lambda pair: -pair[1])
        masses = np.array([mass for _, mass in everything] + [max(0.0, 1 - sum(mass for _, mass in everything))])
        masses = masses[masses > 0]
        logprobs[row], entropy[row] = math.log(probability), -(masses * np.log(masses)).sum()
        ranks[row] = everything.index((text, probability))
        for place, (other, mass) in enumerate(everything[:alternatives]):
            top_ids[row, place] = 1000 + row if (other, mass) == (text, probability) else 9000 + 10 * row + place
            top_logprobs[row, place], top_tokens[row][place] = math.log(mass), other
    starts = {row: span.start for row, span in zip(images, spans, strict=False)}
    return TokenTable(
        ids=1000 + np.arange(count),
        tokens=tokens,
        kinds=["image" if row in images else "special" if row in special else "text" for row in range(count)],
        positions=np.array([starts.get(row, row) for row in range(count)], np.int64),
        offsets=joined(tokens),
        logprobs=logprobs,
        entropy=entropy,
        ranks=ranks,
        logsumexp=np.where(np.isnan(logprobs), np.nan, 20).astype(np.float32),
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        top_tokens=top_tokens,
        image_spans=tuple(spans),
    )


def nothing(text: str = "") -> Said:
    """A row without a distribution."""
    return (text, math.nan, ())


def two_digits(image: Image.Image | None = None) -> Result:
    """A sentence about a picture, unsure of one digit."""
    output = make_table(
        [
            ("a", 0.998, [("the", 0.001)]),
            (" red", 0.981, [(" orange", 0.014), (" purple", 0.003)]),
            (" seven", 0.467, [(" nine", 0.351), (" one", 0.122), (" four", 0.038), (" two", 0.011)]),
            (" on", 0.9997, []),
            (" the", 0.9998, []),
            (" left", 0.994, [(" right", 0.006)]),
            (" and", 0.999, []),
            (" a", 0.9991, []),
            (" blue", 0.874, [(" cyan", 0.091), (" green", 0.024)]),
            (" two", 0.936, [(" three", 0.041), (" seven", 0.012)]),
            (" on", 0.9999, []),
            (" the", 0.9998, []),
            (" right", 0.9986, [(" left", 0.001)]),
            ("<|end|>", 0.9993, []),
        ],
        special=[13],
    )
    prompt = make_table(
        [
            nothing("<|begin|>"),
            ("user", 0.61, [("system", 0.37)]),
            ("\n", 0.97, []),
            nothing(),
            ("describe", 0.031, [("which", 0.52), ("what", 0.33), ("are", 0.1)]),
            (" the", 0.93, [(" this", 0.05)]),
            (" picture", 0.71, [(" image", 0.22)]),
            ("<|turn|>", 0.88, [(".", 0.1)]),
            ("\n", 0.99, []),
            ("assistant", 0.97, []),
        ],
        special=[0, 7],
        images=[3],
        spans=[ImageSpan(0, 0, 3, 19)],
    )
    return Result(
        text="a red seven on the left and a blue two on the right",
        prompt=prompt,
        output=output,
        input_ids=np.arange(25),
        meta={
            "question": "describe the picture",
            "model": "demo",
            "adapter": "internvl",
            "dtype": "float32",
            "device": "cpu",
            "finish_reason": "stop",
            "seconds": 0.0843,
            "generation": {"max_new_tokens": 64, "do_sample": False},
            "versions": {"vlmprobe": "0.1.0", "torch": "2.10", "transformers": "5.23"},
        },
        images=(image or Image.linear_gradient("L").convert("RGB").resize((32, 32)),),
    )


def answer(*texts: str, probability: float = 0.7) -> Result:
    """A result that says ``texts``, a token each."""
    output = make_table([(text, probability, [("<b>other</b>", 0.2)]) for text in texts])
    return Result("".join(texts), None, output, np.arange(1), {"model": "hand", "finish_reason": "length"})


def scores(candidates: dict[str, Sequence[float]], **meta: str) -> Scores:
    """Candidates, each with the probabilities of its tokens: its words, the last one taking what is left."""
    tables: list[TokenTable] = []
    vocabulary: dict[str, int] = {}  # equal tokens have equal ids, others do not
    for name, masses in candidates.items():
        words = re.findall(r"^\S+|\s*\S+", name)
        parts = [*words[: len(masses) - 1], "".join(words[len(masses) - 1 :])]
        table = make_table([(part, mass, [("else", (1 - mass) / 2)]) for part, mass in zip(parts, masses, strict=True)])
        ids = np.array([vocabulary.setdefault(part, 1000 + len(vocabulary)) for part in parts])
        top_ids = np.where(table.top_ids == table.ids[:, None], ids[:, None], table.top_ids)
        tables.append(replace(table, ids=ids, top_ids=top_ids))
    return Scores(list(candidates), tables, [None] * len(tables), {"model": "hand", **meta})
