"""Selects the chat template of a conversation: a checkpoint may have several named ones."""

from __future__ import annotations

import re
from typing import Any

from vlmprobe.inputs.messages import Conversation

__all__ = ["PAIR", "pair_template", "template_for", "templates_of"]

PAIR = ("query", "document")  # the roles of a pair that is scored for relevance
DEFAULT = "default"  # the name that transformers gives to chat_template.jinja


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
    pair = any(message.role in PAIR for message in conversation.messages)
    return pair_template(templates) if pair else templates.get(DEFAULT)
