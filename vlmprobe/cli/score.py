"""``vlmprobe score``: how likely each of several answers is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmprobe.cli import arguments, options, output
from vlmprobe.cli.open_model import open_model
from vlmprobe.cli.option_groups import Opening, Template, Turns, grouped
from vlmprobe.cli.terminal import guarded, working

__all__ = ["score"]


@grouped
def score(
    model: options.ModelOrServer,
    image: options.Image,
    question: options.Question = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate",
            "-c",
            metavar="TEXT",
            help="An answer to score, verbatim: no space is added. Repeatable.",
            show_default=False,
        ),
    ] = None,
    candidates_file: Annotated[
        Path | None,
        typer.Option(
            "--candidates-file",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="Further answers, one per line in UTF-8; empty lines are skipped.",
            show_default=False,
        ),
    ] = None,
    more_images: options.MoreImages = None,
    *,
    turns: Turns,
    template: Template,
    as_json: options.Json = False,
    html: options.Html = None,
    save: options.Save = None,
    overwrite: options.Overwrite = False,
    logits: options.Logits = False,
    alternatives: options.Alternatives = None,
    opening: Opening,
    debug: options.Debug = False,
) -> None:
    """Score given answers: the log-probability that MODEL gives to each."""
    with guarded(debug):
        candidates = arguments.candidate_list(candidate, candidates_file)
        asked, images, question_meta = arguments.asked(
            "score", model, image, more_images, question, turns.system, turns.assistant
        )
        prompted = arguments.prompt_options(template, turns)
        opened = open_model(model, prompt=prompted, **vars(opening))
        with working(f"Scoring {len(candidates)} candidates"):
            scores = opened.score(
                asked,
                candidates,
                image=images or None,
                keep="logits" if logits else "stats",
                alternatives=alternatives,
            )
        output.deliver(output.told(scores, question_meta), as_json=as_json, html=html, save=save)
