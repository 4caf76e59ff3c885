"""Selects the chat template of a conversation (a checkpoint may have several named ones), and reports its errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlmprobe.errors import CapabilityError, VlmprobeError
from vlmprobe.inputs.messages import Conversation

__all__ = ["PAIR", "pair_template", "rendering", "template_for", "templates_of"]

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
