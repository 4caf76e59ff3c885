"""Short chat templates in the public formats of the families."""

from __future__ import annotations

import json
from collections.abc import Mapping

__all__ = ["CHATML", "LLAMA3", "chat"]

CHATML = {role: (f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ("system", "user", "assistant")}
LLAMA3 = {
    role: (f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>") for role in ("system", "user", "assistant")
}


def chat(
    roles: Mapping[str, tuple[str, str]],
    *,
    generation: str,
    image: str,
    start: str = "",
    default_system: str = "",
    images_first: bool = False,
    trim: bool = False,
) -> str:
    """A Jinja template over messages whose content is a string or a list of image and text parts.

    Args:
        roles: role -> the text before and after its content.
        generation: the generation prompt.
        image: the text of an image part.
        start: the text that begins every conversation, such as BOS.
        default_system: the text that replaces a missing system message.
        images_first: write a message's images before its text, wherever they occur.
        trim: strip the text parts, as the templates of some families do.
    """
    text = "part['text'] | trim" if trim else "part['text']"
    written_image = "{{ " + _quote(image) + " }}"
    written_text = "{{ " + text + " }}"
    if images_first:
        content = (
            "{% for part in message['content'] if part['type'] == 'image' %}" + written_image + "{% endfor %}"
            "{% for part in message['content'] if part['type'] == 'text' %}" + written_text + "{% endfor %}"
        )
    else:
        content = (
            "{% for part in message['content'] %}"
            "{% if part['type'] == 'image' %}" + written_image + "{% elif part['type'] == 'text' %}" + written_text
        ) + "{% endif %}{% endfor %}"
    before = _quote({role: pair[0] for role, pair in roles.items()})
    after = _quote({role: pair[1] for role, pair in roles.items()})
    system = ""
    if default_system:
        system = "{% if messages[0]['role'] != 'system' %}{{ " + _quote(default_system) + " }}{% endif %}"
    return (
        "{{ " + _quote(start) + " }}" + system + "{% for message in messages %}"
        "{{ " + before + "[message['role']] }}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}" + content + "{% endif %}"
        "{{ " + after + "[message['role']] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ " + _quote(generation) + " }}{% endif %}"
    )


def _quote(value: object) -> str:
    """A Jinja literal: JSON's strings and maps are Jinja's, newlines escaped."""
    return json.dumps(value, ensure_ascii=False)
