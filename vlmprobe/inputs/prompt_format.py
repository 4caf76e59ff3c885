"""How a conversation is written as a prompt, beside its messages: what its chat template is given, or a raw prompt."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from vlmprobe.errors import GenerationOptionError

if TYPE_CHECKING:
    from jinja2 import nodes

__all__ = ["AS_BY_DEFAULT", "PROMPT_OPTIONS", "PromptFormat", "PromptOptions", "parsed_template", "taken"]

OWN = ("messages", "tools", "add_generation_prompt", "continue_final_message")  # set otherwise than as keywords


class PromptOptions(TypedDict, total=False):
    """The arguments of a call that say how its prompt is written; None is as if it was not given.

    ``chat_template_kwargs``: further variables of the chat template, such as ``{"enable_thinking": False}``.
    ``tools``: functions that the model may call, as OpenAI's schemas or as Python functions with types and a docstring.
    ``chat_template``: the text of a chat template in place of the checkpoint's, or the path of a file of it.
    ``raw_prompt``: True to ask without a chat template: the question is the prompt, as written.
    ``continue_final_message``: whether an ``assistant`` message at the end is continued (the default), or judged or
    answered in a new one (False).
    """

    chat_template_kwargs: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None
    chat_template: str | os.PathLike[str] | None
    raw_prompt: bool | None
    continue_final_message: bool | None


PROMPT_OPTIONS = tuple(PromptOptions.__annotations__)


@dataclass(frozen=True)
class PromptFormat:
    """:class:`PromptOptions` as they were read."""

    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    chat_template: str | None = None  # its text; the checkpoint's own if None
    raw_prompt: bool = False
    continue_final_message: bool | None = None  # None for the default

    def updated(self, options: PromptOptions) -> PromptFormat:
        """This one with the options of one call, which come before these; ``chat_template_kwargs`` are joined.

        Raises:
            GenerationOptionError: for an invalid value.
            TypeError: for another option.
        """
        if unknown := set(options) - set(PROMPT_OPTIONS):
            likely = ". think= is one of probe.ask, which takes several questions too" if "think" in unknown else ""
            raise TypeError(
                f"There is no argument {min(unknown)!r}; those of the prompt are {', '.join(PROMPT_OPTIONS)}{likely}"
            )
        given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
        read: dict[str, Any] = {}
        for name in ("raw_prompt", "continue_final_message"):
            if name in given:
                read[name] = _switch(name, given[name])
        if "chat_template" in given:
            if given.get("raw_prompt"):
                raise GenerationOptionError("raw_prompt=True asks without a chat template: leave out chat_template=.")
            read |= {"chat_template": _template(given["chat_template"]), "raw_prompt": False}
        elif given.get("raw_prompt"):
            read["chat_template"] = None
        if "chat_template_kwargs" in given:
            read["chat_template_kwargs"] = {**self.chat_template_kwargs, **_variables(given["chat_template_kwargs"])}
        if "tools" in given:
            read["tools"] = _tools(given["tools"])
        return replace(self, **read) if read else self

    @property
    def told(self) -> dict[str, Any]:
        """For ``meta``: the options that are not as by default, with which the same prompt can be asked for again."""
        held = {name: (getattr(self, name), getattr(AS_BY_DEFAULT, name)) for name in PROMPT_OPTIONS}
        found = {name: value for name, (value, default) in held.items() if value != default}
        return {name: list(value) if name == "tools" else value for name, value in found.items()}


AS_BY_DEFAULT = PromptFormat()


def taken(options: dict[str, Any]) -> PromptOptions:
    """The options of the prompt among those of a call, from which they are removed."""
    return {name: options.pop(name) for name in PROMPT_OPTIONS if name in options}  # type: ignore[return-value]


@lru_cache(maxsize=64)
def parsed_template(template: str) -> nodes.Template:
    """The syntax tree of a chat template, with the extensions that transformers gives it.

    Raises:
        jinja2.TemplateSyntaxError: for a text that is no template.
    """
    from jinja2 import Environment, nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    return Environment(extensions=["jinja2.ext.loopcontrols", Generation]).parse(template)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise GenerationOptionError(f"{name} must be True or False, not {value!r}.")
    return value


def _template(source: Any) -> str:
    from jinja2 import TemplateSyntaxError

    if not isinstance(source, (str, os.PathLike)) or not str(source).strip():
        raise GenerationOptionError(f"chat_template is the text of a template or the path of a file, not {source!r}.")
    text = str(source)
    if isinstance(source, os.PathLike) or "{" not in text:  # a template without a variable would write no question
        text = _read(Path(text).expanduser())
    try:
        parsed_template(text)
    except TemplateSyntaxError as error:
        raise GenerationOptionError(f"chat_template is not a Jinja template: line {error.lineno}: {error}") from error
    return text


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise GenerationOptionError(f"chat_template: the file {str(path)!r} cannot be read: {reason}.") from error
    if path.suffix == ".json":  # chat_template.json, tokenizer_config.json
        try:
            text = json.loads(text)["chat_template"]
        except (ValueError, LookupError, TypeError) as error:
            raise GenerationOptionError(f"chat_template: {str(path)!r} has no 'chat_template' in it.") from error
        if not isinstance(text, str):
            raise GenerationOptionError(f"chat_template: {str(path)!r} holds several templates: pass the text of one.")
    return text


def _variables(given: Any) -> dict[str, Any]:
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise GenerationOptionError(
            f"chat_template_kwargs must be a mapping such as {{'enable_thinking': False}}, not {given!r}."
        )
    for name in given:
        if name in OWN:
            how = "comes from the messages" if name in ("messages", "add_generation_prompt") else f"is given as {name}="
            raise GenerationOptionError(f"{name} is none of chat_template_kwargs: it {how}.")
    return _kept(dict(given), "chat_template_kwargs")


def _tools(given: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise GenerationOptionError(f"tools must be a list of functions or their schemas, not {type(given).__name__}.")
    return tuple(_tool(each, place) for place, each in enumerate(given))


def _tool(given: Any, place: int) -> Mapping[str, Any]:
    if isinstance(given, Mapping):
        return _kept(dict(given), f"tools, number {place}")
    if not callable(given):
        raise GenerationOptionError(
            f"tools, number {place}, is {type(given).__name__}, neither a function nor a schema such as "
            '{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}.'
        )
    from transformers.utils import get_json_schema

    try:
        return dict(get_json_schema(given))
    except Exception as error:  # of its docstring or its types
        raise GenerationOptionError(f"tools, number {place}: {error}") from error


def _kept(value: dict[str, Any], name: str) -> dict[str, Any]:
    """The value as a result can keep it, since a saved one must be asked for again."""
    try:
        return dict(json.loads(json.dumps(value, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise GenerationOptionError(f"{name} must hold what JSON can hold: {error}.") from error
