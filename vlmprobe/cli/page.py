"""``vlmprobe page``: a web page on this computer that asks a model and shows what it was about to say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmprobe.cli import arguments, options
from vlmprobe.cli.open_model import is_server, open_model, require_checkpoint
from vlmprobe.cli.option_groups import Opening, Template, grouped
from vlmprobe.cli.terminal import console, guarded, note, working

__all__ = ["page"]

PAGE = "Page"


@grouped
def page(
    model: options.ModelOrServer = "demo",
    *,
    port: Annotated[
        int,
        typer.Option("--port", metavar="N", min=0, max=65535, help="Port of the page; 0 chooses a free one."),
    ] = 8765,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Only print the address of the page, and open no browser.")
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address to listen on. Anything but this computer's own lets others use the model.",
        ),
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="Host name by which a proxy, such as that of JupyterHub, reaches the page. Repeatable.",
            show_default=False,
        ),
    ] = None,
    saved: Annotated[
        Path | None,
        typer.Option(
            "--open",
            metavar="PATH",
            help="Also list the answers in it: a saved result, a folder of some, or the folder of a run.",
            show_default=False,
            exists=True,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root",
            metavar="FOLDER",
            help="Where image paths of that run start, if the images have been moved since.",
            show_default=False,
            exists=True,
            file_okay=False,
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="MODEL",
            help="A second model, asked the same beside the first; as MODEL. Options of checkpoints and of servers are "
            "those of the first, as far as they fit.",
            show_default=False,
        ),
    ] = None,
    template: Template,
    opening: Opening,
    debug: options.Debug = False,
) -> None:
    """Open a web page to ask MODEL about images and to see what it was about to say. Ctrl-C ends it."""
    with guarded(debug):
        from vlmprobe.page.server import LOCAL, Model, serve

        def model_of(name: str, opening: Opening) -> Model:
            if not is_server(name):
                require_checkpoint(name)  # before an address is told
            given = {option: value for option, value in vars(opening).items() if value not in (None, "auto", [])}
            return Model(
                name,
                lambda: open_model(name, prompt=prompted, **vars(opening)),
                _python(name, given | prompted),
            )

        if against == model:
            raise typer.BadParameter("is the first model again", param_hint="'--against'")

        prompted = arguments.prompt_options(template)
        models = [model_of(model, opening)]
        if against is not None:
            models.append(model_of(against, _fitting(opening, against)))
        if host not in LOCAL:
            note(
                f"Warning: {host} is open to other computers. Whoever learns the address of the page can use the "
                "model, and nothing that is sent is encrypted."
            )
        listed = None
        if saved is not None:
            from vlmprobe.page.saved import open_saved

            with working(f"Reading {saved}"):
                listed = open_saved(saved, root)
        serve(
            models,
            host=host,
            port=port,
            allow_hosts=allow_host or (),
            browser=not no_browser,
            told=lambda address: console().print(address, soft_wrap=True),
            saved=listed,
        )


def _fitting(opening: Opening, model: str) -> Opening:
    """Of the options of the first model those that the second one can have too."""
    kept = ("processor",) if is_server(model) else ("device", "dtype")
    return Opening(**{name: value for name, value in vars(opening).items() if name in kept})


def _python(model: str, given: dict[str, object]) -> str:
    """Python that opens the model as the command does."""
    names = {"served_model": "model"}
    shown = "".join(f", {names.get(name, name)}={value!r}" for name, value in given.items())
    return f"vlmprobe.{'connect' if is_server(model) else 'load'}({model!r}{shown})"
