"""Answers with chosen confidences and texts, as a data set would give them; no model."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from render_cases import make_table

from vlmprobe.results.result import Result


def said(text: str, confidence: float, *, colour: str | None = None, **meta: Any) -> Result:
    """An answer of one token with that probability; about a patch of one colour, if given."""
    return Result(
        text=text,
        prompt=None,
        output=make_table([(text, confidence, [])]),
        input_ids=np.arange(3),
        meta={"question": "What is it?", "model": "m", **meta},
        images=() if colour is None else (Image.new("RGB", (16, 16), colour),),
    )


def data_set(seed: int, count: int, *, better: float = 0.0) -> tuple[list[Result], list[Result], list[str]]:
    """Answers of A and of B, right ones "yes", and the right answers. B is right more often by about ``better``."""
    random = np.random.default_rng(seed)
    sure = random.uniform(0.3, 1.0, (count, 2))
    level = random.random(count)  # how hard the question is, for both
    right = np.stack([level < 0.6, level + random.normal(0, 0.1, count) < 0.6 + better], axis=1)
    a, b = (
        [said("Yes." if right[row, side] else "no", sure[row, side], id=row) for row in range(count)] for side in (0, 1)
    )
    return a, b, ["yes"] * count
