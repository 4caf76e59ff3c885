"""Outputs of a result: the table or JSON on standard output, files, and a note on each file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlmprobe.cli.terminal import console, note, writing

if TYPE_CHECKING:
    from rich.table import Table

    from vlmprobe.results.result import Result, Scores
    from vlmprobe.results.table import TokenTable

    Shown = TypeVar("Shown", Result, Scores)

__all__ = ["deliver", "print_json", "raw_logits", "told", "write_html"]

LOGIT_COLUMNS = 5


def told(result: Shown, question: dict[str, Any]) -> Shown:
    """The result with the question of the command line recorded in its ``meta``."""
    return replace(result, meta={**result.meta, **question})


def deliver(
    result: Result | Scores,
    *,
    as_json: bool,
    html: Path | None,
    save: Path | None,
    below: list[Any] | None = None,
    streamed: bool = False,
    further: Mapping[str, Any] | None = None,
) -> None:
    """Write the files, then print, so that a broken pipe loses no file.

    Args:
        result: what a probe returned.
        as_json: print JSON and nothing else.
        html: page to write, or None.
        save: folder or file to save to, or None.
        below: what to print after the table.
        further: entries of the JSON beside those of the result.
        streamed: whether the answer has been printed already; the table then follows it in a terminal only.
    """
    from vlmprobe.display import rich_view
    from vlmprobe.results.document import result_document, scores_document
    from vlmprobe.results.grouped import Answer
    from vlmprobe.results.result import Result

    if save is not None:
        with writing(save):
            result.save(save)
    if html is not None:
        write_html(result.to_html(), html)
    if as_json:
        if isinstance(result, Answer):
            document = result.to_dict()
        else:
            described = result_document if isinstance(result, Result) else scores_document
            document = described(result, logits=True)
        print_json({**(further or {}), **document})
    else:
        screen = console()
        if streamed and screen.is_terminal:
            screen.print(rich_view(result, answer=False))
        for part in (*(() if streamed else (result,)), *(below or ())):
            screen.print(part)
    if save is not None:
        note(f"Saved: {save}")
    if html is not None:
        note(f"Report: {html}")


def print_json(content: dict[str, Any]) -> None:
    """One line of JSON on standard output."""
    import sys

    from vlmprobe.results import document

    sys.stdout.write(document.dumps(content) + "\n")


def write_html(text: str, file: Path) -> None:
    """Write a page, creating its folder."""
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


def raw_logits(table: TokenTable) -> Table:
    """For a terminal: each token's raw logit, and the largest ones of its row."""
    from rich.table import Table
    from rich.text import Text

    from vlmprobe.display.view import DASH, label

    grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    grid.add_column("token", no_wrap=True, min_width=6, max_width=18)
    grid.add_column("raw logit", justify="right", no_wrap=True, min_width=9)
    grid.add_column("greatest logits", overflow="fold")
    for t, token in enumerate(table.tokens):
        row = None if table.logits is None or table.ranks[t] < 0 else table.logits[t]
        best = Text(no_wrap=True, overflow="ellipsis")
        for k in range(min(LOGIT_COLUMNS, table.top_ids.shape[1])):
            if row is not None:
                best.append("  " if best else "").append(label(table.top_tokens[t][k]))
                best.append(f" {row[table.top_ids[t, k]]:.3f}", style="dim")
        grid.add_row(Text(label(token)), DASH if row is None else f"{row[table.ids[t]]:.3f}", best)
    return grid
