"""How a model writes a thought before its answer: from its chat template and its tokenizer, never from its name.

A template that writes ``reasoning_content`` shows it: the prompt with a thought and an answer is compared with the
prompt alone. Other templates name a known notation, or close an empty thought for ``enable_thinking=False``, or the
vocabulary has the two marks of a notation as tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vlmprobe.adapter.contract import Adapter
from vlmprobe.adapter.prompts import common_prefix
from vlmprobe.errors import CapabilityError, GenerationOptionError, VlmprobeError
from vlmprobe.inputs.chat_templates import template_for, templates_of
from vlmprobe.inputs.messages import Conversation, Message, TextPart

__all__ = ["NOTATIONS", "ThoughtFormat", "opens_thought", "switched", "thought_format"]

NOTATIONS = (  # how a thought begins and ends, as models write it
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("◁think▷", "◁/think▷"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
)
SWITCHES = ("enable_thinking", "thinking")  # variables of templates that turn thinking on and off
THOUGHT, ANSWER = "Vlmprobe is thinking", "Vlmprobe has answered"  # which no template writes of itself


@dataclass(frozen=True)
class ThoughtFormat:
    """The texts around a thought."""

    opening: str  # after the prompt; empty where the prompt opens the thought, or the model does
    end: str  # ends a thought; the beginning of what is between thought and answer, without white space
    closing: str  # all that is between thought and answer

    @property
    def after(self) -> str:
        """What is between the end of a thought and the answer."""
        return self.closing[self.closing.index(self.end) + len(self.end) :]


def thought_format(adapter: Adapter, conversation: Conversation, end: str | None = None) -> ThoughtFormat:
    """How a thought is written after the prompt of a conversation.

    Args:
        adapter: of the model.
        conversation: whose answer has not begun.
        end: the text between thought and answer, if the caller gives it.

    Raises:
        CapabilityError: if it is not known; it names what to pass.
    """
    prompt = _written(adapter, conversation)
    found = _as_template(adapter, conversation, prompt) or _as_notation(adapter, conversation, prompt)
    if end is not None:
        known = next((opening for opening, mark in NOTATIONS if mark in end and not _is_open(prompt, opening)), "")
        return ThoughtFormat(known if found is None else found.opening, _mark(adapter, end), end)
    if found is None:
        known = ", ".join(opened.strip() for opened, _ in NOTATIONS[:-1])
        raise CapabilityError(
            "It is not known how this model writes a thought: its chat template writes no reasoning_content, and "
            f"neither it nor the tokenizer has one of {known}, ... If it thinks, pass the text that ends a thought, "
            "such as think_end='</think>'; if it does not, leave out think=."
        )
    return found


def opens_thought(adapter: Adapter, conversation: Conversation) -> bool:
    """Whether the prompt of a conversation ends within a thought, so that the model goes on with that."""
    try:
        prompt = _written(adapter, conversation)
        found = _as_template(adapter, conversation, prompt)
        return _is_open(prompt, _notation(adapter, conversation)[0]) if found is None else not found.opening
    except (VlmprobeError, TypeError):
        return False


def switched(adapter: Adapter, conversation: Conversation, on: bool) -> Conversation:
    """The conversation with thinking turned on or off by the variable of its chat template, if that reads one.

    Raises:
        GenerationOptionError: if the caller has set that variable to the contrary.
    """
    format = conversation.format
    for name in SWITCHES:
        given = format.chat_template_kwargs.get(name)
        if given is not None and bool(given) != on:
            raise GenerationOptionError(
                f"think= and chat_template_kwargs={{{name!r}: {given!r}}} contradict each other: leave one out."
            )
        if given is not None:
            return conversation
    for name in SWITCHES:
        set_to = [
            replace(conversation, format=format.updated({"chat_template_kwargs": {name: value}}))
            for value in (on, not on)
        ]
        try:
            adapter.check_format(set_to[0])
            if _written(adapter, set_to[0]) != _written(adapter, set_to[1]):
                return set_to[0]
        except VlmprobeError:
            continue
    return conversation


def _written(adapter: Adapter, conversation: Conversation) -> str:
    """The prompt as text."""
    if type(adapter).encode is Adapter.encode:
        return adapter.render([conversation])[0]
    return adapter.encode([conversation]).prompts[0].text  # an original format, which its own code writes


def _as_template(adapter: Adapter, conversation: Conversation, prompt: str) -> ThoughtFormat | None:
    """As the chat template writes ``reasoning_content``."""
    if conversation.format.raw_prompt or conversation.continues:
        return None
    answer = Message("assistant", (TextPart(ANSWER),), {"reasoning_content": THOUGHT})
    told = replace(
        conversation,
        messages=(*conversation.messages, answer),
        format=replace(conversation.format, continue_final_message=False),
    )
    try:
        whole = _written(adapter, told)
    except VlmprobeError:
        return None
    before, thought, rest = whole.partition(THOUGHT)
    closing, answered, _ = rest.partition(ANSWER)
    if not thought or not answered or not closing.strip():
        return None
    shared = common_prefix(prompt, before)
    mark, more = _mark(adapter, closing), prompt[shared:]
    if mark in more or (more.strip() and shared < len(before)):
        return None  # it closes a thought, or is written otherwise where one follows
    return ThoughtFormat(before[shared:], mark, closing)


def _as_notation(adapter: Adapter, conversation: Conversation, prompt: str) -> ThoughtFormat | None:
    """As one of the notations, with the white space of the empty thought that the template may write."""
    opening, end = _notation(adapter, conversation)
    if not end:
        return None
    closing = end
    empty = _empty_thought(adapter, conversation, opening, end)
    if empty is not None:
        inner, after = empty
        opening += inner[: len(inner) // 2]
        closing = inner[len(inner) // 2 :] + end + after
    return ThoughtFormat("" if _is_open(prompt, opening) else opening, _mark(adapter, end), closing)


def _empty_thought(adapter: Adapter, conversation: Conversation, opening: str, end: str) -> tuple[str, str] | None:
    """White space within and after the empty thought that the template writes where thinking is turned off."""
    format = conversation.format
    others = {name: value for name, value in format.chat_template_kwargs.items() if name not in SWITCHES}
    plain = replace(format, chat_template_kwargs=others)
    try:
        off = _written(adapter, switched(adapter, replace(conversation, format=plain), False))
    except VlmprobeError:
        return None
    before, found, rest = off.rpartition(end)
    _, opened, inner = before.rpartition(opening)
    if not found or not opened or inner.strip() or rest.strip():
        return None
    return inner, rest


def _notation(adapter: Adapter, conversation: Conversation) -> tuple[str, str]:
    """The notation that the chat template names, else that whose marks are tokens; two empty texts if there is none."""
    template = ""
    if not conversation.format.raw_prompt:
        templates = templates_of(adapter.processor, adapter.tokenizer)
        template = template_for(templates, conversation) or ""
    named = [pair for pair in NOTATIONS if pair[0].strip() in template]
    tokens = (pair for pair in NOTATIONS if all(_is_token(adapter, mark.strip()) for mark in pair))
    return named[0] if named else next(tokens, ("", ""))


def _is_token(adapter: Adapter, mark: str) -> bool:
    tokenizer = adapter.tokenizer
    found = tokenizer.convert_tokens_to_ids(mark)
    return found is not None and found != tokenizer.unk_token_id


def _is_open(prompt: str, opening: str) -> bool:
    """Whether a prompt ends with the beginning of a thought."""
    return bool(opening.strip()) and prompt.rstrip().endswith(opening.strip())


def _mark(adapter: Adapter, closing: str) -> str:
    """What ends a thought in the text between thought and answer: its first added token, else the end of a notation,
    else all of it."""
    added = [each for each in adapter.tokenizer.get_added_vocab() if each.strip() and each in closing]
    if added:
        return min(added, key=lambda each: (closing.index(each), -len(each)))
    return next((end for _, end in NOTATIONS if end in closing), closing.strip())
