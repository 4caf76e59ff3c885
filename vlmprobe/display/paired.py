"""Display of a paired comparison: its metrics as a table."""

from __future__ import annotations

import io
import math

from rich.console import Console, Group, RenderableType
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vlmprobe.display import view
from vlmprobe.display.html import environment, wrapped
from vlmprobe.display.shown import ShownMetric, ShownPaired
from vlmprobe.display.terminal import Columns

__all__ = ["paired_html", "paired_rich", "paired_text"]

FAINT = Style(dim=True)
PRINTED = 120  # cells


def paired_html(found: ShownPaired) -> str:
    """A paired comparison as an HTML fragment with its own style, for Jupyter."""
    return wrapped(
        environment()
        .get_template("paired.html")
        .render(
            header=_header(found),
            rows=[(name, _cells(each)) for name, each in found.metrics.items()],
            note=_note(found),
        )
    )


def paired_rich(found: ShownPaired) -> RenderableType:
    """A paired comparison for a terminal."""
    grid = Table(box=None, pad_edge=False, padding=(0, 1), header_style=FAINT, expand=False)
    grid.add_column("")
    for name in _header(found):
        grid.add_column(Text(name), justify="right", overflow="fold")
    for name, each in found.metrics.items():
        grid.add_row(name, *_cells(each))
    return Group(Columns(grid), Text(_note(found), style=FAINT))


def paired_text(found: ShownPaired) -> str:
    """A paired comparison as lines of plain text, for ``print``."""
    console = Console(file=io.StringIO(), width=PRINTED, color_system=None)
    with console.capture() as printed:
        console.print(paired_rich(found))
    return "\n".join(line.rstrip() for line in printed.get().splitlines())


def _header(found: ShownPaired) -> list[str]:
    level = next(iter(found.metrics.values())).difference.level
    return [*map(view.label, found.names), "difference", f"{100 * level:g}% interval", "p"]


def _cells(metric: ShownMetric) -> list[str]:
    change = metric.difference
    return [
        _number(metric.a),
        _number(metric.b),
        _number(change.value, "+"),
        f"{_number(change.low, '+')} to {_number(change.high, '+')}",
        "" if math.isnan(metric.p) else _p(metric.p),
    ]


def _note(found: ShownPaired) -> str:
    test, (a, b) = found.mcnemar, map(view.label, found.names)
    left_out = f", {found.skipped:,} left out with a failure" if found.skipped else ""
    return f"{found.n:,} pairs{left_out}; right only with {a}: {test.only_a:,}, only with {b}: {test.only_b:,}"


def _number(value: float, sign: str = "") -> str:
    """Three decimals, with a true minus sign and no negative zero."""
    return f"{round(value, 3) or 0.0:{sign}.3f}".replace("-", "−")


def _p(value: float) -> str:
    return "<0.001" if value < 0.0005 else f"{value:.3f}"
