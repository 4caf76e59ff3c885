"""``vlmprobe probe``: ask one question and show every token of the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vlmprobe.cli import arguments, options, output
from vlmprobe.cli.open_model import open_model
from vlmprobe.cli.option_groups import Opening, Template, Turns, grouped
from vlmprobe.cli.streaming import follow
from vlmprobe.cli.terminal import guarded, working
from vlmprobe.errors import ResultError

__all__ = ["probe"]


@grouped
def probe(
    model: options.ModelOrServer,
    image: options.Image,
    question: options.Question = None,
    more_images: options.MoreImages = None,
    *,
    turns: Turns,
    template: Template,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Print the answer while it is generated, shaded by confidence in a terminal. Ctrl-C ends it and keeps "
            "the text so far.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    fields: Annotated[
        bool,
        typer.Option(
            "--fields",
            help="Also read the JSON in the answer and show how sure each of its fields is.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    schema: Annotated[
        Path | None,
        typer.Option(
            "--schema",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="JSON Schema by which --fields tells types, missing and surplus fields, and which --constrain "
            "imposes.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    constrain: Annotated[
        bool,
        typer.Option(
            "--constrain",
            help="Let the model write nothing but what --schema allows.",
            rich_help_panel=options.GENERATION,
        ),
    ] = False,
    grammar: Annotated[
        Path | None,
        typer.Option(
            "--grammar",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="Let the model write nothing but what this grammar allows (GBNF or Lark).",
            rich_help_panel=options.GENERATION,
            show_default=False,
        ),
    ] = None,
    as_json: options.Json = False,
    html: options.Html = None,
    save: options.Save = None,
    overwrite: options.Overwrite = False,
    logits: options.Logits = False,
    prompt: Annotated[
        bool | None,
        typer.Option(
            "--prompt/--no-prompt",
            help="Also show the prompt's tokens in the terminal, or leave them out everywhere.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    alternatives: options.Alternatives = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            metavar="N",
            min=1,
            help="Length limit of the answer; the checkpoint's own, else 128, by default.",
            rich_help_panel=options.GENERATION,
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            metavar="T",
            min=0.0,
            help="Sample at this temperature; 0 is greedy decoding. By default the checkpoint's own setting, and 0 on "
            "a server.",
            rich_help_panel=options.GENERATION,
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            help="Make sampling reproducible.",
            rich_help_panel=options.GENERATION,
            show_default=False,
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="Any other argument of transformers' GenerationConfig, such as num_beams=4 or top_p=0.9. Repeatable.",
            rich_help_panel=options.GENERATION,
            show_default=False,
        ),
    ] = None,
    opening: Opening,
    debug: options.Debug = False,
) -> None:
    """Ask MODEL about IMAGE and show how sure it was of every token of its answer."""
    generation = options.generation_options(option, max_new_tokens, temperature)
    if stream and as_json:
        raise typer.BadParameter(
            "--json prints one document at the end: leave out one of the two", param_hint="'--stream'"
        )
    if schema is not None and not (fields or constrain):
        raise typer.BadParameter(
            "says what the fields should be: add --fields, to see them, or --constrain", param_hint="'--schema'"
        )
    if constrain and schema is None:
        raise typer.BadParameter("imposes a schema: add --schema FILE", param_hint="'--constrain'")
    interrupted, unreadable = False, None
    with guarded(debug):
        wanted = None if schema is None else arguments.schema_of(schema)
        generation |= {"schema": wanted} if constrain else {}
        generation |= {"grammar": grammar} if grammar else {}
        asked, images, question_meta = arguments.asked(
            "probe", model, image, more_images, question, turns.system, turns.assistant
        )
        prompted = arguments.prompt_options(template, turns)
        arguments.require_generation(generation)
        opened = open_model(model, prompt=prompted, **vars(opening))
        ask: dict[str, Any] = {
            "image": images or None,
            "keep": "logits" if logits else "stats",
            "prompt": prompt,
            "alternatives": alternatives,
            "seed": seed,
        }
        if stream:
            result, interrupted = follow(opened.stream(asked, **ask, **generation))
        else:
            with working("Answering"):
                result = opened.generate(asked, **ask, **generation)
        below: list[Any] = []
        if prompt:
            below += ["\nPrompt:\n", result.prompt]
        if logits:
            below += ["", output.raw_logits(result.output)]
        further: dict[str, Any] = {}
        if fields:
            from vlmprobe.analysis.json_fields import fields as read_fields

            try:
                found = read_fields(result, schema=wanted)
            except ResultError as error:  # the answer is shown and saved all the same
                unreadable = error
            else:
                below += ["\nFields:\n", found]
                further = found.to_dict()
        told = output.told(result, question_meta)
        output.deliver(told, as_json=as_json, html=html, save=save, below=below, streamed=stream, further=further)
        if unreadable is not None:
            raise unreadable
        if interrupted:
            raise KeyboardInterrupt
