"""Options that several commands take together, each group as one parameter of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from vlmprobe.cli import options

__all__ = ["Opening", "Template", "Turns", "grouped"]


@dataclass(frozen=True)
class Turns:
    """Messages around the question."""

    system: options.System = None
    assistant: options.Assistant = None
    continue_final_message: options.ContinueFinalMessage = None


@dataclass(frozen=True)
class Template:
    """How the prompt is written."""

    chat_template_kwargs: options.ChatTemplateKwargs = None
    tools: options.Tools = None
    chat_template: options.ChatTemplate = None
    raw_prompt: options.RawPrompt = False


@dataclass(frozen=True)
class Opening:
    """How the checkpoint or the server is opened."""

    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    adapter: options.Adapter = None
    revision: options.Revision = None
    ignore_weights: options.IgnoreWeights = None
    engine: options.EngineHere = None
    engine_option: options.EngineOption = None
    served_model: options.ServedModel = None
    processor: options.Processor = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command of which each parameter that is a group has become the options of that group, in their order."""
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if not is_dataclass(parameter.annotation):
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = parameter.annotation
        hints = get_type_hints(parameter.annotation, include_extras=True)
        flat += [
            inspect.Parameter(
                each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name]
            )
            for each in fields(parameter.annotation)
        ]

    def called(**given: Any) -> None:
        made = {
            name: group(**{each.name: given.pop(each.name) for each in fields(group)}) for name, group in groups.items()
        }
        command(**given, **made)

    called.__name__, called.__doc__, called.__module__ = command.__name__, command.__doc__, command.__module__
    called.__annotations__ = {each.name: each.annotation for each in flat}  # where Typer looks, and here
    called.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return called
