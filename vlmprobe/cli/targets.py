"""Validates output files before a model is loaded: nothing is written over what is not the command's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

__all__ = ["file_target", "html_target", "lines_target", "new_target", "reachable", "result_target"]

HTML = (".html", ".htm")
HEAD = 4096  # bytes of a file that say what it is


@contextmanager
def reachable(path: Path | None) -> Iterator[None]:
    """A path that the system refuses (a locked folder, a name that is too long) is a usage error that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be used: {getattr(error, 'strerror', None) or error}") from error


def file_target(value: Path | None) -> Path | None:
    """An output file: not a folder, and writable."""
    if value is not None:
        with reachable(value):
            if value.is_dir():
                raise typer.BadParameter(f"{value} is a folder: name a file in it, such as {value / 'report.html'}")
            _require_writable(value)
    return value


def html_target(value: Path | None) -> Path | None:
    """A page to write; it may replace an earlier page, but no other file, such as the image that is asked about."""
    file_target(value)
    if value is not None:
        if value.suffix.lower() not in HTML:
            raise typer.BadParameter(f"{value} must end in {' or '.join(HTML)}, since an HTML page is written there")
        head = _head(value).lower()
        if head.strip() and b"<html" not in head and b"<!doctype html" not in head:
            raise typer.BadParameter(f"{value} exists and is not an HTML page: name another file, or remove it")
    return value


def lines_target(value: Path | None) -> Path | None:
    """A file of JSON lines to append to; a file of anything else is left alone."""
    file_target(value)
    if value is not None and _head(value).lstrip()[:1] not in (b"", b"{"):
        raise typer.BadParameter(f"{value} exists and does not hold lines of JSON: name another file, or remove it")
    return value


def new_target(value: Path | None, overwrite: bool) -> Path | None:
    """A file or folder that does not exist yet, or is empty, unless it may be overwritten."""
    with reachable(value):
        if value is not None and not overwrite and _holds_something(value):
            raise typer.BadParameter(f"{value} exists already: name a new path, or pass --overwrite to replace it")
    return value


def result_target(context: typer.Context, value: Path | None) -> Path | None:
    """Where a result is saved: a folder, or a file that ends in .safetensors."""
    if value is not None:
        with reachable(value):
            if value.suffix == ".safetensors" and value.is_dir():
                raise typer.BadParameter(f"{value} is a folder: name a file in it, or a folder without that ending")
            if value.suffix != ".safetensors" and value.is_file():
                raise typer.BadParameter(f"{value} is a file: name a folder, or a file that ends in .safetensors")
            _require_writable(value)
    return new_target(value, context.params["overwrite"])


def _holds_something(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.exists() and path.stat().st_size > 0


def _head(path: Path) -> bytes:
    with reachable(path):
        if not path.exists():
            return b""
        with path.open("rb") as file:
            return file.read(HEAD)


def _require_writable(path: Path) -> None:
    if path.exists() and not os.access(path, os.W_OK):
        raise typer.BadParameter(f"{path} is not writable")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise typer.BadParameter(f"{above} is a file, so nothing can be written below it")
    if not path.exists() and not os.access(above, os.W_OK):
        raise typer.BadParameter(f"the folder {above} is not writable")
