"""Validates arguments before a model is loaded, so that a mistake shows at once and not after a long load."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from vlmprobe.cli.option_groups import Template, Turns

__all__ = ["asked", "candidate_list", "decoded", "prompt_options", "require_generation", "schema_of"]

STDIN, NO_IMAGE = "-", "none"


def asked(
    command: str,
    model: str,
    image: str,
    more: Sequence[str] | None,
    question: str | None,
    system: str | None,
    assistant: str | None = None,
) -> tuple[str | list[dict[str, Any]], list[Any], dict[str, Any]]:
    """The question of the command line: prompt, images, and both as recorded in ``meta``.

    Raises:
        typer.BadParameter: for a missing or empty question, or arguments in the wrong order.
        ImageError: for an image that cannot be read.
    """
    if question is None:
        written = f'{image} "What is in the picture?"' if _is_image(image) else f'none "{image}"'
        without = "" if _is_image(image) else "; for a question without an image write none as IMAGE"
        raise typer.BadParameter(
            f'missing. The order is MODEL IMAGE "QUESTION"{without}: vlmprobe {command} {model} {written}',
            param_hint="'QUESTION'",
        )
    if not question.strip():
        raise typer.BadParameter("is empty: ask something, such as 'Describe the picture.'", param_hint="'QUESTION'")
    sources = [image, *(more or ())]
    if sources.count(STDIN) > 1:
        raise typer.BadParameter("standard input (-) can only be read once", param_hint="'IMAGE'")
    question = _decoded(question)
    if not _is_image(image) and os.path.isfile(question):
        raise typer.BadParameter(
            f'{image!r} is not an image and {question!r} is a file: the order is MODEL IMAGE "QUESTION"',
            param_hint="'IMAGE'",
        )
    images = [_image(source) for source in sources if source != NO_IMAGE]
    told = {"question": question, "images": [source for source in sources if source != NO_IMAGE]}
    if system is None and assistant is None:
        return question, images, told
    turns = {"system": system, "user": question, "assistant": assistant}
    messages = [
        {"role": role, "content": [{"type": "text", "text": _decoded(text)}]}
        for role, text in turns.items()
        if text is not None
    ]
    further = {"system": system, "assistant": assistant}
    return messages, images, told | {role: text for role, text in further.items() if text is not None}


def prompt_options(template: Template, turns: Turns | None = None) -> dict[str, Any]:
    """The options of the prompt, those of :class:`vlmprobe.PromptOptions`.

    Raises:
        typer.BadParameter: for text that is not JSON, or a continued message without an assistant's.
        GenerationOptionError: for an invalid value.
    """
    from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT

    continues = None if turns is None else turns.continue_final_message
    if turns is not None and continues is not None and turns.assistant is None:
        raise typer.BadParameter(
            "there is no message of an assistant: give one with --assistant", param_hint="'--continue-final-message'"
        )
    variables, tools = template.chat_template_kwargs, template.tools
    given: dict[str, Any] = {
        "chat_template": template.chat_template,
        "raw_prompt": template.raw_prompt or None,
        "chat_template_kwargs": None if variables is None else _json(variables, "--chat-template-kwargs"),
        "tools": None if tools is None else _json(tools, "--tools"),
        "continue_final_message": continues,
    }
    given = {name: value for name, value in given.items() if value is not None}
    AS_BY_DEFAULT.updated(given)  # type: ignore[arg-type]
    return given


def _json(source: str | Path, option: str) -> Any:
    try:
        return json.loads(source if isinstance(source, str) else source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"is not JSON: {error}", param_hint=f"'{option}'") from error


def schema_of(file: Path) -> dict[str, Any]:
    """The JSON Schema in a file.

    Raises:
        typer.BadParameter: for a file that is not JSON, or no object.
    """
    made = _json(file, "--schema")
    if not isinstance(made, dict):
        raise typer.BadParameter(f"{file} holds no JSON Schema, which is an object", param_hint="'--schema'")
    return made


def _decoded(argument: str) -> str:
    """An argument as UTF-8 text whatever the locale: Python may have escaped its bytes as surrogates."""
    return os.fsencode(argument).decode("utf-8", errors="replace") if _has_surrogates(argument) else argument


def decoded(given: Sequence[str] | None) -> list[str]:
    """Values of an option that can be repeated, as UTF-8 text whatever the locale."""
    return [_decoded(each) for each in given or ()]


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _is_image(source: str) -> bool:
    return (
        source in (STDIN, NO_IMAGE)
        or "://" in source
        or source.startswith("data:")
        or os.path.exists(os.path.expanduser(source))  # False, not an error, for what cannot be a path
    )


def _image(source: str) -> Any:
    from vlmprobe.errors import ImageError, VlmprobeError
    from vlmprobe.inputs.images import DEFAULT_LIMITS, load_image

    if source.startswith(("http://", "https://")):
        try:
            return load_image(source)
        except ImageError as error:  # not wrong usage: it may succeed another time
            raise VlmprobeError(str(error)) from error
    if source != STDIN:
        return load_image(source)
    if sys.stdin is None or sys.stdin.isatty():
        what = "closed" if sys.stdin is None else "a terminal"
        raise typer.BadParameter(f"standard input (-) is {what}: pipe an image into the command", param_hint="'IMAGE'")
    piped = sys.stdin.buffer.read(DEFAULT_LIMITS.max_bytes + 1)
    try:
        return load_image(piped)
    except ImageError as error:
        raise ImageError(f"Standard input (-){str(error).removeprefix('The image bytes')}") from error


def candidate_list(given: Sequence[str] | None, file: Path | None) -> list[str]:
    """The candidates of the options and of a file, one per line.

    Raises:
        typer.BadParameter: for no candidates, an empty or repeated one, or a file that is not text.
    """
    candidates = decoded(given)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise typer.BadParameter(f"{file} cannot be read: {reason}", param_hint="'--candidates-file'") from error
        candidates += [line.removesuffix("\r") for line in lines if line.strip()]
    if not candidates:
        raise typer.BadParameter(
            "give at least one, such as --candidate yes --candidate no", param_hint="'--candidate'"
        )
    if not all(candidates):
        raise typer.BadParameter("is empty: an answer without text has no tokens to score", param_hint="'--candidate'")
    for place, each in enumerate(candidates):
        if each in candidates[:place]:
            raise typer.BadParameter(f"{each!r} is given twice", param_hint="'--candidate'")
    return candidates


def require_generation(options: dict[str, Any]) -> None:
    """Raise :class:`~vlmprobe.errors.GenerationOptionError` for an option that no model accepts."""
    if options:
        from transformers import GenerationConfig

        from vlmprobe.engines.constraint import constraint_of
        from vlmprobe.engines.local.generation_config import generation_config

        further = dict(options)
        constraint_of(further)
        generation_config(GenerationConfig(), further)
