"""``vlmprobe doctor``: what a server provides, and which flags to start it with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from vlmprobe.cli import options, output
from vlmprobe.cli.open_model import served
from vlmprobe.cli.terminal import FAILED, console, guarded, one_line, working
from vlmprobe.demo import BUNDLED

if TYPE_CHECKING:
    from vlmprobe.engines.serving.health import Health

__all__ = ["doctor"]

INCOMPLETE = 3
NARROW = 80  # cells; a terminal below it shows details below the names, not beside them
SIGNS = {"yes": "yes", "no": "no", "unknown": "?"}


def doctor(
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of the server, such as http://localhost:8000.")],
    engine: Annotated[str, typer.Option("--engine", metavar="NAME", help="Server type; auto detects it.")] = "auto",
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Which of the server's models.", show_default=False),
    ] = None,
    processor: Annotated[
        str | None,
        typer.Option(
            "--processor", metavar="MODEL", help="The model's folder or hub id, for its processor.", show_default=False
        ),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", "--seconds", metavar="S", help="Seconds per request.")] = 60.0,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Report what the server at URL is, what its numbers mean, what it provides, and which flags to start it with.

    The API key is read from VLMPROBE_API_KEY.
    """
    if url in BUNDLED or os.path.isdir(os.path.expanduser(url)):
        raise typer.BadParameter(
            f"{url} is a checkpoint, and doctor examines servers: for a checkpoint use vlmprobe check {url}",
            param_hint="'URL'",
        )
    with guarded(debug):
        with working(f"Asking {url}"):
            import vlmprobe
            from vlmprobe.engines.serving.health import examine
            from vlmprobe.engines.serving.http import background_loop

            with served():
                probe = vlmprobe.connect(url, engine=engine, model=model, processor=processor, timeout=timeout)
            health = background_loop.run(examine(probe.engine))  # type: ignore[arg-type]
        if as_json:
            output.print_json(health.to_dict())
        else:
            _print(health)
    if not health.usable:
        raise typer.Exit(FAILED)
    if not health.complete:
        raise typer.Exit(INCOMPLETE)


def _print(health: Health) -> None:
    from rich.table import Table
    from rich.text import Text

    screen = console()
    others = f" (of {len(health.models)})" if len(health.models) > 1 else ""
    most = "no limit" if health.max_logprobs is None else f"at most {health.max_logprobs}"
    about = Table.grid(padding=(0, 2, 0, 0))
    gives = [f"{name[:1].lower()}{name[1:]}" for name, has in health.abilities.items() if has]
    lacks = [f"{name[:1].lower()}{name[1:]}" for name, has in health.abilities.items() if not has]
    for name, value in (
        ("server", f"{health.engine} {health.version or ''} at {health.url}"),
        ("model", f"{health.model}{others}"),
        ("context", f"{health.context:,} positions" if health.context else "unknown"),
        ("numbers", f"{health.mode}; under sampling {health.value_kind}"),
        ("alternatives", most),
        ("also gives", "; ".join(gives) or "nothing"),
        ("does not give", "; ".join(lacks) or "nothing"),
    ):
        about.add_row(Text(name, style="dim"), Text(one_line(value)))
    screen.print(about)
    grid = Table.grid(padding=(0, 2, 0, 0))
    for each in health.findings:
        style = {"yes": "green", "no": "red" if each.needed else "yellow"}.get(each.state, "dim")
        mark, detail = Text(SIGNS[each.state], style=style), one_line(each.detail)
        if screen.width < NARROW:
            grid.add_row(mark, Text(f"{each.name}\n{detail}" if detail else each.name))
        else:
            grid.add_row(Text(each.name), mark, Text(detail))
    screen.print(Text(), grid, sep="\n")
    remedies = list(dict.fromkeys(each.remedy for each in health.findings if each.remedy))
    if remedies:
        screen.print(Text(f"Start the server with: {' '.join(remedies)}", style="bold"))
