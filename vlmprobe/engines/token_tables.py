"""Builds a ``TokenTable`` from an engine's columns: the rows of a prompt, and the text of every token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmprobe.errors import NonFiniteLogitsError
from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.results.detokenize import Detokenizer, TextsOfIds
from vlmprobe.results.table import TokenTable, empty_numbers

__all__ = ["PromptRows", "boundary", "prompt_rows", "require_finite", "token_kinds", "token_table"]


@dataclass(frozen=True)
class PromptRows:
    """The rows of a prompt table: one for each text token, one for each image."""

    positions: np.ndarray  # int64 [T]; of an image, its first
    ids: np.ndarray  # int64 [T]
    kinds: list[str]  # [T]

    @property
    def scored(self) -> np.ndarray:
        """int64 [R]: the rows that have a distribution (not an image, not the first position)."""
        text = np.array([kind != "image" for kind in self.kinds], dtype=bool)
        return np.flatnonzero(text & (self.positions > 0))


def prompt_rows(ids: np.ndarray, spans: Sequence[ImageSpan], special: frozenset[int]) -> PromptRows:
    """Rows of a prompt of ids [S]. An image covers its first to its last position, tile separators too."""
    begins = {}
    inside = np.zeros(len(ids), dtype=bool)
    for image in {span.image for span in spans}:
        start = min(span.start for span in spans if span.image == image)
        stop = max(span.stop for span in spans if span.image == image)
        begins[start] = image
        inside[start:stop] = True
    positions = np.array([place for place in range(len(ids)) if not inside[place] or place in begins], dtype=np.int64)
    kinds = [
        "image" if place in begins else "special" if int(ids[place]) in special else "text"
        for place in positions.tolist()
    ]
    return PromptRows(positions, ids[positions], kinds)


def token_table(
    detokenizer: Detokenizer,
    ids: np.ndarray,
    positions: np.ndarray,
    kinds: list[str],
    numbers: Mapping[str, np.ndarray],
    *,
    at: np.ndarray | None = None,
    alternatives: int,
    spans: tuple[ImageSpan, ...] = (),
    context: Sequence[int] = (),
    rows: Mapping[str, np.ndarray | None] | None = None,
) -> TokenTable:
    """Build a table of T rows.

    Args:
        detokenizer: of the model's tokenizer.
        ids: int64 [T]; ``positions`` and ``kinds`` likewise.
        numbers: the numeric columns of R rows (``logprobs``, ``entropy``, ``ranks``, ``logsumexp``, ``top_ids``,
            ``top_logprobs``).
        at: int64 [R], the rows that the numbers are for; all T where None. The others get NaN.
        alternatives: K, used where there are no numbers at all.
        spans: image spans of a prompt.
        context: ids before the first row that affect how its text decodes (a candidate after its prompt).
        rows: further columns of R rows: ``logits``, ``hidden``, ``scores``; those that are None are left out.
    """
    count = len(ids)
    columns: dict[str, Any]
    if at is None and count:
        columns = {name: np.ascontiguousarray(values) for name, values in numbers.items()}
    else:
        width = numbers["top_ids"].shape[1] if at is not None and len(at) else alternatives
        columns = empty_numbers(count, width)
        for name, values in numbers.items():
            if at is not None and len(at):
                columns[name][at] = values
    for name, kept in (rows or {}).items():
        if kept is not None and at is None:
            columns[name] = np.ascontiguousarray(kept, np.float32)
        elif kept is not None:
            columns[name] = np.full((count, *kept.shape[1:]), np.nan, np.float32)
            columns[name][at] = kept
    texts = detokenizer.texts_after(context, ids.tolist())
    if "image" in kinds:
        told = zip(ids.tolist(), texts, kinds, strict=True)
        texts = [detokenizer.alone(each) if kind == "image" else text for each, text, kind in told]
    return TokenTable(
        ids=np.asarray(ids, dtype=np.int64),
        tokens=texts,
        kinds=kinds,
        positions=np.asarray(positions, dtype=np.int64),
        offsets=np.array(detokenizer.offsets(ids.tolist(), texts), dtype=np.int64).reshape(count, 2),
        top_tokens=TextsOfIds(detokenizer.alone, columns["top_ids"]),
        image_spans=spans,
        **columns,
    )


def token_kinds(ids: np.ndarray, special: frozenset[int]) -> list[str]:
    """``"special"`` or ``"text"`` for each id."""
    return ["special" if each in special else "text" for each in ids.tolist()]


def require_finite(logsumexp: np.ndarray, names: Sequence[str]) -> None:
    """Raise :class:`NonFiniteLogitsError` that names the first row whose logits hold NaN or infinity."""
    bad = np.flatnonzero(~np.isfinite(logsumexp))
    if len(bad):
        raise NonFiniteLogitsError(non_finite(names[bad[0]]))


def non_finite(where: str) -> str:
    """The message of :class:`NonFiniteLogitsError`."""
    return (
        f"The model's logits for {where} are not finite. Usual causes: float16 overflow (load with dtype='bfloat16' "
        "or 'float32'), damaged weights, or a model that does not support the attention implementation in use."
    )


def boundary(merged: int, lost: str, start: int) -> str | None:
    """The note on a candidate whose first characters the tokenizer merged with the end of the prompt, or None."""
    if not merged:
        return None
    shown = f" {lost!r}" if lost else ""
    return f"the last {merged} prompt token(s){shown} merge with the candidate: scored from position {start}"
