"""Scores candidates: the state that each candidate token is drawn from, then one pass of the head over all states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmprobe.adapter import Adapter, Continuation, EncodedPrompt
from vlmprobe.engines.base import Options
from vlmprobe.engines.local.candidate_states import Asked, states_of_candidates
from vlmprobe.engines.local.capture import Head, Kept
from vlmprobe.engines.local.context_length import warn_if_beyond
from vlmprobe.engines.local.prefix_memory import PrefixMemory
from vlmprobe.engines.local.row_stats import numpy_columns
from vlmprobe.engines.token_tables import require_finite, token_kinds, token_table
from vlmprobe.inputs.messages import Conversation
from vlmprobe.results.choices import read_only
from vlmprobe.results.detokenize import Detokenizer
from vlmprobe.results.row_files import RowFile, Slots, row_files
from vlmprobe.results.table import TokenTable

__all__ = ["score", "scored"]

CONTEXT = 16  # prompt tokens before a candidate that can affect how its text decodes


def score(
    adapter: Adapter,
    head: Head,
    detokenizer: Detokenizer,
    requests: Sequence[tuple[Conversation, Sequence[str]]],
    options: Options,
    memory: PrefixMemory | None = None,
) -> list[tuple[list[TokenTable], list[str | None], dict[str, Any]]]:
    """Score the candidates of conversations that can share a batch; ``memory`` keeps beginnings of their prompts.

    Returns:
        For each conversation a table for each candidate; what happened at its boundary, if anything; for ``meta``:
        under ``prefix`` ``"shared"`` or why the prefill was not shared, under ``prefix_in_common`` how many of its ids
        were prefilled together with other conversations or in an earlier call, and the file of full rows where there is
        one.
    """
    asked = states_of_candidates(adapter, requests, memory)
    warn_if_beyond(adapter.model.config, [each.prompt for each in asked])
    return scored(head, detokenizer, asked, options)


def scored(
    head: Head, detokenizer: Detokenizer, asked: Sequence[Asked], options: Options
) -> list[tuple[list[TokenTable], list[str | None], dict[str, Any]]]:
    """What :func:`score` returns, from the states of the candidates."""
    counts = [{str(place): len(each.ids) for place, each in enumerate(one.candidates)} for one in asked]
    found = []
    with row_files(options.store, counts) as files:
        known = None if "logits" in options.keep else _columns(head, asked, options)
        start = 0
        for each, file in zip_longest(asked, files):
            columns = _columns(head, [each], options, file) if known is None else known
            stop = start + sum(len(one.ids) for one in each.candidates)
            tables = _tables(detokenizer, each, options, columns, slice(start, stop), file)
            start = stop if known else 0
            told = {**each.meta, **({"logits_file": str(file.path)} if file else {})}
            found.append((tables, [_boundary(detokenizer, each.prompt, one) for one in each.candidates], told))
    return found


@dataclass
class _Columns:
    """Numbers of the M tokens of all candidates, and of the R states that they are drawn from what is kept."""

    numbers: Mapping[str, np.ndarray]  # [M, ...]
    of: np.ndarray  # [M], in [0, R)
    rows: Mapping[str, np.ndarray | None]  # [R, ...]


def _columns(head: Head, asked: Sequence[Asked], options: Options, file: RowFile | None = None) -> _Columns:
    """The columns of all candidates of conversations; ``file`` is that of one conversation."""
    wanted = [
        ((one, source), token)
        for one, each in enumerate(asked)
        for candidate, drawn_from in zip(each.candidates, each.sources, strict=True)
        for source, token in zip(drawn_from, candidate.ids, strict=True)
    ]
    row_of = {drawn: row for row, drawn in enumerate(dict.fromkeys(drawn for drawn, _ in wanted))}
    of = torch.tensor([row_of[drawn] for drawn, _ in wanted])
    order = torch.argsort(of, stable=True)
    hidden = torch.stack([asked[one].states[source] for one, source in row_of])
    held: list[Tensor] = []
    chunks: Kept | None = None
    if "logits" in options.keep:
        places: list[list[tuple[str, int]]] = [[] for _ in row_of]
        cells = [(str(place), token) for place, ids in enumerate(asked[0].candidates) for token in range(len(ids.ids))]
        for cell, row in zip(cells, of.tolist(), strict=True):
            places[row].append(cell)
        chunks = Slots(file, places) if file else held
    ids = torch.tensor([token for _, token in wanted])
    stats = head.stats(hidden, ids[order], options.alternatives, of=of[order], keep=chunks)
    back = torch.argsort(order).numpy()
    return _Columns(
        {name: read_only(values[back]) for name, values in numpy_columns(stats).items()},
        of.numpy(),
        {
            "logits": torch.cat(held).numpy() if held else None,
            "hidden": hidden.float().cpu().numpy() if "hidden" in options.keep else None,
        },
    )


def _tables(
    detokenizer: Detokenizer, asked: Asked, options: Options, columns: _Columns, mine: slice, file: RowFile | None
) -> list[TokenTable]:
    """The tables of one conversation, whose tokens are ``mine`` of the columns."""
    cells = [
        f"token {place} of candidate {each}"
        for each, one in enumerate(asked.candidates)
        for place in range(len(one.ids))
    ]
    require_finite(columns.numbers["logsumexp"][mine], cells)
    mapped = file.close() if file else {}
    tables, start = [], mine.start
    for number, each in enumerate(asked.candidates):
        cut = slice(start, start + len(each.ids))
        start = cut.stop
        made = np.array(each.ids, dtype=np.int64)
        table = token_table(
            detokenizer,
            made,
            each.shared + np.arange(len(made)),
            token_kinds(made, detokenizer.special),
            {name: values[cut] for name, values in columns.numbers.items()},
            alternatives=options.alternatives,
            context=asked.prompt.ids[max(0, each.shared - CONTEXT) : each.shared].tolist(),
            rows={name: None if kept is None else kept[columns.of[cut]] for name, kept in columns.rows.items()},
        )
        tables.append(replace(table, logits=mapped[str(number)]) if file else table)
    return tables


def _boundary(detokenizer: Detokenizer, prompt: EncodedPrompt, candidate: Continuation) -> str | None:
    merged = len(prompt.ids) - candidate.shared
    if not merged:
        return None
    lost = detokenizer.decode(prompt.ids[candidate.shared :].tolist())
    return (
        f"the last {merged} prompt token(s) {lost!r} merge with the candidate: scored from position {candidate.shared}"
    )
