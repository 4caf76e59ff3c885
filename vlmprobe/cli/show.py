"""``vlmprobe show``: what a run over a data set has found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmprobe.cli import options, output
from vlmprobe.cli.terminal import console, guarded, one_line

if TYPE_CHECKING:
    from vlmprobe.runs.overview import RunOverview

__all__ = ["show"]

LONGEST = 70  # characters of a question or of a message


def show(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that vlmprobe run wrote, or writes.", show_default=False)
    ],
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what vlmprobe run has found in DIR: counts, accuracy, calibration, slowest rows, and why rows failed."""
    with guarded(debug):
        from vlmprobe.runs import open_run
        from vlmprobe.runs.overview import overview

        run = open_run(folder)
        found = overview(run)
        if as_json:
            output.print_json({"run": dict(run.about), **found.to_dict()})
        else:
            _print(run.about, found)


def _print(about: Any, found: RunOverview) -> None:
    from rich.table import Table
    from rich.text import Text

    from vlmprobe.runs.spent import told

    screen = console()
    grid = Table.grid(padding=(0, 2, 0, 0))
    model = ", ".join(str(about[name]) for name in ("model", "revision", "dtype", "engine") if about.get(name))
    lines = [("model", model)]
    if about.get("options"):
        lines.append(("options", ", ".join(f"{name}={value!r}" for name, value in about["options"].items())))
    lines.append(("rows", f"{found.rows:,}, of them {found.failed:,} failed"))
    lines.append(("answers", f"{found.answers:,} to distinct questions, {found.tokens:,} tokens"))
    lines.append(("time", f"{found.seconds:,.1f} s of the model"))
    if where := told(found.spent):
        lines.append(("spent on", where))
    lines += [("machine", _machine(each)) for each in found.machines]
    if found.judged:
        lines.append(("judged", f"{found.judged:,} rows by their right answer; in brackets 95% intervals"))
        lines += [(name, f"{value:.3f}{_interval(found, name)}") for name, value in found.figures.items()]
    for name, value in lines:
        grid.add_row(Text(name, style="dim"), Text(one_line(value)))
    screen.print(grid)
    _rows(screen, "Slowest rows:", [(f"{each['seconds']:.2f} s", each) for each in found.slowest])
    _rows(
        screen,
        "Failed rows:",
        [(f"{each['count']:,}", each | {"question": f"{each['error']}: {each['message']}"}) for each in found.reasons],
    )


def _interval(found: RunOverview, name: str) -> str:
    """The 95% interval of a figure, or nothing."""
    low, high = found.intervals.get(name, (None, None))
    return "" if low is None else f"  ({low:.3f} to {high:.3f})"


def _rows(screen: Any, title: str, rows: list[tuple[str, dict[str, Any]]]) -> None:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    grid = Table.grid(padding=(0, 2, 0, 0))
    for figure, row in rows:
        named = f"row {row['row']}" if row["id"] is None else f"row {row['row']} ({row['id']})"
        text = one_line(str(row["question"]))
        short = text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
        grid.add_row(Text(figure), Text(one_line(named)), Text(short))
    screen.print(Text(f"\n{title}"), grid, sep="\n")


def _machine(each: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in (each.get("versions") or {}).items())
    return f"{each.get('host')}, {each.get('device') or 'server'}; {versions}"
