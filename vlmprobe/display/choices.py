"""Display of choices: one line per step, its likeliest tokens side by side."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vlmprobe.display import view
from vlmprobe.display.html import environment, wrapped
from vlmprobe.display.shown import ShownChoices
from vlmprobe.display.terminal import Columns

__all__ = ["choices_html", "choices_rich"]

FAINT, SAID = Style(dim=True), Style(bold=True, underline=True)  # the chosen token is marked without colour
SHOWN = 60  # steps


@dataclass(frozen=True)
class Line:
    """One step as displayed."""

    step: int
    said: str
    probability: float  # of the chosen token
    others: tuple[view.Alternative, ...]  # the likeliest tokens, best first; the chosen one may be among them


def choices_html(choices: ShownChoices) -> str:
    """The choices as an HTML fragment with its own style, for Jupyter."""
    lines = _lines(choices)
    return wrapped(
        environment()
        .get_template("choices.html")
        .render(lines=lines[:SHOWN], width=choices.k, omitted=max(0, len(lines) - SHOWN))
    )


def choices_rich(choices: ShownChoices) -> RenderableType:
    """The choices for a terminal."""
    lines = _lines(choices)
    grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style=FAINT, expand=False)
    grid.add_column("step", justify="right")
    grid.add_column("said", no_wrap=True, overflow="ellipsis", max_width=18)
    for rank in range(choices.k):
        grid.add_column(str(rank + 1), no_wrap=True, overflow="ellipsis")
    for line in lines[:SHOWN]:
        cells = [
            Text(each.label, SAID if each.chosen else "").append(f" {view.percent(each.probability)}", FAINT)
            for each in line.others
        ]
        grid.add_row(str(line.step), Text(line.said), *cells)
    left_out = len(lines) - SHOWN
    shown = Columns(grid)
    return Group(shown, Text(f"⋯ {left_out:,} steps more", style=FAINT)) if left_out > 0 else shown


def _lines(choices: ShownChoices) -> list[Line]:
    lines: list[Line] = []
    found: dict[int, list[int]] = {}
    for row, step in enumerate(choices.steps.tolist()):
        found.setdefault(step, []).append(row)
    for step, rows in found.items():
        said = next(row for row in rows if choices.chosen[row])
        lines.append(
            Line(
                step=step,
                said=view.label(choices.tokens[said]),
                probability=float(choices.probabilities[said]),
                others=tuple(
                    view.Alternative(
                        view.label(choices.tokens[row]), float(choices.probabilities[row]), bool(choices.chosen[row])
                    )
                    for row in rows[: choices.k]
                ),
            )
        )
    return lines
