"""The command line. Importing it imports neither torch nor transformers, so that ``vlmprobe --help`` is fast."""

from __future__ import annotations

from vlmprobe.cli.app import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the ``vlmprobe`` command."""
    from vlmprobe.cli.terminal import prepare

    prepare()
    app(prog_name="vlmprobe")
