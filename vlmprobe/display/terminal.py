"""Results in a terminal, through ``rich``: readable in 80 columns, on light or dark background, without colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vlmprobe.display import view
from vlmprobe.display.shown import Shown, ShownAnswer, ShownResult, ShownScores, ShownTable, ShownThought

__all__ = ["FAINT", "SHADES", "TOKEN", "Columns", "bar", "rich_view", "table_rich", "token_text"]

# From grey to vermilion at nearly constant luminance: with black text each is legible and none glares, whatever the
# background. The unsure ones are underlined and bold, for terminals and viewers without colour.
SHADES = (
    Style(),
    Style(),
    Style(color="black", bgcolor="#9c917c"),
    Style(color="black", bgcolor="#b58f5c", underline=True),
    Style(color="black", bgcolor="#cc8538", underline=True),
    Style(color="black", bgcolor="#dd7820", underline=True, bold=True),
    Style(color="black", bgcolor="#ec6a13", underline=True, bold=True),
)
FAINT = Style(dim=True)
NARROW = 72  # cells; a terminal below it shows no bars, and figures in two columns
BAR = 8  # cells
BARS = " ━╸"  # what bars are drawn of
PARAGRAPHS = 60  # cells; a terminal below it shows the rows of a table that does not fit as paragraphs
UNBOUNDED = 1000  # cells
NORMAL = Style(bold=False)
TOKEN = 18  # cells at most
ROW_HEAD, ROW_TAIL = 24, 8  # rows of a table that are kept when the middle is left out
TEXT_HEAD, TEXT_TAIL = 600, 100  # tokens of running text
CANDIDATES = 20
THOUGHT = 200  # characters of a thought: its beginning and its end


def rich_view(result: Shown, *, answer: bool = True) -> RenderableType:
    """A ``Result`` (answer shaded by confidence, figures, table) or ``Scores`` (candidates as bars), to print.

    Args:
        result: what to show.
        answer: False leaves out the question and the running text of a ``Result``, if they are printed already.
    """
    head = [Text(view.plain(str(question)), style=FAINT)] if (question := result.meta.get("question")) else []
    source = Text(" · ".join(view.provenance(result.meta)), style=FAINT)
    if isinstance(result, ShownScores):
        above: list[RenderableType] = []
        below = [_mass(result)]
        if isinstance(result, ShownAnswer):
            above = [Padding(Text(view.plain(result.said), style="bold"), (1, 0))]
            above += [] if result.thought is None else [_thought(result.thought)]
            told = [Text(view.plain(result.note))] if result.note else []
            below = told if result.mass < view.LITTLE else [*below, *told]  # the note has the mass then
        return Group(*head, *above, _candidates(result), *_boundaries(result), *below, source)
    if not isinstance(result, ShownResult):
        raise TypeError(f"a Result or Scores can be shown, not {type(result).__name__}")
    rows = view.rows(result.output)
    said = [*head, Padding(_running(rows, result.output), (1, 0))] if answer else [Text()]
    return Group(*said, _Fitted(partial(_figures, result)), source, Text(), *_table_and_legend(rows, result.output))


def table_rich(table: ShownTable) -> RenderableType:
    """A table with one line per token, the middle left out if there are many."""
    return Group(*_table_and_legend(view.rows(table), table))


class Columns:
    """A table, or, where a terminal is too narrow for its columns, each row as a paragraph: no column is lost."""

    def __init__(self, grid: Table) -> None:
        self.grid = grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        least = Measurement.get(console, options.update(max_width=UNBOUNDED), self.grid).minimum
        if options.max_width >= PARAGRAPHS or least <= options.max_width:
            yield self.grid
            return
        names = [str(each.header) for each in self.grid.columns]
        for cells in zip(*(each.cells for each in self.grid.columns), strict=True):
            yield _paragraph(names, cells)


def _paragraph(names: Sequence[str], cells: Sequence[Any]) -> Text:
    """A row of a table as running text: its first cell, then the others after the names of their columns."""
    shown = [(name, str(cell).strip(BARS)) for name, cell in zip(names, cells, strict=True)]
    (_, first), *others = [(name, cell) for name, cell in shown if cell] or [("", "")]
    text = Text(first, style="bold", overflow="fold")
    for place, (name, cell) in enumerate(others):
        text.append(" · " if place else "  ", style=NORMAL + FAINT).append(f"{name} ".lstrip(), style=NORMAL + FAINT)
        text.append(cell, style=NORMAL)
    return text


class _Fitted:
    """What is built for the width of the terminal that it is printed in."""

    def __init__(self, build: Callable[[int], RenderableType]) -> None:
        self.build = build

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self.build(options.max_width)


def token_text(row: view.Row) -> Text:
    """A token that is not an image, as running text: shaded by confidence, faint if special."""
    if row.kind == "special":
        return Text(row.text, FAINT + _shade(row))
    lead = len(row.text) - len(row.text.lstrip(" ")) if row.text.strip() else 0
    return Text(row.text[:lead]).append(row.text[lead:], style=_shade(row))


def _figures(result: ShownResult, width: int) -> Table:
    grid = Table.grid(padding=(0, 3))
    cells = [Text.assemble((f"{name} ", FAINT), (value, "bold")) for name, value, _ in view.figures(result)]
    across = 2 if width < NARROW else 3
    for start in range(0, len(cells), across):
        grid.add_row(*cells[start : start + across])
    return grid


def _running(rows: Sequence[view.Row], table: ShownTable) -> Text:
    text = Text()
    for row in _ends(rows, TEXT_HEAD, TEXT_TAIL):
        if isinstance(row, int):
            text.append(f" ⋯ {row:,} tokens not shown ⋯ ", style=FAINT)
        elif row.kind == "image":
            image, count, _ = view.positions(table, row.index)
            text.append(f"[image {image + 1}, {count:,} positions]", style=FAINT)
        else:
            text.append_text(token_text(row))
    return text


def _table_and_legend(rows: Sequence[view.Row], table: ShownTable) -> tuple[RenderableType, RenderableType]:
    return _Fitted(partial(_table, rows, table)), _Fitted(_legend)


def _table(rows: Sequence[view.Row], table: ShownTable, space: int) -> RenderableType:
    cells = 0 if space < NARROW else BAR
    grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style=FAINT, expand=False)
    width = min(max((cell_len(row.label) for row in rows), default=0), TOKEN)
    grid.add_column("token", no_wrap=True, overflow="ellipsis", min_width=width, max_width=TOKEN)
    grid.add_column("probability", no_wrap=True, min_width=cells + 7)
    for name in ("logprob", "rank", "entropy"):
        grid.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    grid.add_column("alternatives", overflow="fold")  # the only column that wraps is the one that rich narrows
    for row in _ends(rows, ROW_HEAD, ROW_TAIL):
        if isinstance(row, int):
            grid.add_row(Text("⋯", style=FAINT), Text(f"{row:,} rows more", style=FAINT))
        elif row.kind == "image":
            image, count, _ = view.positions(table, row.index)
            grid.add_row(Text(f"[image {image + 1}]", style=FAINT), Text(f"{count:,} positions", style=FAINT))
        else:
            grid.add_row(
                Text().append(row.label, style=_shade(row) + (FAINT if row.kind == "special" else Style())),
                Text(row.share, style=FAINT) if row.bounded else bar(row.probability, cells),
                row.nats,
                str(row.rank) if row.rank >= 0 else view.DASH,
                view.nats(row.entropy),
                _others(row),
            )
    return Columns(grid)


def _candidates(scores: ShownScores) -> RenderableType:
    grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style=FAINT, expand=False)
    grid.add_column("candidate", overflow="fold", max_width=28)
    grid.add_column("among these", no_wrap=True, min_width=BAR + 7)
    # Answers with several spellings have no mean.
    means = {} if np.isnan(scores.means).all() else {"per token": scores.means, "per byte": scores.per_byte}
    for name in ("logprob", *means):
        grid.add_column(name, justify="right", no_wrap=True)
    ranked = view.order(scores)
    probabilities = scores.probabilities
    for rank, place in enumerate(ranked[:CANDIDATES]):
        mark = "¹" if scores.boundaries[place] else ""
        bounded = math.isnan(probabilities[place])
        grid.add_row(
            Text(view.label(scores.candidates[place]) + mark, style="bold" if not rank else ""),
            Text(view.share(scores, place), style=FAINT) if bounded else bar(float(probabilities[place])),
            view.summed(scores, place),
            *(view.nats(float(column[place])) for column in means.values()),
        )
    if len(ranked) > CANDIDATES:
        grid.add_row(Text("⋯", style=FAINT), Text(f"{len(ranked) - CANDIDATES:,} more", style=FAINT))
    return Columns(grid)


def _thought(thought: ShownThought) -> Text:
    """A thought in one line, and the beginning and the end of what it says in another."""
    said = " ".join(view.plain(thought.text).split())
    ends = said if len(said) <= THOUGHT else f"{said[: THOUGHT // 2]} ⋯ {said[-THOUGHT // 2 :]}"
    return Text.assemble((f"after a {view.plain(thought.told)}", FAINT), "\n" if ends else "", ends, "\n")


def _boundaries(scores: ShownScores) -> list[Text]:
    return [Text(f"¹ {view.plain(note)}", style=FAINT) for note in dict.fromkeys(filter(None, scores.boundaries))]


def _mass(scores: ShownScores) -> Text:
    held = (view.held(scores), "bold")
    return Text.assemble(("together the candidates hold ", FAINT), held, (" of what the model would say", FAINT))


def bar(probability: float, cells: int = BAR) -> Text:
    """A probability as a bar of at most so many cells, and in percent."""
    if math.isnan(probability):
        return Text(view.DASH, style=FAINT)
    whole, half = divmod(round(2 * cells * min(probability, 1.0)), 2)
    drawn = "━" * whole + "╸" * half
    return Text(f"{drawn:<{cells}} {view.percent(probability):>6}")


def _others(row: view.Row) -> Text:
    text = Text(no_wrap=True, overflow="ellipsis")
    for each in row.alternatives:
        if not each.chosen:
            text.append("  " if text else "").append(each.label).append(
                f" {view.percent(each.probability)}", style=FAINT
            )
    return text


def _legend(width: int) -> Text:
    text = Text("\nprobability of a token ", style=FAINT)
    if width < NARROW:
        text.append("\n")
    names = [f"≥ {view.LEVELS[1]}", *map(str, view.LEVELS[2:]), f"< {view.LEVELS[-1]}"]
    for name, style in zip(names, SHADES[1:], strict=True):
        text.append("" if width < PARAGRAPHS else " ").append(f" {name} ", style=Style(dim=False) + style)
    return text


def _shade(row: view.Row) -> Style:
    return Style() if row.level is None else SHADES[row.level]


def _ends(rows: Sequence[view.Row], head: int, tail: int) -> Iterator[view.Row | int]:
    """The rows, or, to leave out more than three, the first and last with the number between them."""
    if len(rows) <= head + tail + 3:
        yield from rows
    else:
        yield from rows[:head]
        yield len(rows) - head - tail
        yield from rows[-tail:]
