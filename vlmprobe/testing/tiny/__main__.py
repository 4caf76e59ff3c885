"""Write tiny checkpoints from a shell: ``python -m vlmprobe.testing.tiny NAME FOLDER``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmprobe.errors import UnknownModelError
from vlmprobe.testing import tiny


def main(
    name: Annotated[str, typer.Argument(help="Family, such as internvl; 'list' prints them all.")],
    folder: Annotated[Path | None, typer.Argument(help="Where to write the checkpoint.")] = None,
) -> None:
    """Write the tiny random checkpoint of a family into a folder."""
    if name == "list":
        for each in tiny.names():
            typer.echo(f"{each}\t{tiny.family(each).notes}".rstrip())
        return
    if folder is None:
        raise typer.BadParameter("name the folder to write to", param_hint="FOLDER")
    try:
        typer.echo(tiny.build(name, folder))
    except UnknownModelError as error:
        raise typer.BadParameter(str(error), param_hint="NAME") from error


if __name__ == "__main__":
    typer.run(main)
