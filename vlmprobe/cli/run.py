"""``vlmprobe run``: a model over a data set. The same command again goes on where the last one ended."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmprobe.cli import arguments, options
from vlmprobe.cli.open_model import checkpoint_engine, is_server, open_model
from vlmprobe.cli.option_groups import Opening, Template, grouped
from vlmprobe.cli.terminal import FAILED, console, guarded, note, one_line, wrong_usage

__all__ = ["run"]

COLUMNS, ROWS = "Columns of DATA", "Rows"
PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "tp")  # GPUs of one model; tp is LMDeploy's name


def _option(*names: str, what: str, help: str, panel: str, **more: Any) -> Any:
    return typer.Option(*names, metavar=what, help=help, rich_help_panel=panel, show_default=False, **more)


@grouped
def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A local folder, a hub id, demo for the small bundled model, or the URL of a server; of several "
            "servers of one model with commas between them: http://a:8000,http://b:8000.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="A .parquet, .jsonl or .csv file, a folder that datasets saved, or a folder of images with "
            "--question-template.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the answers. The same command again goes on there: there is no option to resume.",
            show_default=False,
        ),
    ],
    question_template: Annotated[
        str | None,
        _option(
            "--question-template",
            what="TEXT",
            help='Write the questions from columns: "Is there a {thing}?".',
            panel=COLUMNS,
        ),
    ] = None,
    question: Annotated[
        str | None,
        _option(
            "--question",
            what="COL",
            help="Column of the questions, or of chat messages; question, prompt or messages by default.",
            panel=COLUMNS,
        ),
    ] = None,
    image: Annotated[
        str | None,
        _option("--image", what="COL", help="Column of the image, or a list of them; image or images.", panel=COLUMNS),
    ] = None,
    candidates: Annotated[
        str | None,
        _option(
            "--candidates",
            what="COL",
            help="Column of the answers to score, a list; candidates by default.",
            panel=COLUMNS,
        ),
    ] = None,
    answer: Annotated[
        str | None,
        _option("--answer", what="COL", help="Column of the right answer; answer by default.", panel=COLUMNS),
    ] = None,
    id: Annotated[
        str | None, _option("--id", what="COL", help="Column of the id; id by default.", panel=COLUMNS)
    ] = None,
    carry: Annotated[
        str | None,
        _option(
            "--carry",
            what="COL,...",
            help="Columns to keep with the answers; all further ones by default.",
            panel=COLUMNS,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        _option(
            "--root",
            what="FOLDER",
            help="Where image paths start, which they must not leave; DATA's folder by default.",
            panel=COLUMNS,
            exists=True,
            file_okay=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, _option("--limit", what="N", help="Only the first N rows of DATA.", panel=ROWS, min=0)
    ] = None,
    part: Annotated[
        str | None,
        _option(
            "--part",
            what="I/N",
            help="Only the rows whose number, divided by N, leaves I (0 to N-1): start N processes into one DIR.",
            panel=ROWS,
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask rows again that failed before.", rich_help_panel=ROWS)
    ] = False,
    max_failed: Annotated[
        str | None,
        _option(
            "--max-failed", what="P%", help="End the run if more fail, once 200 are asked, such as 5%.", panel=ROWS
        ),
    ] = None,
    verify: Annotated[
        int,
        _option(
            "--verify",
            what="N",
            help="First ask N answered rows again, and stop if their numbers have moved.",
            panel=ROWS,
            min=0,
        ),
    ] = 0,
    ray: Annotated[
        int | None,
        _option(
            "--ray",
            what="N",
            help="Open MODEL in N actors on Ray, on this machine or the cluster of RAY_ADDRESS.",
            panel=options.MODEL,
            min=1,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        _option(
            "--samples",
            what="N",
            help="Draw N answers of each row, with seeds that come from the row.",
            panel=options.GENERATION,
            min=1,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        _option(
            "--max-new-tokens",
            what="N",
            help="Length limit of an answer; the checkpoint's own, else 128, by default.",
            panel=options.GENERATION,
            min=1,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        _option(
            "--temperature",
            what="T",
            help="Sample at this temperature; 0 is greedy decoding.",
            panel=options.GENERATION,
            min=0.0,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        _option("--seed", what="N", help="Make sampling reproducible.", panel=options.GENERATION, min=0),
    ] = None,
    option: Annotated[
        list[str] | None,
        _option(
            "--option",
            "-o",
            what="NAME=VALUE",
            help="Any other argument of transformers' GenerationConfig. Repeatable.",
            panel=options.GENERATION,
        ),
    ] = None,
    prompt_tokens: Annotated[
        bool,
        typer.Option("--prompt-tokens", help="Also keep the prompt's tokens.", rich_help_panel=options.OUTPUT),
    ] = False,
    alternatives: options.Alternatives = None,
    batch_size: Annotated[
        int | None,
        _option(
            "--batch-size",
            what="N",
            help="Rows in a batch, at most; chosen by length and memory by default.",
            panel=options.MODEL,
            min=1,
        ),
    ] = None,
    *,
    template: Template,
    opening: Opening,
    debug: options.Debug = False,
) -> None:
    """Ask MODEL about every row of DATA, and keep the answers in DIR; what is answered is never asked again."""
    generation = options.generation_options(option, max_new_tokens, temperature)
    with guarded(debug):
        from vlmprobe.runs.data import require_arrow
        from vlmprobe.runs.limits import share_of

        require_arrow()
        with wrong_usage():
            share_of(max_failed)
            lines = _first_row(data, root, question_template, question, image, candidates, answer, id, carry, part)
        for line in lines:
            note_line(line)
        prompted = arguments.prompt_options(template)
        arguments.require_generation(generation)
        opened: Any
        if ray is None:
            opened = open_model(model, prompt=prompted, **vars(opening))
        else:
            opened = _on_ray(ray, model, opening, prompted)
        from vlmprobe.errors import RunError
        from vlmprobe.runs import run as over

        again = shlex.join(["vlmprobe", *sys.argv[1:]])
        try:
            summary = over(
                opened,
                data,
                out=out,
                question_template=question_template,
                question=question,
                image=image,
                candidates=candidates,
                answer=answer,
                id=id,
                carry=_listed(carry),
                root=root,
                limit=limit,
                part=part or (0, 1),
                retry_failed=retry_failed,
                samples=samples,
                prompt_tokens=prompt_tokens,
                alternatives=alternatives,
                max_failed=max_failed,
                verify=verify,
                seed=seed,
                batch_size="auto" if batch_size is None else batch_size,
                tell=note,
                **generation,
            )
        except RunError as error:
            if not error.begun:
                raise
            note(f"Error: {error}. What is finished is in {out}. To go on: {again}")
            raise typer.Exit(FAILED) from None
        note(f"{summary}. Look at it with: vlmprobe show {shlex.quote(str(out))}")
        if summary.interrupted:
            note(f"To go on: {again}")
            raise KeyboardInterrupt


def _on_ray(actors: int, model: str, opening: Opening, prompt: Mapping[str, Any]) -> Any:
    """The model for actors, which open it themselves."""
    from vlmprobe import load
    from vlmprobe.runs import OnRay

    if is_server(model):
        raise typer.BadParameter("a server needs no actors: it is asked many rows at a time", param_hint="'--ray'")
    here = {name: getattr(opening, name) for name in ("device", "dtype", "adapter", "revision")}
    asked = (opening.engine, opening.engine_option, opening.served_model, opening.processor)
    engine = checkpoint_engine(model, *asked)
    opens = partial(load, model, ignore_weights=opening.ignore_weights or (), **here, **engine, **prompt)
    spread = [engine[name] for name in PARALLEL if name in engine]
    wrong = [each for each in spread if type(each) is not int]
    found = OnRay(opens, actors, parallel=wrong[0] if wrong else prod(spread))
    with wrong_usage():
        found.require_cores()
    return found


def note_line(line: str) -> None:
    """One line on standard error, with its indent."""
    indent = len(line) - len(line.lstrip())
    console(error=True).print(" " * indent + one_line(line), soft_wrap=True)


def _first_row(
    data: Path,
    root: Path | None,
    template: str | None,
    question: str | None,
    image: str | None,
    candidates: str | None,
    answer: str | None,
    id: str | None,
    carry: str | None,
    part: str | None,
) -> list[str]:
    from vlmprobe.runs.columns import Naming
    from vlmprobe.runs.data import open_data
    from vlmprobe.runs.shards import Part
    from vlmprobe.runs.understood import understood

    if part is not None:
        Part.read(part)
    naming = Naming(question, image, candidates, answer, id, _listed(carry), template)
    return understood(open_data(data, root), naming)


def _listed(carry: str | None) -> list[str] | None:
    return None if carry is None else [each.strip() for each in carry.split(",") if each.strip()]
