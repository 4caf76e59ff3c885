"""Which chat template a conversation is written with: a checkpoint may have several, by name."""

from __future__ import annotations

import re
from typing import Any

from vlmprobe.inputs.messages import Conversation

__all__ = ["PAIR", "pair_template", "template_for", "templates_of"]

PAIR = ("query", "document")  # the roles of a pair whose relevance is asked for
DEFAULT = "default"  # the name that transformers gives to chat_template.jinja


def templates_of(processor: Any, tokenizer: Any) -> dict[str, str]:
    """The chat templates of a checkpoint by their names; those of the processor where it has any."""
    found = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None) or {}
    return dict(found) if isinstance(found, dict) else {DEFAULT: found}


def pair_template(templates: dict[str, str]) -> str | None:
    """The template that writes a query and a document, told by its naming both roles; None where none does.

    Rendering would not tell: many templates write a role that they do not know as they write any other.
    """
    named = (text for text in templates.values() if all(re.search(rf"""(['"]){role}\1""", text) for role in PAIR))
    return next(named, None)


def template_for(templates: dict[str, str], conversation: Conversation) -> str | None:
    """The template for a conversation; None where there is none."""
    pair = any(message.role in PAIR for message in conversation.messages)
    return pair_template(templates) if pair else templates.get(DEFAULT)
