"""An answer on standard output while it is generated: shaded in a terminal, plain text elsewhere."""

from __future__ import annotations

import sys
from itertools import chain
from typing import TYPE_CHECKING

from vlmprobe.cli.terminal import console, working

if TYPE_CHECKING:
    from rich.console import Console

    from vlmprobe.engines.stream import Stream
    from vlmprobe.results.result import Result
    from vlmprobe.results.table import TokenTable

__all__ = ["follow"]


def follow(tokens: Stream) -> tuple[Result, bool]:
    """Print the tokens of an answer as they arrive.

    Args:
        tokens: of the answer.

    Returns:
        The result, partial if Ctrl-C ended it; and whether it did.

    Raises:
        KeyboardInterrupt: if nothing was generated yet.
    """
    screen, said, interrupted = console(), 0, False
    try:
        with tokens:
            with working("Answering"):
                first = next(tokens, None)
            for row in chain([] if first is None else [first], tokens):
                said += 1
                _print(row, screen)
    except KeyboardInterrupt:
        if not said:
            raise
        interrupted = True
    screen.print()
    return tokens.result, interrupted


def _print(row: TokenTable, screen: Console) -> None:
    from vlmprobe.display.terminal import token_text
    from vlmprobe.display.view import rows

    (shown,) = rows(row)
    if screen.is_terminal:
        screen.print(token_text(shown), end="", soft_wrap=True)
    elif shown.kind != "special":
        sys.stdout.write(shown.text)
    sys.stdout.flush()
