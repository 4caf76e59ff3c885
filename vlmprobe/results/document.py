"""Results as JSON, the one form of ``to_dict``, ``to_json`` and ``--json``: valid for every reader, safe to print."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlmprobe.display.view import UNSAFE

__all__ = ["dumps", "finite", "result_document", "scores_document"]


def result_document(result: Any, *, logits: bool = False) -> dict[str, Any]:
    """A result as JSON-ready values; ``prompt`` is None where the prompt side was skipped.

    Args:
        result: a ``Result``.
        logits: whether the rows hold the full logits that were kept, one number per entry of the vocabulary.
    """
    prompt = result.prompt
    spans = [] if prompt is None else prompt.image_spans
    document = {
        "question": result.meta.get("question"),
        "text": result.text,
        "finish_reason": result.meta.get("finish_reason"),
        "confidence": result.confidence,
        "mean_confidence": result.mean_confidence,
        "perplexity": result.output.perplexity,
        "prompt": None if prompt is None else token_rows(prompt, logits=logits),
        "output": token_rows(result.output, logits=logits),
        "image_spans": [{"image": s.image, "tile": s.tile, "start": s.start, "stop": s.stop} for s in spans],
        "meta": dict(result.meta),
    }
    return finite(document)


def scores_document(scores: Any, *, logits: bool = False) -> dict[str, Any]:
    """Scores as JSON-ready values, the candidates in input order; ``logits`` as in :func:`result_document`."""
    columns = zip(
        scores.candidates,
        scores.logprobs.tolist(),
        scores.probabilities.tolist(),
        scores.means.tolist(),
        scores.per_byte.tolist(),
        scores.boundaries,
        scores.tables,
        strict=True,
    )
    document: dict[str, Any] = {
        "question": scores.meta.get("question"),
        "best": scores.best if scores.decided else None,
        "mass": scores.mass,
        "candidates": [
            {
                "text": text,
                "logprob": logprob,
                "probability": probability,
                "mean": mean,
                "per_byte": per_byte,
                "boundary": boundary,
                "tokens": token_rows(table, logits=logits),
            }
            for text, logprob, probability, mean, per_byte, boundary, table in columns
        ],
        "meta": dict(scores.meta),
    }
    if scores.bounded:
        for place, each in enumerate(document["candidates"]):
            each["logprob_at_most"] = scores.logprob_bounds[place, 1]
            each["probability_bounds"] = scores.probability_bounds[place]
    return finite(document)


def token_rows(table: Any, *, logits: bool = False) -> list[dict[str, Any]]:
    """One mapping per token; undefined values are None, and missing alternatives are left out."""
    rows = []
    for t in range(len(table)):
        alternatives = zip(table.top_ids[t].tolist(), table.top_tokens[t], table.top_logprobs[t].tolist(), strict=True)
        row = {
            "id": None if table.ids is None else int(table.ids[t]),
            "token": table.tokens[t],
            "kind": table.kinds[t],
            "position": int(table.positions[t]),
            "start": int(table.offsets[t, 0]),
            "stop": int(table.offsets[t, 1]),
            "logprob": float(table.logprobs[t]),
            "confidence": float(table.confidence[t]),
            "entropy": float(table.entropy[t]),
            "rank": int(table.ranks[t]) if table.ranks[t] >= 0 else None,
            "logsumexp": float(table.logsumexp[t]),
            "alternatives": [
                {"id": i if i >= 0 else None, "token": token, "logprob": p} for i, token, p in alternatives if p == p
            ],
        }
        if table.logprobs_at_most is not None:
            row["logprob_at_most"] = float(table.logprobs_at_most[t])
        if table.entropy_at_least is not None:
            row["entropy_at_least"] = float(table.entropy_at_least[t])
        if table.scores is not None:
            row["score"] = float(table.scores[t])
        if table.mass_allowed is not None:
            row["mass_allowed"] = float(table.mass_allowed[t])
        if logits and table.logits is not None:
            row["logits"] = table.logits[t].tolist()
        rows.append(row)
    return rows


def dumps(document: Mapping[str, Any]) -> str:
    """One line of JSON. NaN and infinities are null; terminal control characters are escaped, other text is not."""
    text = json.dumps(finite(document), ensure_ascii=False, allow_nan=False, default=str)
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def finite(value: Any) -> Any:
    """The same with None for NaN and infinities, Python's own numbers, lists and strings for keys."""
    if isinstance(value, (np.generic, np.ndarray)):
        return finite(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return value
