"""Selects the chat template of a conversation, reports its errors, and tells what it reads.

What a template is given and does not read is an error: Jinja itself drops it without a word.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from vlmprobe.errors import CapabilityError, VlmprobeError, VlmprobeWarning, outside
from vlmprobe.inputs.messages import Conversation, Message, TextPart
from vlmprobe.inputs.prompt_format import parsed_template

__all__ = [
    "PAIR",
    "pair_template",
    "raw_template",
    "rendering",
    "require_read",
    "require_variables",
    "template_for",
    "templates_of",
    "variables_of",
]

PAIR = ("query", "document")  # the roles of a pair that is scored for relevance
DEFAULT = "default"  # the name that transformers gives to chat_template.jinja
WITH_TOOLS = "tool_use"  # of the template that transformers selects if there are tools
GIVEN = frozenset({"messages", "add_generation_prompt", "continue_final_message", "raise_exception", "strftime_now"})
GIVEN |= {"bos_token", "eos_token", "pad_token", "unk_token", "tools", "documents"}  # no keyword of the caller
IDENTIFIERS = ("tool_call_id", "name")  # say which call is answered, which the order tells where they are not read
FURTHER_TEXT = " And so on."


def templates_of(processor: Any, tokenizer: Any) -> dict[str, str]:
    """The chat templates of a checkpoint by name: the processor's if it has any, else the tokenizer's."""
    found = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None) or {}
    return dict(found) if isinstance(found, dict) else {DEFAULT: found}


def pair_template(templates: dict[str, str]) -> str | None:
    """The template for a query and a document, recognised by its naming both roles; None if there is none.

    Rendering would not tell: many templates render an unknown role like any other.
    """
    named = (text for text in templates.values() if all(re.search(rf"""(['"]){role}\1""", text) for role in PAIR))
    return next(named, None)


def template_for(templates: dict[str, str], conversation: Conversation) -> str | None:
    """The template for a conversation; None if there is none."""
    if conversation.format.chat_template is not None:
        return conversation.format.chat_template
    if conversation.format.tools and WITH_TOOLS in templates:
        return templates[WITH_TOOLS]
    pair = any(message.role in PAIR for message in conversation.messages)
    return pair_template(templates) if pair else templates.get(DEFAULT)


def raw_template(image_text: str) -> str:
    """A template that writes texts as they are, and ``image_text`` for each image."""
    written = json.dumps(image_text, ensure_ascii=False)
    return (
        "{% for message in messages %}{% for part in message['content'] %}"
        f"{{{{ part['text'] if part['type'] == 'text' else {written} }}}}"
        "{% endfor %}{% endfor %}"
    )


def variables_of(template: str) -> frozenset[str]:
    """The variables that a template reads and does not set itself before.

    Raises:
        CapabilityError: for a template in a dialect of its own, as of a server.
    """
    from jinja2 import TemplateSyntaxError, meta

    try:
        return frozenset(meta.find_undeclared_variables(parsed_template(template)))
    except TemplateSyntaxError as error:
        raise CapabilityError(f"The chat template cannot be parsed, so what it reads is not known: {error}") from error


def _names_in(template: str) -> frozenset[str]:
    """Every attribute and every string constant of a template: the keys of a message that it may read."""
    from jinja2 import nodes

    tree = parsed_template(template)
    constants = {str(node.value) for node in tree.find_all(nodes.Const)}
    return frozenset(constants | {node.attr for node in tree.find_all(nodes.Getattr)})


def require_variables(template: str, given: Collection[str]) -> None:
    """Reject ``chat_template_kwargs`` that a template does not read.

    Raises:
        CapabilityError: it names them, and what the template does read.
    """
    read = variables_of(template)
    if unread := sorted(set(given) - read):
        known = ", ".join(sorted(read - GIVEN)) or "no variable of a caller"
        raise CapabilityError(
            f"The chat template does not read {', '.join(unread)} of chat_template_kwargs, which would be dropped: "
            f"leave it out. It reads {known}."
        )


def require_read(template: str, conversation: Conversation, render: Callable[[Conversation], str]) -> None:
    """Reject what a conversation gives its template and the template does not write into the prompt.

    Args:
        template: of the conversation.
        conversation: with tools, or messages that have more than a content, or neither.
        render: writes a conversation.

    Raises:
        CapabilityError: it names what would be dropped.
    """
    format, messages = conversation.format, conversation.messages
    if format.chat_template_kwargs:
        require_variables(template, format.chat_template_kwargs)
    if conversation.is_plain and not format.tools:
        return
    whole = render(conversation)

    def dropped(other: Conversation) -> bool:
        try:
            return render(other) == whole
        except VlmprobeError:  # the template needs it
            return False

    def with_message(place: int, message: Message) -> Conversation:
        return replace(conversation, messages=(*messages[:place], message, *messages[place + 1 :]))

    if format.tools and dropped(replace(conversation, format=replace(format, tools=()))):
        raise CapabilityError(
            "The chat template writes no tools, so tools= would be dropped: describe them in the text."
        )
    for place, message in enumerate(messages):
        if message.role == "tool" and dropped(
            with_message(place, replace(message, parts=(*message.parts, TextPart(FURTHER_TEXT))))
        ):
            raise CapabilityError(
                f"Message {place}: the chat template does not write messages of role 'tool': write the answer of the "
                "tool into a user message."
            )
        for key in message.further:
            less = {name: value for name, value in message.further.items() if name != key}
            if key in IDENTIFIERS or not dropped(with_message(place, replace(message, further=less))):
                continue
            if key == "tool_calls" or key not in _names_in(template):
                raise CapabilityError(
                    f"Message {place}: the chat template does not write {key!r}, which would be dropped: leave it out, "
                    "or write it into the text."
                )
            warnings.warn(
                f"Message {place}: the chat template reads {key!r}, and leaves it out of this prompt, as many do with "
                "the reasoning of earlier turns.",
                VlmprobeWarning,
                stacklevel=outside(),
            )


@contextmanager
def rendering(model_type: str) -> Iterator[None]:
    """Report errors of a chat template as such.

    Raises:
        CapabilityError: for an error that the template raises, as with ``raise_exception``, or runs into.
    """
    from jinja2 import TemplateError

    try:
        yield
    except VlmprobeError:
        raise
    except TemplateError as error:
        raise CapabilityError(f"The chat template of {model_type} refuses this conversation: {error}") from error
    except (TypeError, ValueError, LookupError, AttributeError) as error:  # of Python, in the template's expressions
        raise CapabilityError(
            f"The chat template of {model_type} cannot render this conversation ({type(error).__name__}: {error})."
        ) from error
