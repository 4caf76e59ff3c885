"""Overviews: what an analysis found as one table with a few figures, in Jupyter and in a terminal.

A class derives from :class:`Viewed` and says in ``_overview`` what is to be seen of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL.Image import Image
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlmprobe.display import view
from vlmprobe.display.html import environment, image_parts, wrapped
from vlmprobe.display.progress import in_jupyter
from vlmprobe.display.terminal import FAINT, SHADES, TOKEN, Columns, bar
from vlmprobe.inputs.images import thumbnail

__all__ = ["Kind", "Overview", "Viewed", "show", "trend"]

Kind = Literal["text", "number", "share", "token", "image"]
HEAD, TAIL = 40, 10  # rows that are kept when the middle is left out
THUMB = 80  # pixels: twice the width of its cell, for high-density screens
STEPS = "▁▂▃▄▅▆▇█"
WIDEST = 24  # steps of a trend


@dataclass(frozen=True)
class Overview:
    """A table of R rows with what stands around it. All text may come from a model.

    Cells by the kind of their column: a str for ``"text"`` and ``"number"``; a float from 0 to 1 for ``"share"``, NaN
    if unknown; a text and its probability for ``"token"``; an image or None for ``"image"``, not shown in a terminal.
    """

    columns: Mapping[str, Kind]  # by name
    rows: Sequence[Sequence[Any]]  # [R], one cell per column
    question: str = ""
    figures: Sequence[tuple[str, str, str]] = ()  # name, value, meaning
    images: Sequence[Image] = ()

    @property
    def left_out(self) -> int:
        """Number of rows of the middle that are not shown."""
        return max(0, len(self.rows) - HEAD - TAIL)

    @property
    def ends(self) -> tuple[Sequence[Sequence[Any]], Sequence[Sequence[Any]]]:
        """The first rows and the last ones."""
        return (self.rows[:HEAD], self.rows[-TAIL:]) if self.left_out else (self.rows, [])


class Viewed:
    """Display in Jupyter and in a terminal of what has an overview."""

    def _overview(self) -> Overview:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return _html(self._overview())

    def __rich_console__(self, console: Any, options: Any) -> Any:
        yield _rich(self._overview())

    def show(self) -> None:
        """Display it: as a table in Jupyter, else printed."""
        show(self)


def show(shown: Any) -> None:
    """Display an object that has a view, in Jupyter or else on standard output."""
    if in_jupyter():
        from IPython.display import display

        display(shown)
    else:
        from rich.console import Console

        Console().print(shown)


def trend(shares: Sequence[float]) -> str:
    """Numbers from 0 to 1 as a line of bars, at most 24 of them; a dash for NaN."""
    count = len(shares)
    places = range(count) if count <= WIDEST else [round(at * (count - 1) / (WIDEST - 1)) for at in range(WIDEST)]
    return "".join(
        view.DASH if math.isnan(share := float(shares[place])) else STEPS[min(int(8 * share), 7)] for place in places
    )


def _html(overview: Overview) -> str:
    head, tail = overview.ends
    kinds = list(overview.columns.values())
    return wrapped(
        environment()
        .get_template("overview.html")
        .render(
            columns=overview.columns,
            head=[_cells(row, kinds) for row in head],
            tail=[_cells(row, kinds) for row in tail],
            omitted=overview.left_out,
            question=view.plain(overview.question),
            figures=overview.figures,
            images=[image_parts(image) for image in overview.images],
            legend="token" in kinds,
        )
    )


def _cells(row: Sequence[Any], kinds: Sequence[Kind]) -> list[dict[str, Any]]:
    """The cells of a row, for the template."""
    cells = []
    for cell, kind in zip(row, kinds, strict=True):
        made: dict[str, Any] = {"kind": kind}
        if kind == "image":
            made["image"] = None if cell is None else image_parts(thumbnail(cell, THUMB))
        elif kind == "share":
            made |= {"text": view.percent(cell), "width": 0 if math.isnan(cell) else round(100 * min(cell, 1.0))}
        elif kind == "token":
            made |= {"text": view.label(cell[0]), "level": view.level(cell[1]), "probability": view.percent(cell[1])}
        else:
            made["text"] = view.plain(cell)
        cells.append(made)
    return cells


def _rich(overview: Overview) -> RenderableType:
    grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style=FAINT, expand=False)
    drawn = [place for place, kind in enumerate(overview.columns.values()) if kind != "image"]
    names, kinds = list(overview.columns), list(overview.columns.values())
    bars = kinds.count("share") == 1  # there is room for one
    for place in drawn:
        kind = kinds[place]
        right = kind == "number" or (kind == "share" and not bars)
        fixed = kind in ("share", "token")
        grid.add_column(Text(names[place]), justify="right" if right else "left", no_wrap=fixed, overflow="fold")
    head, tail = overview.ends
    for row in head:
        grid.add_row(*(_cell(row[place], kinds[place], bars) for place in drawn))
    if tail:
        grid.add_row(Text("⋯", style=FAINT), *[Text(f"{overview.left_out:,} rows more", style=FAINT)][: len(drawn) - 1])
    for row in tail:
        grid.add_row(*(_cell(row[place], kinds[place], bars) for place in drawn))
    question = [Text(view.plain(overview.question), style=FAINT)] if overview.question else []
    figures = [Text.assemble((f"{name} ", FAINT), (value, "bold")) for name, value, _ in overview.figures]
    below = [Text("   ").join(figures)] if figures else []
    return Group(*question, Columns(grid), *below)


def _cell(cell: Any, kind: Kind, bars: bool) -> Text:
    if kind == "share":
        return bar(cell) if bars else Text(view.percent(cell))
    if kind == "token":
        level = view.level(cell[1])
        text = Text(view.label(cell[0]), style="" if level is None else SHADES[level])
        text.truncate(TOKEN, overflow="ellipsis")
        return text if level is None else Text.assemble(text, " ", (view.percent(cell[1]), FAINT))
    return Text(view.plain(cell))
