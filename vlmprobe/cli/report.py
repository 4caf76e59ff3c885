"""``vlmprobe report``: a folder of pages of what a run has found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmprobe.cli import options
from vlmprobe.cli.terminal import console, guarded, one_line

__all__ = ["report"]


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder that vlmprobe run wrote, or writes.", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help="Folder of the report: a new one, or one of an earlier report, whose files are replaced.",
            show_default=False,
        ),
    ],
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers",
            metavar="DATA",
            help="Right answers by id, instead of those of the data set: columns id and answer, in a format of "
            "vlmprobe run.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="DIR", help="Another run over the same questions, to compare.", show_default=False
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="FOLDER",
            help="Where image paths start, if the images have been moved since the run.",
            show_default=False,
            exists=True,
            file_okay=False,
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write a report of a run into FOLDER: figures, a table of all rows to filter, and pages of telling rows."""
    with guarded(debug):
        from rich.text import Text

        from vlmprobe.runs import open_run

        page = open_run(folder).report(out, answers=answers, against=against, root=root)
        console().print(Text(one_line(f"Wrote {page}")))
