"""The prompt side of a LightLLM reply, in its new and its old format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmprobe.engines.serving import Alternative, Node, Row
from vlmprobe.engines.serving.http.reply import real, token_id
from vlmprobe.engines.serving.value_kind import FLOOR
from vlmprobe.errors import EngineResponseError
from vlmprobe.inputs.image_spans import ImageSpan

__all__ = ["MOST", "VIRTUAL", "image_runs", "prompt_rows"]

VIRTUAL = 100_000_000  # ids from here on are image positions, counted up over all images that the server holds
MOST = 128  # alternatives per prompt position; LightLLM's buffer has no more by default
NOT_LISTED = FLOOR - 9  # what engines report for a token that is not listed


def image_runs(ids: np.ndarray, images: int, where: str) -> tuple[ImageSpan, ...]:
    """The runs of virtual ids in a prompt [S]; within an image they count up by one.

    Raises:
        EngineResponseError: if their number is not the number of images sent.
    """
    runs: list[list[int]] = []
    for place in np.flatnonzero(ids >= VIRTUAL).tolist():
        if runs and runs[-1][1] == place and ids[place] == ids[place - 1] + 1:
            runs[-1][1] = place + 1
        else:
            runs.append([place, place + 1])
    if len(runs) != images:
        raise EngineResponseError(f"{where}: the prompt holds {len(runs)} images, and {images} were sent.")
    return tuple(ImageSpan(image, 0, start, stop) for image, (start, stop) in enumerate(runs))


def prompt_rows(reply: Node, ids: np.ndarray, spans: Sequence[ImageSpan], *, listed: bool) -> list[Row]:
    """Rows of a prompt of ids [S].

    Args:
        reply: with ``prompt_logprobs``.
        ids: of the prompt, virtual ones included.
        spans: image positions; nothing is read there.
        listed: whether the most likely tokens were requested, among which the prompt's own may be missing.
    """
    found = reply["prompt_logprobs"]
    entries = found.items()
    old = bool(entries) and isinstance(entries[0], list)
    if old:  # [[id, {next id: logprob}], ...]: each entry is about the token after it
        entries = [None, *(entry[1] if isinstance(entry, list) and len(entry) == 2 else None for entry in entries)]
    if len(entries) != len(ids):
        raise EngineResponseError(f"{found.where} has {len(entries)} rows for a prompt of {len(ids)} ids.")
    masked = {place for span in spans for place in range(span.start, span.stop)}
    return [
        Row(id=int(each)) if place in masked or not place else _row(entry, int(each), f"{found.where}[{place}]", listed)
        for place, (entry, each) in enumerate(zip(entries, ids, strict=True))
    ]


def _row(entry: Any, own: int, where: str, listed: bool) -> Row:
    if not isinstance(entry, dict) or len(entry) > MOST:
        raise EngineResponseError(f"{where} is not an object of at most {MOST} tokens.")
    values = {}
    for key, told in entry.items():
        if not key.isdecimal() or len(key) > 10:
            raise EngineResponseError(f"{where} holds {key[:20]!r}, which is not a token id.")
        number = told.get("logprob") if isinstance(told, dict) else told
        values[token_id(int(key), where)] = real(number, where)
    if not listed:
        if own not in values:
            raise EngineResponseError(f"{where} does not hold the prompt's own token {own}.")
        return Row(values[own], own)
    top = sorted(
        (Alternative(value, each) for each, value in values.items() if value > FLOOR), key=lambda each: -each.value
    )
    return Row(values.get(own, NOT_LISTED), own, top=tuple(top))
