"""Arguments and options that several commands share, as types for Typer; usage errors are raised here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmprobe.cli.targets import html_target, result_target

__all__ = [
    "Adapter",
    "Alternatives",
    "Assistant",
    "ChatTemplate",
    "ChatTemplateKwargs",
    "ContinueFinalMessage",
    "Debug",
    "Device",
    "Dtype",
    "EngineHere",
    "EngineName",
    "EngineOption",
    "Html",
    "IgnoreWeights",
    "Image",
    "Json",
    "Logits",
    "Model",
    "ModelOrServer",
    "MoreImages",
    "Overwrite",
    "Processor",
    "Question",
    "RawPrompt",
    "Revision",
    "Save",
    "ServedModel",
    "System",
    "Tools",
    "engine_options",
    "generation_options",
]

MODEL, SERVER, OUTPUT, GENERATION, PROMPT = "Model", "Server", "Output", "Generation", "Prompt"
OF_LOAD = {  # argument of vlmprobe.load -> what sets it
    "model": "MODEL",
    "engine": "--engine",
    "device": "--device",
    "dtype": "--dtype",
    "adapter": "--adapter",
    "revision": "--revision",
    "ignore_weights": "--ignore-weights",
}
DEDICATED = {  # name of a generation option, or of an argument of Probe.generate -> the option that sets it
    "max_new_tokens": "--max-new-tokens",
    "temperature": "--temperature",
    "seed": "--seed",
    "alternatives": "--alternatives",
    "keep": "--logits",
    "prompt": "--no-prompt",
    "image": "--image",
    "chat_template_kwargs": "--chat-template-kwargs",
    "chat_template": "--chat-template",
    "raw_prompt": "--raw-prompt",
    "tools": "--tools",
    "continue_final_message": "--continue-final-message",
}
PYTHON_WORDS = {"True": True, "False": False, "None": None}


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A local folder, a hub id such as llava-hf/llava-1.5-7b-hf, or demo for the small bundled model.",
        show_default=False,
    ),
]
ModelOrServer = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A local folder, a hub id such as llava-hf/llava-1.5-7b-hf, demo for the small bundled model, or "
        "the URL of a server such as http://localhost:8000.",
        show_default=False,
    ),
]
Image = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE",
        help="Path or URL of an image, - to read it from standard input, or none for no image.",
        show_default=False,
    ),
]
Question = Annotated[str | None, typer.Argument(metavar="QUESTION", help="What to ask, in quotes.", show_default=False)]
MoreImages = Annotated[
    list[str] | None,
    typer.Option(
        "--image", "-i", metavar="IMAGE", help="A further image, put after IMAGE. Repeatable.", show_default=False
    ),
]
System = Annotated[
    str | None,
    typer.Option("--system", metavar="TEXT", help="A system message.", rich_help_panel=PROMPT, show_default=False),
]
Assistant = Annotated[
    str | None,
    typer.Option(
        "--assistant",
        metavar="TEXT",
        help="The start of the answer, which MODEL continues; or, with --no-continue-final-message, a whole answer "
        "that a guard model judges.",
        rich_help_panel=PROMPT,
        show_default=False,
    ),
]
ContinueFinalMessage = Annotated[
    bool | None,
    typer.Option(
        "--continue-final-message/--no-continue-final-message",
        help="Continue the text of --assistant, the default, or start a new message after it.",
        rich_help_panel=PROMPT,
        show_default=False,
    ),
]
ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        metavar="JSON",
        help="""Variables of the chat template, such as '{"enable_thinking": false}'.""",
        rich_help_panel=PROMPT,
        show_default=False,
    ),
]
Tools = Annotated[
    Path | None,
    typer.Option(
        "--tools",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        readable=True,
        help="JSON list of the functions that MODEL may call, as OpenAI's schemas.",
        rich_help_panel=PROMPT,
        show_default=False,
    ),
]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        "--chat-template",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        readable=True,
        help="A chat template in place of MODEL's, for a base model that has none.",
        rich_help_panel=PROMPT,
        show_default=False,
    ),
]
RawPrompt = Annotated[
    bool,
    typer.Option(
        "--raw-prompt",
        help="Use no chat template: QUESTION is the prompt, as written, after the images unless it has their "
        "placeholders.",
        rich_help_panel=PROMPT,
    ),
]

Device = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps, ...", rich_help_panel=MODEL)
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="auto, float32, bfloat16 or float16; or fp32, bf16, fp16.",
        rich_help_panel=MODEL,
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        metavar="NAME",
        help="Adapter to use, one that vlmprobe models lists; detected from the checkpoint by default.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="REV",
        help="Commit, branch or tag of a hub checkpoint.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]
IgnoreWeights = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-weights",
        metavar="PREFIX",
        help="How the names of weights begin that may stay unread, such as mtp. Repeatable.",
        rich_help_panel=MODEL,
        show_default=False,
    ),
]

EngineName = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Server type, such as vllm; detected by default.",
        rich_help_panel=SERVER,
        show_default=False,
    ),
]
EngineHere = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="Server type, such as vllm; detected by default. Of a checkpoint: what runs it here, if not transformers.",
        rich_help_panel=SERVER,
        show_default=False,
    ),
]
EngineOption = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-option",
        metavar="NAME=VALUE",
        help="Option of the engine of a checkpoint, such as tensor_parallel_size=2. Repeatable.",
        rich_help_panel=SERVER,
        show_default=False,
    ),
]
ServedModel = Annotated[
    str | None,
    typer.Option(
        "--served-model",
        metavar="NAME",
        help="Which of the server's models; the first by default.",
        rich_help_panel=SERVER,
        show_default=False,
    ),
]
Processor = Annotated[
    str | None,
    typer.Option(
        "--processor",
        metavar="MODEL",
        help="The served model's folder or hub id, for its processor.",
        rich_help_panel=SERVER,
        show_default=False,
    ),
]

Json = Annotated[
    bool, typer.Option("--json", help="Print one line of JSON instead of the table.", rich_help_panel=OUTPUT)
]
Html = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Also write a self-contained HTML page; an earlier page of that name is replaced.",
        callback=html_target,
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
Save = Annotated[
    Path | None,
    typer.Option(
        "--save",
        metavar="PATH",
        help="Also save everything for vlmprobe.load_result: into a folder, or one file if PATH ends in .safetensors.",
        callback=result_target,
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Let --save replace what is there.",
        is_eager=True,  # read before --save, whose check depends on it
        rich_help_panel=OUTPUT,
    ),
]
Logits = Annotated[
    bool,
    typer.Option(
        "--logits",
        help="Keep the full logit rows, one number per vocabulary entry and token; they go into --save and --json.",
        rich_help_panel=OUTPUT,
    ),
]
Alternatives = Annotated[
    int | None,
    typer.Option(
        "--alternatives",
        metavar="K",
        min=1,
        help="How many top tokens to keep per position; 10 by default, or as many as a server gives.",
        rich_help_panel=OUTPUT,
        show_default=False,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and library warnings.")]


def generation_options(
    assignments: list[str] | None, max_new_tokens: int | None, temperature: float | None
) -> dict[str, Any]:
    """Arguments of ``GenerationConfig`` from the command line.

    Args:
        assignments: ``name=value`` each; the value is read as JSON, else taken as a string.
        max_new_tokens: where given.
        temperature: 0 is greedy decoding, more is sampling.

    Raises:
        typer.BadParameter: for what is not an assignment, or is set twice.
    """
    options: dict[str, Any] = {}
    if max_new_tokens is not None:
        options["max_new_tokens"] = max_new_tokens
    if temperature is not None:
        options["temperature"] = temperature
    assigned = _assigned(assignments, "'--option'", "top_p=0.9")
    if dedicated := next((name for name in assigned if name in DEDICATED), None):
        own = DEDICATED[dedicated]
        raise typer.BadParameter(f"{dedicated} has an option of its own: {own}", param_hint="'--option'")
    return options | assigned


def engine_options(assignments: list[str] | None) -> dict[str, Any]:
    """Arguments of an engine in this process; as :func:`generation_options`."""
    hint = "'--engine-option'"
    found = _assigned(assignments, hint, "tensor_parallel_size=2")
    if own := next((name for name in found if name in OF_LOAD), None):
        raise typer.BadParameter(f"{own} has an option of its own: {OF_LOAD[own]}", param_hint=hint)
    return found


def _assigned(assignments: list[str] | None, hint: str, example: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for assignment in assignments or ():
        name, equals, value = assignment.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(
                f"{assignment!r} is not of the form name=value, such as {example}", param_hint=hint
            )
        if name in found:
            raise typer.BadParameter(f"{name} is given twice", param_hint=hint)
        found[name] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    if text in PYTHON_WORDS:
        return PYTHON_WORDS[text]
    try:
        return json.loads(text)
    except ValueError:
        return text
