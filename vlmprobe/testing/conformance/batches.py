"""C7: padding does not change the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlmprobe.probe import Request
from vlmprobe.results.result import Result
from vlmprobe.testing.conformance.check import check
from vlmprobe.testing.report import CheckFailure
from vlmprobe.testing.subject import GREEDY, NEW_TOKENS, Subject, text_rows
from vlmprobe.testing.tolerance import require_numbers, require_rows

__all__ = ["batch_is_single"]


@check(
    "C7",
    "a batch of mixed image sizes and text lengths gives the same numbers as single calls",
    "right padding, or an attention mask that does not reach the model",
    "position ids that count the padding",
    "an architecture that mixes the prompts of a batch: set capabilities.batching to False",
)
def batch_is_single(subject: Subject) -> Sequence[str] | None:
    """Every row of a batch against the model's own forward of that request alone; requests end at different steps."""
    notes, names = [], ["main", "wide", "other"]
    for extra in ("text", "two"):
        if reason := subject.unavailable(extra):
            notes.append(f"{'without an image' if extra == 'text' else 'several images'}: not checked ({reason})")
        else:
            names.append(extra)
    ends = sorted({*subject.adapter.end_ids, int(subject.greedy.output.ids[2])})  # one request ends early
    requests = [Request(subject.conversation(name).to_chat(), id=name) for name in names]
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS, "eos_token_id": ends, **GREEDY}
    results = list(subject.probe.generate_many(requests, batch_size=3, progress=False, keep="logits", **options))
    if [result.meta.get("id") for result in results] != names:
        raise CheckFailure(f"results in the order {names}", f"{[result.meta.get('id') for result in results]}")
    reduced = list(subject.probe.generate_many(requests, batch_size=3, progress=False, **options))
    for name, result, columns in zip(names, results, reduced, strict=True):
        _require_alone(subject, name, result, ends)
        _require_columns(subject, name, columns, options)
    if not subject.adapter.capabilities.batching:
        notes.append("the adapter does not support batching: requests ran one at a time")
    return notes


def _require_alone(subject: Subject, name: str, result: Result, ends: list[int]) -> None:
    """One result of the batch matches the model's own forward of that conversation."""
    ids, made = subject.prompt(name).ids, result.output.ids.tolist()
    if not np.array_equal(result.input_ids, ids):
        raise CheckFailure(f"{len(ids)} ids, the prompt's only", f"{len(result.input_ids)} ids", f"request {name!r}")
    table = subject.prompt_table(result)
    if table.logits is None or result.output.logits is None:
        raise CheckFailure('full rows with keep="logits"', "no logits in the result")
    rows, start = text_rows(table), len(ids)
    own = subject.own(name, [*(table.positions[rows] - 1), *range(start - 1, start - 1 + len(made))], made)
    names = [
        *subject.named(table, rows, f"request {name!r}, prompt row"),
        *(f"request {name!r}, generated token {step}" for step in range(len(made))),
    ]
    tolerance = subject.tolerance("paths")
    require_rows(
        np.concatenate([table.logits[rows], result.output.logits]),
        own,
        tolerance,
        of="rows of a batch",
        path="the model's own forward of the request alone",
        names=names,
    )
    short = own[len(rows) :].max(axis=-1) - own[len(rows) + np.arange(len(made)), made]
    if (short > 2 * tolerance).any():
        step = int(short.argmax())
        at = names[len(rows) + step]
        raise CheckFailure("the most likely token at each step", f"id {made[step]}, {short[step]:.3g} below it", at)
    inside = [step for step, each in enumerate(made) if each in ends]
    whole = inside == [len(made) - 1] or (not inside and len(made) == NEW_TOKENS)
    if not whole:
        raise CheckFailure(
            f"an answer that ends with its first end token of {ends}, or after {NEW_TOKENS} tokens",
            f"{made}",
            f"request {name!r}",
        )


def _require_columns(subject: Subject, name: str, came: Result, options: dict[str, Any]) -> None:
    """The columns of the default call, which keeps no full rows, match those of the same request alone."""
    alone = subject.ask(name, **options)
    ids, made = alone.output.ids.tolist(), came.output.ids.tolist()
    if made != ids:
        raise CheckFailure(f"the ids {ids}, without full rows too", f"{made}", f"request {name!r}")
    for part, single in ((subject.prompt_table(came), subject.prompt_table(alone)), (came.output, alone.output)):
        for column in ("logprobs", "entropy"):
            require_numbers(
                getattr(part, column),
                getattr(single, column),
                subject.tolerance("paths"),
                of=f"{column} in a batch without full rows",
                path="those of the request alone",
                names=subject.named(single, what=f"request {name!r}, row"),
            )
