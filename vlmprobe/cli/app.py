"""The Typer app: the commands, ``--version`` and the help."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from vlmprobe.cli.ask import ask
from vlmprobe.cli.check import check
from vlmprobe.cli.compare import compare
from vlmprobe.cli.demo import demo
from vlmprobe.cli.doctor import doctor
from vlmprobe.cli.models import models
from vlmprobe.cli.new_adapter import new_adapter
from vlmprobe.cli.page import page
from vlmprobe.cli.probe import probe
from vlmprobe.cli.report import report
from vlmprobe.cli.run import run
from vlmprobe.cli.score import score
from vlmprobe.cli.show import show
from vlmprobe.cli.terminal import interruptible

__all__ = ["app"]

EPILOG = 'Start with vlmprobe demo, then vlmprobe probe MODEL IMAGE "QUESTION".'
CODES = "Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted."
PROBE_EXAMPLE = f'Example: vlmprobe probe demo scene.png "Which digit is on the left?" --html report.html\n\n{CODES}'
CHECK_EXAMPLE = "Example: vlmprobe check demo\n\nExit codes: 0 all passed, 1 a check failed or an error, 2 wrong usage."
COMPARE_EXAMPLE = (
    "Example: vlmprobe compare ./model http://localhost:8000 requests.jsonl --tolerance 0.05\n\n"
    "Exit codes: 0 done, 1 beyond the tolerance or an error, 2 wrong usage."
)
DOCTOR_EXAMPLE = (
    "Example: vlmprobe doctor http://localhost:8000\n\n"
    "Exit codes: 0 everything available, 1 unusable or an error, 2 wrong usage, 3 usable, but other server flags would "
    "give more."
)
SCORE_EXAMPLE = f'Example: vlmprobe score demo scene.png "Is there a two?" -c yes -c no\n\n{CODES}'
RUN_EXAMPLE = (
    "Example: vlmprobe run demo questions.jsonl --out answers\n\n"
    'vlmprobe run demo pictures/ --question-template "Is there a two?" --out answers\n\n'
    "Exit codes: 0 done (also with failed rows, which vlmprobe show lists), 1 ended early, 2 wrong usage, 130 "
    "interrupted, 143 terminated. The same command again goes on."
)
SHOW_EXAMPLE = "Example: vlmprobe show answers"
PAGE_EXAMPLE = "Example: vlmprobe page demo"
REPORT_EXAMPLE = "Example: vlmprobe report answers --out report"

ASK_EXAMPLE = (
    'Example: vlmprobe ask demo scene.png "Is there a two?" --threshold 0.9 --exit-code\n\n'
    "Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted; with --exit-code 0 yes, 10 no, 11 unsure."
)


class Command(TyperCommand):
    """A command whose help shows every option in full, however narrow the terminal, under the name of its panel."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line; newer versions of Typer put braces around arguments."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The sections of the arguments and the options."""
        sections: dict[str, list[Any]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                argument = parameter.param_type_name == "argument"
                name = "Arguments" if argument else getattr(parameter, "rich_help_panel", None) or "Options"
                sections.setdefault(name, []).append((str(parameter.metavar), record[1]) if argument else record)
        for name, rows in sections.items():
            with formatter.section(name):
                formatter.write_dl(rows)


class AskCommand(Command):
    """A command of MODEL, IMAGE and QUESTION; the last is optional only to the parser, for a better message."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line."""
        return ["[OPTIONS]", "MODEL", "IMAGE", "QUESTION"]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; too many are most often a question without quotes, or answers without ``-c``."""
        ctx.allow_extra_args = True
        extra: list[str] = super().parse_args(ctx, args)
        if extra and not ctx.resilient_parsing:
            answers = ", and every answer after a -c" if ctx.command.name in ("ask", "score") else ""
            ctx.fail(f"Too many arguments ({' '.join(extra)}): put the question in quotes{answers}")
        return extra


class Commands(TyperGroup):
    """The commands; Ctrl-C while they are parsed or run is told in one line."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        """Parse the arguments."""
        with interruptible():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with interruptible():
            return super().invoke(ctx)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The section of the commands, each with its whole first sentence."""
        rows = [(name, command.get_short_help_str(limit=200)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # its frames break paths, and cut names of options in a narrow terminal
    pretty_exceptions_enable=False,  # they print local variables, including a model's weights
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from vlmprobe._version import __version__

    found = [f"Python {platform.python_version()}"]
    for package in ("torch", "transformers"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"no {package}")
    typer.echo(f"vlmprobe {__version__} ({', '.join(found)})")
    raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    """What a vision-language model was about to say, and how sure it was.

    Asks a model about an image, and reports log-probability, entropy, rank
    and alternatives of every token of the answer and of the prompt.
    """


app.command(cls=Command)(demo)
app.command(cls=Command, epilog=PAGE_EXAMPLE)(page)
app.command(cls=AskCommand, epilog=PROBE_EXAMPLE)(probe)
app.command(cls=AskCommand, epilog=ASK_EXAMPLE)(ask)
app.command(cls=AskCommand, epilog=SCORE_EXAMPLE)(score)
app.command(cls=Command, epilog=RUN_EXAMPLE)(run)
app.command(cls=Command, epilog=SHOW_EXAMPLE)(show)
app.command(cls=Command, epilog=REPORT_EXAMPLE)(report)
app.command(cls=Command)(models)
app.command(cls=Command, epilog=CHECK_EXAMPLE)(check)
app.command(cls=Command, epilog=COMPARE_EXAMPLE)(compare)
app.command(cls=Command, epilog=DOCTOR_EXAMPLE)(doctor)
app.command(cls=Command)(new_adapter)
