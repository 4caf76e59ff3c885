"""Results in a terminal, through ``rich``: readable in 80 columns, on light or dark background, without colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vlmprobe.display import view
from vlmprobe.display.shown import Shown, ShownResult, ShownScores, ShownTable

__all__ = ["FAINT", "SHADES", "TOKEN", "bar", "rich_view", "table_rich", "token_text"]

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
TIGHT = 60  # cells; below it tables show the most telling columns only
BAR = 8  # cells
TOKEN, TIGHT_TOKEN = 18, 10  # cells at most
ROW_HEAD, ROW_TAIL = 24, 8  # rows of a table that are kept when the middle is left out
TEXT_HEAD, TEXT_TAIL = 600, 100  # tokens of running text
CANDIDATES = 20


def rich_view(result: Shown, *, answer: bool = True) -> RenderableType:
    """A ``Result`` (answer shaded by confidence, figures, table) or ``Scores`` (candidates as bars), to print.

    Args:
        result: what to show.
        answer: False leaves out the question and the running text of a ``Result``, if they are printed already.
    """
    head = [Text(view.plain(str(question)), style=FAINT)] if (question := result.meta.get("question")) else []
    source = Text(" · ".join(view.provenance(result.meta)), style=FAINT)
    if isinstance(result, ShownScores):
        return Group(*head, _Fitted(partial(_candidates, result)), *_boundaries(result), _mass(result), source)
    if not isinstance(result, ShownResult):
        raise TypeError(f"a Result or Scores can be shown, not {type(result).__name__}")
    rows = view.rows(result.output)
    said = [*head, Padding(_running(rows, result.output), (1, 0))] if answer else [Text()]
    return Group(*said, _Fitted(partial(_figures, result)), source, Text(), *_table_and_legend(rows, result.output))


def table_rich(table: ShownTable) -> RenderableType:
    """A table with one line per token, the middle left out if there are many."""
    return Group(*_table_and_legend(view.rows(table), table))


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


def _table(rows: Sequence[view.Row], table: ShownTable, space: int) -> Table:
    cells = 0 if space < NARROW else BAR
    grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style=FAINT, expand=False)
    most = TIGHT_TOKEN if space < TIGHT else TOKEN
    width = min(max((cell_len(row.label) for row in rows), default=0), most)
    grid.add_column("token", no_wrap=True, overflow="ellipsis", min_width=width, max_width=most)
    grid.add_column("probability", no_wrap=True, min_width=cells + 7)
    numbers = ("logprob", "rank") if space < TIGHT else ("logprob", "rank", "entropy")
    for name in numbers:
        grid.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    if space >= TIGHT:
        grid.add_column("alternatives", overflow="fold")  # the only column that wraps is the one that rich narrows
    for row in _ends(rows, ROW_HEAD, ROW_TAIL):
        if isinstance(row, int):
            grid.add_row(Text("⋯", style=FAINT), Text(f"{row:,} rows more", style=FAINT))
        elif row.kind == "image":
            image, count, _ = view.positions(table, row.index)
            grid.add_row(Text(f"[image {image + 1}]", style=FAINT), Text(f"{count:,} positions", style=FAINT))
        else:
            values: list[RenderableType] = [
                Text().append(row.label, style=_shade(row) + (FAINT if row.kind == "special" else Style())),
                bar(row.probability, cells),
                view.nats(row.logprob),
                str(row.rank) if row.rank >= 0 else view.DASH,
                view.nats(row.entropy),
                _others(row),
            ]
            grid.add_row(*values[: len(grid.columns)])
    return grid


def _candidates(scores: ShownScores, space: int) -> Table:
    cells, numbers = (BAR, 3) if space >= TIGHT else (0, 1)
    grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style=FAINT, expand=False)
    grid.add_column("candidate", overflow="fold", max_width=28)
    grid.add_column("among these", no_wrap=True, min_width=cells + 7)
    for name in ("logprob", "per token", "per byte")[:numbers]:
        grid.add_column(name, justify="right", no_wrap=True)
    ranked = view.order(scores)
    probabilities, columns = scores.probabilities, (scores.logprobs, scores.means, scores.per_byte)
    for rank, place in enumerate(ranked[:CANDIDATES]):
        mark = "¹" if scores.boundaries[place] else ""
        grid.add_row(
            Text(view.label(scores.candidates[place]) + mark, style="bold" if not rank else ""),
            bar(float(probabilities[place]), cells),
            *(view.nats(float(column[place])) for column in columns[:numbers]),
        )
    if len(ranked) > CANDIDATES:
        grid.add_row(Text("⋯", style=FAINT), Text(f"{len(ranked) - CANDIDATES:,} more", style=FAINT))
    return grid


def _boundaries(scores: ShownScores) -> list[Text]:
    return [Text(f"¹ {view.plain(note)}", style=FAINT) for note in dict.fromkeys(filter(None, scores.boundaries))]


def _mass(scores: ShownScores) -> Text:
    held = (view.percent(scores.mass), "bold")
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
    gap = "" if width < TIGHT else " "
    for name, style in zip(names, SHADES[1:], strict=True):
        text.append(gap).append(f" {name} ", style=Style(dim=False) + style)
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
