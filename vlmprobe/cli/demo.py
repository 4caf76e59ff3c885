"""``vlmprobe demo``: the embedded model, asked about the bundled images."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmprobe.cli import options, output
from vlmprobe.cli.open_model import open_probe
from vlmprobe.cli.targets import html_target
from vlmprobe.cli.terminal import console, guarded, working

if TYPE_CHECKING:
    from rich.table import Table

    from vlmprobe.results.result import Result

__all__ = ["demo"]

QUESTIONS = (
    "Describe the picture.",
    "Which digit is on the left?",
    "What colour is the digit on the right?",
    "Are the two digits the same?",
)


def demo(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="Where to write the HTML report.", callback=html_target),
    ] = Path("vlmprobe-demo.html"),
    debug: options.Debug = False,
) -> None:
    """Ask the small model that ships with vlmprobe about its bundled images. Needs no network.

    It reads scenes of two handwritten digits. The terminal shows its answers and the tokens of the
    one that it was least sure of; the HTML report shows every token of every answer.
    """
    with guarded(debug):
        from vlmprobe.demo import sample_images
        from vlmprobe.display import page
        from vlmprobe.errors import CheckpointError

        files = sample_images()
        if not files:
            raise CheckpointError("The installation lacks the bundled images: reinstall vlmprobe.")
        opened = open_probe("demo")
        requests = [{"prompt": question, "image": file, "id": file.stem} for file in files for question in QUESTIONS]
        with working(f"Asking {len(requests)} questions"):
            answers = opened.generate_many(requests, progress=False, do_sample=False)
            results = [
                output.told(result, {"question": request["prompt"], "images": [str(request["image"])]})
                for request, result in zip(requests, answers, strict=True)
            ]
        output.write_html(page(results, title="vlmprobe demo"), out)
        sentences = [result for result in results if result.meta["question"] == QUESTIONS[0]]
        least = min(sentences, key=lambda result: result.confidence)
        _print(results, least, files[0].parent / f"{least.meta['id']}.png", out)


def _print(results: Sequence[Result], least: Result, image: Path, out: Path) -> None:
    screen = console()
    screen.print("The model that ships with vlmprobe, asked about images that it was not trained on.\n")
    screen.print(_answers(results))
    screen.print(f"\nThe sentence that it was least sure of, token by token ({image.name}):\n", style="bold")
    screen.print(least)
    for name, text in (
        ("Every token of every answer", str(out.absolute())),
        ("Ask it yourself", f'vlmprobe probe demo {shlex.quote(str(image))} "{QUESTIONS[1]}"'),
        ("Ask a model of your own", 'vlmprobe probe MODEL IMAGE "QUESTION"'),
    ):
        screen.print(f"\n{name}:", style="bold")
        screen.print(text, soft_wrap=True)


def _answers(results: Sequence[Result]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from vlmprobe.display.view import percent, plain

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    grid.add_column("question", overflow="fold")
    grid.add_column("answer", overflow="fold")
    grid.add_column("confidence", justify="right", no_wrap=True)
    shown = None
    for result in results:
        if result.meta["id"] != shown:
            if shown is not None:
                grid.add_row()
            shown = result.meta["id"]
            grid.add_row(Text(f"{shown}.png", style="bold"))
        grid.add_row(Text(result.meta["question"]), Text(plain(result.text)), percent(result.confidence))
    return grid
