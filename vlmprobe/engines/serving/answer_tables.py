"""Builds the tables of a result from an engine's rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmprobe.engines.serving.rows import Columns, Row, columns
from vlmprobe.engines.serving.value_kind import Meaning
from vlmprobe.engines.token_tables import prompt_rows, token_kinds
from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.results.detokenize import Detokenizer
from vlmprobe.results.table import TokenTable, joined

__all__ = ["answer_table", "prompt_table", "table_of"]

CONTEXT = 32  # ids before a candidate that affect how its text decodes


def answer_table(
    rows: Sequence[Row],
    start: int,
    alternatives: int,
    meaning: Meaning,
    processing: str,
    detokenizer: Detokenizer | None,
    where: str,
    *,
    text: str | None = None,
    context: Sequence[int] = (),
    lost: int = 0,
) -> TokenTable:
    """The table of T generated or given tokens, the first of which is at position ``start``.

    Args:
        rows: of the tokens.
        start: -1 if positions are unknown.
        alternatives, meaning, processing, where: of :func:`~vlmprobe.engines.serving.rows.columns`.
        detokenizer: of the model's tokenizer, if the client has it.
        text: the answer as the engine wrote it, which identifies an end token where nothing else does.
        context: ids before the first row.
        lost: how many tokens were generated that have no row, in unknown places.
    """
    found = columns(rows, alternatives, meaning, processing, where)
    ids = _ids(rows)
    if detokenizer is not None and ids is not None:
        kinds = token_kinds(ids, detokenizer.special)
        texts = detokenizer.texts_after(list(map(int, context[-CONTEXT:])), ids.tolist())
        offsets = np.array(detokenizer.offsets(ids.tolist(), texts), dtype=np.int64).reshape(len(rows), 2)
    else:
        texts = [row.text or "" for row in rows]
        kinds = ["text"] * len(rows)
        if text is not None and rows and "".join(texts) != text == "".join(texts[:-1]):
            kinds[-1] = "special"
        shown = ["" if kind == "special" else each for each, kind in zip(texts, kinds, strict=True)]
        offsets = joined(shown)
    positions = np.arange(len(rows), dtype=np.int64) + start if start >= 0 else np.full(len(rows), -1, np.int64)
    return table_of(ids, texts, kinds, positions, offsets, found, detokenizer, lost=lost)


def prompt_table(
    rows: Sequence[Row],
    spans: tuple[ImageSpan, ...],
    alternatives: int,
    meaning: Meaning,
    detokenizer: Detokenizer | None,
    where: str,
) -> TokenTable:
    """The table of a prompt of S positions, each of which has a row and an id; an image becomes one row of NaN."""
    ids = _ids(rows)
    assert ids is not None
    special = detokenizer.special if detokenizer is not None else frozenset()
    kept = prompt_rows(ids, spans, special)
    scored = set(kept.scored.tolist())
    # Prompt tokens are not sampled, so their distributions are unprocessed.
    listed = [
        rows[place] if at in scored else Row(id=rows[place].id, text=rows[place].text)
        for at, place in enumerate(kept.positions.tolist())
    ]
    found = columns(listed, alternatives, meaning, "none", where)
    image = [kind == "image" for kind in kept.kinds]
    if detokenizer is not None:
        texts = detokenizer.texts(kept.ids.tolist())
        texts = [
            detokenizer.alone(int(each)) if shown else text
            for each, text, shown in zip(kept.ids, texts, image, strict=True)
        ]
        offsets = np.array(detokenizer.offsets(kept.ids.tolist(), texts), dtype=np.int64).reshape(len(texts), 2)
    else:
        texts = [row.text or "" for row in listed]
        offsets = joined(texts)
    return table_of(kept.ids, texts, kept.kinds, kept.positions, offsets, found, detokenizer, spans)


def table_of(
    ids: np.ndarray | None,
    texts: list[str],
    kinds: list[str],
    positions: np.ndarray,
    offsets: np.ndarray,
    found: Columns,
    detokenizer: Detokenizer | None,
    spans: tuple[ImageSpan, ...] = (),
    lost: int = 0,
) -> TokenTable:
    """A table of columns and known texts; texts of alternatives are the tokenizer's, or else the engine's."""
    wide = found.numbers["top_ids"].shape[1]
    alone = None if detokenizer is None else detokenizer.alone
    top = [
        [each.shown if alone is None or each.id is None else alone(each.id) for each in row] + [""] * (wide - len(row))
        for row in found.top
    ]
    return TokenTable(
        ids=ids,
        tokens=texts,
        kinds=kinds,
        positions=positions,
        offsets=offsets,
        top_tokens=top,
        image_spans=spans,
        lost=lost,
        **found.numbers,
    )


def _ids(rows: Sequence[Row]) -> np.ndarray | None:
    """int64 [T], or None where any of them is not known."""
    known = [row.id for row in rows if row.id is not None]
    return np.array(known, dtype=np.int64) if len(known) == len(rows) else None
