"""Rejects what an engine does not support before anything is sent, and names what does."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from vlmprobe.engines.base import Options
from vlmprobe.engines.constraint import Constraint
from vlmprobe.engines.serving.answer import BEGUN, Abilities
from vlmprobe.errors import CapabilityError, VlmprobeWarning, outside
from vlmprobe.inputs.messages import Conversation

__all__ = ["refuse", "warn_unread"]

LOCAL = "open the checkpoint with vlmprobe.load"


def refuse(title: str, abilities: Abilities, conversations: Sequence[Conversation], options: Options) -> None:
    """Raise :class:`CapabilityError` for what an engine does not support."""
    if "hidden" in options.keep:
        raise CapabilityError(f"{title} sends no hidden states: {LOCAL}.")
    if options.store is not None:
        raise CapabilityError(f"Only a local model writes full rows to disk: {LOCAL}.")
    if "logits" in options.keep and abilities.no_logits:
        raise CapabilityError(f"{title} gives no full rows of logits: {abilities.no_logits}; or {LOCAL}.")
    if options.processors:
        raise CapabilityError(f"{title} does not run the caller's logits processors: {LOCAL}.")
    if options.constraint is not None:
        _refuse_constraint(title, abilities, options.constraint, full="logits" in options.keep)
    if options.begin:
        raise CapabilityError(f"{title} cannot continue from given ids: {LOCAL}.")
    if "prompt" in options.demanded and options.prompt and abilities.no_prompt:
        raise CapabilityError(f"{title} gives no prompt side: {abilities.no_prompt}.")
    most = abilities.alternatives
    if "alternatives" in options.demanded and most is not None and options.alternatives > most:
        raise CapabilityError(
            f"{title} returns {f'at most {most}' if most else 'no'} alternatives, not {options.alternatives}"
            f"{': ' if abilities.no_alternatives else ''}{abilities.no_alternatives}."
        )
    for conversation in conversations:
        if refused := sorted(_asked_of_prompt(conversation) - abilities.prompt):
            raise CapabilityError(f"{title} takes no {', '.join(refused)}: {LOCAL}.")
        if conversation.images and not abilities.images:
            raise CapabilityError(f"{title} takes no images on this route.")
        named = {key for part in conversation.image_parts for key in part.options}
        if named:
            raise CapabilityError(f"{title} takes no image option {', '.join(sorted(named))}: {LOCAL}.")


def _refuse_constraint(title: str, abilities: Abilities, constraint: Constraint, *, full: bool) -> None:
    if constraint.kind == "function":
        raise CapabilityError(f"{title} does not run the caller's {constraint.name}: {LOCAL}.")
    if constraint.kind not in abilities.constraints:
        others = f"it takes {', '.join(sorted(abilities.constraints))}; " if abilities.constraints else ""
        raise CapabilityError(f"{title} takes no {constraint.name}: {others}vLLM, SGLang and llama.cpp do, or {LOCAL}.")
    if full and abilities.constrained != "raw":
        raise CapabilityError(
            f'{title} applies the {constraint.name} to its logits, so keep="logits" would not keep those of the model: '
            f"{LOCAL}."
        )


def _asked_of_prompt(conversation: Conversation) -> set[str]:
    """What the prompt is asked to hold beside the contents of messages."""
    asked = set(conversation.format.told) | ({BEGUN} if conversation.begun else set())
    for message in conversation.messages:
        asked |= {"role 'tool'"} if message.role == "tool" else set(message.further)
    return asked


def warn_unread(title: str, conversations: Sequence[Conversation], remedy: str) -> None:
    """Warn that what a server's chat template does not read would be dropped, where the template is not known."""
    named = {name for each in conversations for name in _asked_of_prompt(each)}
    if named := named - {"chat_template", "raw_prompt", "continue_final_message", BEGUN}:
        warnings.warn(
            f"{title} drops what its chat template does not read, and the template is not known here, so "
            f"{', '.join(sorted(named))} may have no effect: {remedy}.",
            VlmprobeWarning,
            stacklevel=outside(),
        )
