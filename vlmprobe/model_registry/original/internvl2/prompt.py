"""The conversation templates of InternVL, and prompts written with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlmprobe.errors import CheckpointError, MessageError, near
from vlmprobe.inputs.messages import Conversation, Message, TextPart

__all__ = ["IMAGE_CONTEXT", "Template", "find_template", "write_prompt"]

IMAGE_START, IMAGE_CONTEXT, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"


@dataclass(frozen=True)
class Template:
    """How a chat is rendered. Each part is followed by its end, except the answer to be generated."""

    name: str  # in config.json
    begin: str  # before the system text
    system: str  # the system text of a conversation that has none of its own
    system_end: str
    user: str
    user_end: str
    assistant: str
    assistant_end: str
    answer: str  # the generation prompt: the assistant's role, which some templates spell differently here
    end_token: str  # at which the original code stops


def _uniform(name: str, system: str, *, role: str, end: str) -> Template:
    assistant = role.format("assistant")
    user = role.format("user")
    return Template(name, role.format("system"), system, end, user, end, assistant, end, assistant, end.strip())


SYSTEM_2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
SYSTEM_GPT_OSS = """\
You are InternVL, a large language model trained by Shanghai AI Laboratory.
Knowledge cutoff: 2024-06
Current date: 2025-08-06

Reasoning: low

# Valid channels: final. Channel must be included for every message."""
CHATML = "<|im_start|>{}\n"
TEMPLATES = {
    each.name: each
    for each in (
        _uniform("Hermes-2", SYSTEM_2, role=CHATML, end="<|im_end|>"),
        _uniform("internlm2-chat", SYSTEM_2, role=CHATML, end="<|im_end|>"),
        _uniform("phi3-chat", SYSTEM_2, role="<|{}|>\n", end="<|end|>"),
        _uniform("internvl2_5", SYSTEM_2_5, role=CHATML, end="<|im_end|>\n"),
        Template("internvl_zh", "", "", " ", "<human>: ", " ", "<bot>: ", "</s>", "<bot>:", "</s>"),
        # An earlier answer has neither a channel nor <|message|>, and another end than the one generated.
        Template(
            "internvl3_5_gpt_oss",
            begin="<|start|>system<|message|>",
            system=SYSTEM_GPT_OSS,
            system_end="<|end|>",
            user="<|start|>user<|message|>",
            user_end="<|end|>",
            assistant="<|start|>assistant",
            assistant_end="<|end|>",
            answer="<|start|>assistant",
            end_token="<|return|>",
        ),
    )
}


def find_template(name: object) -> Template:
    """The template that config.json names.

    Raises:
        CheckpointError: for a template that is not supported.
    """
    if not isinstance(name, str) or name not in TEMPLATES:
        raise CheckpointError(
            f"config.json names the conversation template {name!r}, which is not supported. "
            f"Supported are: {', '.join(TEMPLATES)}.{near(str(name), TEMPLATES)}"
        )
    return TEMPLATES[name]


def write_prompt(conversation: Conversation, template: Template, system: str, contexts: Sequence[int]) -> str:
    """The text that is tokenised.

    Args:
        conversation: its system message, if it has one, replaces ``system``.
        template: of the checkpoint.
        system: the default system text.
        contexts: how many positions each image takes, all tiles together; in the order of the images.

    Raises:
        MessageError: a text contains the image placeholder alongside real images, which the model could not tell apart.
    """
    messages = list(conversation.messages)
    if messages[0].role == "system":
        system = messages.pop(0).text
    remaining = iter(contexts)
    text = template.begin + system + template.system_end
    for place, message in enumerate(messages):
        role, end = (
            (template.user, template.user_end)
            if message.role == "user"
            else (template.assistant, template.assistant_end)
        )
        written = _content(message, remaining, bool(contexts))
        if conversation.continues and place == len(messages) - 1:
            return text + role + written
        text += role + written + end
    return text + template.answer


def _content(message: Message, contexts: Iterator[int], has_images: bool) -> str:
    written = ""
    for part in message.parts:
        if not isinstance(part, TextPart):
            written += IMAGE_START + IMAGE_CONTEXT * next(contexts) + IMAGE_END + "\n"
        elif has_images and IMAGE_CONTEXT in part.text:
            raise MessageError(f"The text contains {IMAGE_CONTEXT}, this model's image placeholder: leave it out.")
        else:
            written += part.text
    return written
