"""Random tables and results for the tests of the analyses: rows of logits, and the columns that follow from them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from reference import columns

from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable, empty_numbers, joined

VOCABULARY = 40


def random_table(
    seed: int = 0,
    count: int = 12,
    *,
    alternatives: int = 5,
    keep: bool = True,
    blank: Sequence[int] = (),
    tokens: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    ids: Sequence[int] | None = None,
    spread: float = 2.0,
) -> TokenTable:
    """T tokens drawn from random rows of logits; ``blank`` rows are images, without numbers."""
    random = np.random.default_rng(seed)
    rows = (spread * random.normal(size=(count, VOCABULARY))).astype(np.float32)
    chosen = random.integers(0, VOCABULARY, count) if ids is None else np.asarray(ids)
    found = columns(rows, chosen)
    order = np.argsort(-rows, axis=1, kind="stable")[:, :alternatives]
    numbers = empty_numbers(count, alternatives)
    known = np.array([row not in blank for row in range(count)])
    for name in ("logprobs", "entropy", "ranks", "logsumexp"):
        numbers[name][known] = found[name][known]
    numbers["top_ids"][known] = order[known]
    numbers["top_logprobs"][known] = found["sorted"][known, :alternatives]
    logits = np.where(known[:, None], rows, np.nan).astype(np.float32)
    texts = [f" t{each}" for each in chosen] if tokens is None else list(tokens)
    return TokenTable(
        ids=chosen.astype(np.int64),
        tokens=texts,
        kinds=["image" if row in blank else "text" for row in range(count)] if kinds is None else list(kinds),
        positions=np.arange(count),
        offsets=joined(texts),
        top_tokens=[[f" t{each}" for each in row] for row in numbers["top_ids"]],
        logits=logits if keep else None,
        **numbers,
    )


def random_result(seed: int = 0, *, text: str | None = None, request: str | None = None, **options) -> Result:
    """An answer to a prompt of which the first token and an image have no distribution."""
    output = random_table(seed, **options)
    return Result(
        text="".join(output.tokens) if text is None else text,
        prompt=random_table(seed + 1000, 6, blank=(0, 2)),
        output=output,
        input_ids=np.arange(6),
        meta={"question": f"Question {seed}?", "model": "random", **({} if request is None else {"id": request})},
    )


def outcomes(seed: int, count: int, *, sharpness: float = 1.0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences and outcomes: calibrated where sharpness is 1 and shift 0, else as those bend the logit."""
    random = np.random.default_rng(seed)
    logit = random.normal(1.5, 2.0, count)
    true = 1 / (1 + np.exp(-logit))
    return 1 / (1 + np.exp(-(sharpness * logit + shift))), random.random(count) < true
