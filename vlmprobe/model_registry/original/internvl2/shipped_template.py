"""The default system text in the ``conversation.py`` beside a checkpoint's weights: parsed, never run."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

from vlmprobe.errors import CheckpointError

__all__ = ["shipped_system_text"]

FILE = "conversation.py"
MOST_BYTES = 2**18  # the longest released file has 40 kB
FIELDS = ("name", "system_template", "system_message")  # of Conversation, in the order of its positional arguments


def shipped_system_text(folder: Path, template: str) -> str | None:
    """The default system text that the file registers for a template; None without the file or the template.

    Only calls at module level count, as ``register_conv_template(Conversation(name=..., system_message=...))``, and of
    their arguments only string literals. A template without a system text has an empty one, as in the original.

    Args:
        folder: of the checkpoint.
        template: the name of the template.

    Raises:
        CheckpointError: the file cannot be parsed, is far longer than any released one, or computes the text.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        held = opened.read(MOST_BYTES + 1)
    if len(held) > MOST_BYTES:
        raise CheckpointError(f"{file} is longer than {MOST_BYTES // 1024} KiB.")
    found = None
    for call in _registered(file, held):
        given: dict[str | None, ast.expr] = dict(zip(FIELDS, call.args, strict=False))
        given |= {each.arg: each.value for each in call.keywords}
        if _text(given.get("name")) == template:
            found = _text(given["system_message"]) if "system_message" in given else ""
            if found is None:
                raise CheckpointError(f"{file} computes the system text of {template}, so reading it is not enough.")
    return found


def _registered(file: Path, held: bytes) -> Iterator[ast.Call]:
    """The ``Conversation(...)`` of every ``register_conv_template(Conversation(...))`` at module level."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the parser, about escapes in the file
            tree = ast.parse(held.decode())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{file} cannot be read as Python: {type(error).__name__}.") from None
    for statement in tree.body:
        match statement:
            case ast.Expr(
                ast.Call(ast.Name("register_conv_template"), [ast.Call(ast.Name("Conversation")) as call, *_])
            ):
                yield call


def _text(value: ast.expr | None) -> str | None:
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None
