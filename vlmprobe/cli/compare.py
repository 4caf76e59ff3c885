"""``vlmprobe compare``: the same requests on two models. Is the deployed one the one that was evaluated?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmprobe.cli import options, output
from vlmprobe.cli.open_model import is_server, open_probe, open_server
from vlmprobe.cli.targets import file_target, new_target
from vlmprobe.cli.terminal import FAILED, console, guarded, note, working, writing

if TYPE_CHECKING:
    from vlmprobe.analysis.compare import Comparison
    from vlmprobe.probe import Probe

__all__ = ["compare"]

PLOTS = (".png", ".pdf", ".svg", ".jpg", ".jpeg")
SIDES = "Model A and B"


def _side(name: str, what: str, help: str) -> Any:
    return typer.Option(name, metavar=what, help=help, rich_help_panel=SIDES, show_default=False)


def _plot_target(context: typer.Context, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in PLOTS:
        raise typer.BadParameter(f"{value} must end in one of {', '.join(PLOTS)}")
    return new_target(file_target(value), context.params["overwrite"])


def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="The model that was evaluated: a local folder, a hub id, demo, or the URL of a server.",
            show_default=False,
        ),
    ],
    b: Annotated[
        str, typer.Argument(metavar="B", help="The model that is deployed, given in the same way.", show_default=False)
    ],
    requests: Annotated[
        Path,
        typer.Argument(
            metavar="REQUESTS",
            help="JSON Lines file: question, image or images, and optionally id, candidates, options.",
            exists=True,
            dir_okay=False,
            readable=True,
            show_default=False,
        ),
    ],
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="NATS",
            min=0.0,
            help="Largest allowed difference of a token's log-probability; beyond it the exit code is 1.",
            show_default=False,
        ),
    ] = None,
    dtype_a: Annotated[
        str | None,
        _side("--dtype-a", "NAME", "dtype of A, if it is a checkpoint; the checkpoint's own by default."),
    ] = None,
    dtype_b: Annotated[str | None, _side("--dtype-b", "NAME", "dtype of B.")] = None,
    adapter_a: Annotated[str | None, _side("--adapter-a", "NAME", "Adapter of A, if it is a checkpoint.")] = None,
    adapter_b: Annotated[str | None, _side("--adapter-b", "NAME", "Adapter of B.")] = None,
    revision_a: Annotated[str | None, _side("--revision-a", "REV", "Commit, branch or tag of A on the hub.")] = None,
    revision_b: Annotated[str | None, _side("--revision-b", "REV", "Commit, branch or tag of B on the hub.")] = None,
    engine_a: Annotated[
        str | None, _side("--engine-a", "NAME", "Server type of A, such as vllm; detected by default.")
    ] = None,
    engine_b: Annotated[str | None, _side("--engine-b", "NAME", "Server type of B.")] = None,
    device: options.Device = "auto",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            metavar="N",
            min=1,
            help="Length limit of the answers; 64 by default.",
            rich_help_panel=options.GENERATION,
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[
        bool,
        typer.Option(
            "--prompt/--no-prompt", help="Also compare the tokens of the prompts.", rich_help_panel=options.GENERATION
        ),
    ] = True,
    as_json: options.Json = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Also draw the differences, as png, svg or pdf.",
            callback=_plot_target,
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Let --plot replace what is there.",
            is_eager=True,  # read before --plot, whose check depends on it
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Run the same requests on A and B, and compare their numbers for the same tokens."""
    with guarded(debug):
        from vlmprobe.analysis.cases import read_cases

        cases = list(read_cases(requests))
        one, other = _opened(
            (a, engine_a, {"dtype": dtype_a, "adapter": adapter_a, "revision": revision_a}),
            (b, engine_b, {"dtype": dtype_b, "adapter": adapter_b, "revision": revision_b}),
            device,
        )
        generation: dict[str, Any] = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        with working(f"Comparing on {len(cases)} requests", spin=False):
            from vlmprobe.analysis.compare import compare as run

            found = run(one, other, cases, prompt=prompt, **generation)
        _deliver(found, tolerance, as_json, plot)
    if tolerance is not None and found.objections(tolerance):
        raise typer.Exit(FAILED)


Side = tuple[str, "str | None", "dict[str, str | None]"]


def _opened(a: Side, b: Side, device: str) -> list[Probe]:
    """The probes of both sides; a checkpoint on one side gives a server on the other its processor."""
    for name, engine, checkpoint in (a, b):
        given = [key for key, value in checkpoint.items() if value is not None]
        if is_server(name) and given:
            raise typer.BadParameter(
                f"{', '.join(given)} cannot be chosen for {name}: the server has loaded its model",
                param_hint="'--dtype'",
            )
        if not is_server(name) and engine is not None:
            raise typer.BadParameter(f"{name} is a checkpoint; an engine is for server URLs", param_hint="'--engine'")
    local = {
        place: open_probe(
            name, device=device, check=False, **{key: value for key, value in checkpoint.items() if value is not None}
        )
        for place, (name, _, checkpoint) in enumerate((a, b))
        if not is_server(name)
    }
    reader = next(iter(local.values()), None)
    return [
        local[place] if place in local else open_server(name, engine=engine or "auto", processor=reader)
        for place, (name, engine, _) in enumerate((a, b))
    ]


def _deliver(found: Comparison, tolerance: float | None, as_json: bool, plot: Path | None) -> None:
    from vlmprobe.cli.compare_view import document, view

    if plot is not None:
        from vlmprobe.display.plots.style import save

        with writing(plot):
            save(found.plot(tolerance=tolerance), plot)
    if as_json:
        output.print_json(document(found, tolerance))
    else:
        console().print(view(found, tolerance))
    if plot is not None:
        note(f"Plot: {plot}")
