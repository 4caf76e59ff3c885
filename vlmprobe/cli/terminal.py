"""Standard streams: results on standard output, everything else on standard error, and errors as one line."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

from vlmprobe.errors import (
    GenerationOptionError,
    HubError,
    ImageError,
    MessageError,
    ResultError,
    UnknownModelError,
    VlmprobeError,
    VlmprobeWarning,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from rich.console import Console

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "WRONG_USAGE",
    "console",
    "guarded",
    "interruptible",
    "note",
    "one_line",
    "prepare",
    "working",
    "writing",
    "wrong_usage",
]

UNKNOWN_WIDTH, LEAST_WIDTH = 80, 40  # cells
FAILED = 1
WRONG_USAGE = 2  # click's own too
INTERRUPTED = 128 + 2  # as shells report a command that SIGINT ended
_interrupts: list[int] = []  # signals of Ctrl-C; a library may turn the exception of one into another


class WrongUsageError(VlmprobeError):
    """What was typed cannot be right, whatever the model."""


USAGE = (WrongUsageError, GenerationOptionError, ImageError, MessageError, UnknownModelError)


def prepare() -> None:
    """Set up this process: UTF-8 streams whatever the locale, and no library output except with ``--debug``."""
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started the command
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  it stays open as long as the process runs
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
    logging.getLogger("vlmprobe").addHandler(_Notes())
    if "--debug" in sys.argv:
        return
    for variable in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"vlmprobe(\.|$)")
        warnings.filterwarnings("default", category=VlmprobeWarning)  # these name the line that called vlmprobe
        warnings.showwarning = _show_warning


def console(*, error: bool = False) -> Console:
    """A console without markup; colours only in a terminal, and never narrower than what can be read."""
    from rich.console import Console

    made = Console(stderr=error, markup=False, emoji=False, highlight=False)
    if made.width < 1:  # a terminal that does not know its size
        made.width = UNKNOWN_WIDTH
    made.width = max(made.width, LEAST_WIDTH)
    return made


def note(text: str) -> None:
    """One line on standard error, never broken into several."""
    console(error=True).print(one_line(text), soft_wrap=True)


@contextmanager
def working(what: str, *, spin: bool = True) -> Iterator[None]:
    """Show a status while work runs, in a terminal only; library output goes to standard error meanwhile.

    Args:
        what: shown beside the spinner.
        spin: False writes a plain line, for work that draws progress bars of its own.
    """
    errors = console(error=True)
    with redirect_stdout(sys.stderr):
        if not errors.is_terminal:
            yield
        elif not spin:
            errors.print(f"{one_line(what)} ...", style="dim")
            yield
        else:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
            with Progress(*columns, console=errors, transient=True) as progress:
                progress.add_task(one_line(what), total=None)
                yield


@contextmanager
def guarded(debug: bool) -> Iterator[None]:
    """Turn errors into one line and an exit code: 1 for an error, 2 for wrong usage. Ctrl-C is left to the app.

    Args:
        debug: raise errors as they are, for their traceback.
    """
    try:
        yield
        sys.stdout.flush()
        if _interrupts:  # what ran has swallowed the exception
            raise KeyboardInterrupt
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except BrokenPipeError:  # the reader, such as head, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(FAILED) from None
    except Exception as error:
        if _interrupts:
            raise KeyboardInterrupt from error
        if debug:
            raise
        _report(error)
        wrong = isinstance(error, USAGE) and not isinstance(error, HubError)  # that may succeed another time
        raise typer.Exit(WRONG_USAGE if wrong else FAILED) from None


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn Ctrl-C into one line and its exit code."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Interrupted.", err=True)  # without imports: one may have been interrupted, and cannot be repeated
        raise typer.Exit(INTERRUPTED) from None


@contextmanager
def wrong_usage() -> Iterator[None]:
    """Errors of vlmprobe in this block are wrong usage, for the exit code."""
    try:
        yield
    except VlmprobeError as error:
        raise WrongUsageError(str(error)) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors while a file is written name it: that of a full disk does not, nor do those of libraries."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise ResultError(f"{path} cannot be written: {error}") from error
        raise type(error)(error.errno, error.strerror, error.filename or str(path)) from error
    except SafetensorError as error:
        raise ResultError(f"{path} cannot be written: {error}") from error


def one_line(text: str) -> str:
    """Text for one line of a terminal: line breaks become spaces, control characters visible."""
    from vlmprobe.display.view import plain

    return plain(" ".join(text.split()))


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupts.append(number)
    signal.default_int_handler(number, frame)


def _report(error: Exception) -> None:
    if isinstance(error, VlmprobeError):
        told = str(error)
    elif isinstance(error, OSError) and error.strerror:
        told = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        first = next(iter(str(error).strip().splitlines()), "")
        kind = type(error).__name__
        told = f"{kind}{': ' if first else ''}{first} (unexpected: run again with --debug for the traceback)"
    from rich.text import Text

    console(error=True).print(Text.assemble(("Error: ", "bold red"), one_line(told)), soft_wrap=True)


class _Notes(logging.Handler):
    """The log records of vlmprobe, as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    note(f"Warning: {message}")
