"""``vlmprobe ask``: yes or no, one of several options, or a level of a scale, with its probability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmprobe.cli import arguments, options, output
from vlmprobe.cli.open_model import open_model
from vlmprobe.cli.option_groups import Opening, Template, Turns, grouped
from vlmprobe.cli.terminal import guarded, working

if TYPE_CHECKING:
    from vlmprobe.results.grouped import Answer

__all__ = ["NO", "UNSURE", "ask"]

NO, UNSURE = 10, 11  # exit codes with --exit-code
EVEN = 0.5  # threshold of --exit-code


@grouped
def ask(
    model: options.ModelOrServer,
    image: options.Image,
    question: options.Question = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option(
            "--candidate",
            "-c",
            metavar="TEXT",
            help="An option to choose from, also with a capital or small first letter and after a space. Repeatable; "
            "without any, the question is yes or no.",
            show_default=False,
        ),
    ] = None,
    level: Annotated[
        list[str] | None,
        typer.Option(
            "--level",
            "-l",
            metavar="TEXT",
            help="A level of a scale, from one end to the other, in words or numbers. Repeatable.",
            show_default=False,
        ),
    ] = None,
    letters: Annotated[
        bool, typer.Option("--letters", help="List the options below the question, and score their letters.")
    ] = False,
    rotate: Annotated[
        str | None,
        typer.Option(
            "--rotate",
            metavar="WHEN",
            help="Ask in every order of the letters and average: all, or close, where the two likeliest are close.",
            show_default=False,
        ),
    ] = None,
    none_of_these: Annotated[bool, typer.Option("--none-of-these", help='Add the option "none of these".')] = False,
    think: Annotated[
        int | None,
        typer.Option(
            "--think",
            metavar="N",
            help="Tokens that the model may think before the answers are scored, after its thought.",
            show_default=False,
        ),
    ] = None,
    no_think: Annotated[
        bool, typer.Option("--no-think", help="Close the thought at once, for a model that thinks first.")
    ] = False,
    think_end: Annotated[
        str | None,
        typer.Option(
            "--think-end",
            metavar="TEXT",
            help="The text between thought and answer, where neither chat template nor tokenizer tell.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="T",
            help="Probability, above 0 and at most 1, that an answer must reach; unsure below it.",
            show_default=False,
        ),
    ] = None,
    exit_code: Annotated[
        bool,
        typer.Option(
            "--exit-code",
            help="End with 0 for yes, 10 for no and 11 for unsure; with options or levels 0 for any answer that is "
            "sure. The threshold is 0.5 if none is given.",
        ),
    ] = False,
    more_images: options.MoreImages = None,
    *,
    turns: Turns,
    template: Template,
    as_json: options.Json = False,
    html: options.Html = None,
    save: options.Save = None,
    overwrite: options.Overwrite = False,
    opening: Opening,
    debug: options.Debug = False,
) -> None:
    """Ask MODEL about IMAGE: yes or no, one of several options, or a level, and how likely each is."""
    if threshold is not None and not 0 < threshold <= 1:
        raise typer.BadParameter(f"{threshold:g} is no probability above 0 and at most 1", param_hint="'--threshold'")
    if think is not None and (no_think or think < 1):
        why = "or --no-think, not both" if no_think else "of at least 1; --no-think is none"
        raise typer.BadParameter(f"give a number of tokens, {why}", param_hint="'--think'")
    with guarded(debug):
        kind = _kind(candidate, level, letters, rotate, none_of_these)
        asked, images, question_meta = arguments.asked(
            "ask", model, image, more_images, question, turns.system, turns.assistant
        )
        prompted = arguments.prompt_options(template, turns)
        opened = open_model(model, prompt=prompted, **vars(opening))
        kind |= {"think": False if no_think else think, "think_end": _text(think_end)}
        with working("Asking"):
            answer: Answer = opened.ask(asked, images or None, **kind)
        if letters:  # the options are part of the question that was asked
            question_meta = {name: value for name, value in question_meta.items() if name != "question"}
        decision = answer.at(EVEN if threshold is None else threshold)
        decided = {} if threshold is None and not exit_code else {"decision": decision, "threshold": threshold or EVEN}
        output.deliver(
            output.told(answer, question_meta),
            as_json=as_json,
            html=html,
            save=save,
            below=[f"at {threshold:g}: {decision}"] if threshold is not None else [],
            further=decided,
        )
    if exit_code and decision in ("no", "unsure"):
        raise typer.Exit(UNSURE if decision == "unsure" else NO if answer.candidates == ["yes", "no"] else 0)


def _text(given: str | None) -> str | None:
    """The value of an option, as UTF-8 text whatever the locale."""
    return None if given is None else arguments.decoded([given])[0]


def _kind(
    candidate: list[str] | None, level: list[str] | None, letters: bool, rotate: str | None, none_of_these: bool
) -> dict[str, Any]:
    """The arguments of ``Probe.ask``, as far as they are given.

    Raises:
        typer.BadParameter: for options that do not fit together.
        MessageError, GenerationOptionError: for what cannot be asked.
    """
    from vlmprobe.probe.question_kinds import kind_of

    listed = {"--candidate": candidate, "--level": level}
    for name, given in listed.items():
        if given and len(given) + (none_of_these and name == "--candidate") < 2:
            raise typer.BadParameter(f"give several, such as {name} one {name} another", param_hint=f"'{name}'")
    if candidate and level:
        raise typer.BadParameter("give either --candidate or --level", param_hint="'--level'")
    for name, wanted in {"--letters": letters, "--rotate": rotate, "--none-of-these": none_of_these}.items():
        if wanted and not (candidate or level):
            raise typer.BadParameter("give options to choose from, with --candidate", param_hint=f"'{name}'")
    if none_of_these and level:
        raise typer.BadParameter("is no level of a scale: it goes with --candidate", param_hint="'--none-of-these'")
    if rotate and not letters:
        raise typer.BadParameter("changes the order of options with letters: add --letters", param_hint="'--rotate'")
    kind: dict[str, Any] = {
        "options": arguments.decoded(candidate) or None,
        "levels": arguments.decoded(level) or None,
        "by": "letters" if letters else "texts",
        "none_of_these": none_of_these or None,
        "rotate": rotate,
    }
    kind_of(**kind)
    return kind
