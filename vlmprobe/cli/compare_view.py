"""A comparison of two models as JSON and in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlmprobe.display.view import DASH, label, nats, percent

if TYPE_CHECKING:
    from vlmprobe.analysis.compare import Compared, Comparison

__all__ = ["document", "view"]

SHOWN = 20  # requests in the terminal, those that differ most first
WORST = 5  # tokens that differ most


def document(found: Comparison, tolerance: float | None) -> dict[str, Any]:
    """What ``vlmprobe compare --json`` prints."""
    objections = None if tolerance is None else found.objections(tolerance)
    return {
        "a": dict(found.a),
        "b": dict(found.b),
        "same_kind": found.same_kind,
        "max_abs": found.max_abs,
        "mean_abs": found.mean_abs,
        "compared": found.compared,
        "equal_answers": found.equal_answers,
        "top1_agreement": found.top1_agreement,
        "same_prompts": found.same_prompts,
        "prompt_max_abs": _largest(found.prompt_differences),
        "tolerance": tolerance,
        "objections": objections,
        "passed": None if objections is None else not objections,
        "requests": [_request(each) for each in found.requests],
    }


def _request(each: Compared) -> dict[str, Any]:
    return {
        "id": each.id,
        "question": each.question,
        "answers": list(each.answers),
        "equal": each.equal,
        "how": each.how,
        "diverged": each.diverged,
        "same_prompt": each.same_prompt,
        "max_abs": each.max_abs,
        "tokens": each.rows.tokens,
        "logprobs_a": each.rows.a.tolist(),
        "logprobs_b": each.rows.b.tolist(),
        "top_a": each.rows.top_a,
        "top_b": each.rows.top_b,
    }


def view(found: Comparison, tolerance: float | None) -> RenderableType:
    """A comparison to print: the two models, each request, and a summary."""
    order = np.argsort([-np.nan_to_num(each.max_abs, nan=-1.0) for each in found.requests], kind="stable")
    parts: list[RenderableType] = [_sides(found), Text(), _requests(found, order[:SHOWN].tolist())]
    if len(order) > SHOWN:
        parts.append(Text(f"{len(order) - SHOWN} requests that differ less are not shown", style="dim"))
    parts += [Text(), _summary(found)]
    if not found.same_kind:
        parts.append(Text("The numbers of A and B do not mean the same: see value_kind.", style="yellow"))
    if tolerance is not None:
        objections = found.objections(tolerance)
        for each in objections:
            parts.append(Text(f"✗ {each}", style="bold red"))
        if not objections:
            parts.append(Text(f"✓ the same model within {tolerance:g} nats", style="bold green"))
    return Group(*parts)


def _sides(found: Comparison) -> Table:
    grid = Table.grid(padding=(0, 2))
    for name, meta in (("A", found.a), ("B", found.b)):
        grid.add_row(
            Text(name, style="bold"), Text(label(str(meta.get("model", DASH)))), Text(_source(meta), style="dim")
        )
    return grid


def _source(meta: Mapping[str, Any]) -> str:
    known = [label(str(meta[key])) for key in ("engine", "adapter", "dtype", "device") if meta.get(key)]
    return " · ".join([*known, f"values: {label(str(meta.get('value_kind', 'unknown')))}"])


def _requests(found: Comparison, order: list[int]) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    grid.add_column("request", overflow="fold", max_width=30)
    for name in ("tokens", "largest"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("how", no_wrap=True)
    grid.add_column("answers", overflow="fold", min_width=len("answers"))
    for place in order:
        each = found.requests[place]
        name = f"{place}" if each.id is None else str(each.id)
        grid.add_row(
            Text(f"{label(name)} {label(each.question)}"),
            str(len(each.rows.a)),
            _gap(each.max_abs),
            each.how,
            _answers(each),
        )
    return grid


def _answers(each: Compared) -> Text:
    if each.equal:
        return Text("same", style="dim")
    if each.diverged is None:
        return Text(f"{label(each.answers[0])} | {label(each.answers[1])}", style="yellow")
    there = each.rows.tokens[each.diverged] if each.diverged < len(each.rows.tokens) else ""
    return Text.assemble(
        (f"differ from token {each.diverged}, {label(there)}: ", "yellow"),
        f"{label(each.answers[0])} | {label(each.answers[1])}",
    )


def _summary(found: Comparison) -> Group:
    prompts = {True: "same ids", False: "different ids", None: "unknown"}[found.same_prompts]
    facts = (
        ("largest difference", f"{_gap(found.max_abs)} nats"),
        ("mean", f"{_gap(found.mean_abs)} nats"),
        ("equal answers", _share(found.equal_answers)),
        ("likeliest token the same", _share(found.top1_agreement)),
        ("prompts", prompts),
        ("largest there", f"{_gap(_largest(found.prompt_differences))} nats"),
        ("tokens compared", f"{len(found.differences):,}"),
        ("of A's", _share(found.compared)),
    )
    told = Columns([f"{name}  {value}" for name, value in facts], padding=(0, 3), equal=True)
    worst = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for name in ("request", "token", "A", "B", "difference"):
        worst.add_column(name, no_wrap=True, justify="left" if name in ("request", "token") else "right")
    rows = [
        (abs(gap), place, row)
        for place, each in enumerate(found.requests)
        for row, gap in enumerate(each.difference)
        if gap == gap and gap != 0
    ]
    for _, place, row in sorted(rows, reverse=True)[:WORST]:
        each = found.requests[place]
        name = label(str(place if each.id is None else each.id))
        both = (nats(float(value)) for value in (each.rows.a[row], each.rows.b[row]))
        worst.add_row(Text(name), Text(label(each.rows.tokens[row])), *both, _gap(float(each.difference[row])))
    return Group(told, Text(), worst) if rows else Group(told)


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max()) if len(values) else float("nan")


def _gap(value: float) -> str:
    """A difference to two digits, however small it is."""
    return DASH if np.isnan(value) else f"{value:.2g}".replace("-", "−")


def _share(value: float) -> str:
    return "100%" if value == 1 else percent(value)
