"""Lets a model think before its answers are scored: the thought is generated, closed, and belongs to the prompt then.

A thought that is cut is closed as the model would close it, so that the answer follows what it has thought so far
("budget forcing": Muennighoff et al. 2025, "s1: Simple test-time scaling").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vlmprobe.adapter import Adapter
from vlmprobe.adapter.thought_format import ThoughtFormat, opens_thought, switched, thought_format
from vlmprobe.engines.base import Engine, HasAdapter, Options
from vlmprobe.engines.serving.tokens import Tokens
from vlmprobe.errors import AdapterError, GenerationOptionError, VlmprobeError
from vlmprobe.inputs.begun import Begun
from vlmprobe.inputs.messages import Conversation
from vlmprobe.probe.failure import named
from vlmprobe.probe.request import Request
from vlmprobe.results.result import Result, Scores
from vlmprobe.results.thought import BUDGET, CLOSED, STOPPED, Thought

__all__ = ["Thinking", "Thoughtful", "ends_within_thought", "thinking_of", "thoughtful"]

GREEDY = {"do_sample": False, "num_beams": 1}
OURS = ("eos_token_id", "stop_strings", "keep", "prompt")  # options that say where a thought ends, or change its result


@dataclass(frozen=True)
class Thinking:
    """Whether and how a model thinks before it answers."""

    generation: Mapping[str, Any]  # arguments of Probe.generate; none if the thought is closed at once
    end: str | None = None  # the text between thought and answer, if the caller gives it

    @property
    def budget(self) -> int:
        """Tokens that a thought may have at most."""
        return int(self.generation.get("max_new_tokens", 0))


@dataclass(frozen=True)
class Thoughtful:
    """A conversation whose answer comes after a thought."""

    conversation: Conversation
    thought: Thought | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    prompt: int = 0  # positions before the thought, as far as they are known

    def require_scored_after(self, scores: Scores) -> None:
        """Reject scores that an adapter has made without the thought.

        Raises:
            AdapterError: it names what the adapter leaves out.
        """
        if len(self.thought.output if self.thought else ()) and any(
            0 <= int(table.positions[0]) <= self.prompt for table in scores.tables
        ):
            raise AdapterError(
                f"{scores.meta.get('adapter')}: encode() leaves out Conversation.begun, so the thought was not read: "
                "it must pass what it returns through vlmprobe.adapter.begun.with_begun."
            )


def thinking_of(think: Any, end: Any = None) -> Thinking | None:
    """Validates the arguments ``think`` and ``think_end`` of :meth:`Probe.ask`.

    Raises:
        GenerationOptionError: for anything but a budget, options with one, or False.
    """
    if end is not None and (not isinstance(end, str) or not end.strip()):
        raise GenerationOptionError(f"think_end is the text that ends a thought, such as '</think>', not {end!r}.")
    if think is None:
        if end is not None:
            raise GenerationOptionError("think_end= says how a thought ends: pass think=256 or think=False too.")
        return None
    if think is False:
        return Thinking({}, end)
    options = dict(think) if isinstance(think, Mapping) else {**GREEDY, "max_new_tokens": think}
    budget = options.get("max_new_tokens")
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
        raise GenerationOptionError(
            f"think is how many tokens a thought may have, such as 256, or False for none, not {think!r}. Options of "
            "generate are a mapping: think={'max_new_tokens': 256, 'temperature': 0.6, 'seed': 0}."
        )
    if taken := [name for name in OURS if name in options]:
        raise GenerationOptionError(
            f"think= sets {taken[0]} itself: leave it out, or say how a thought ends, think_end=."
        )
    return Thinking(options if budget else {}, end)


def ends_within_thought(engine: Engine, conversation: Conversation) -> bool:
    """Whether the prompt of a conversation opens a thought, as far as its template is known here."""
    known = engine.adapter if isinstance(engine, HasAdapter) else getattr(engine, "tokens", None)
    adapter = known.adapter if isinstance(known, Tokens) else known
    return isinstance(adapter, Adapter) and opens_thought(adapter, conversation)


def thoughtful(
    probe: Any, conversations: Sequence[Conversation], names: Sequence[str | None], thinking: Thinking
) -> list[Thoughtful]:
    """Conversations, each continued by a thought of its own, or by an empty one.

    Raises:
        CapabilityError: if it is not known how the model writes a thought, or the engine cannot go on from one.
        GenerationOptionError: for a conversation that already continues an answer.
    """
    opened = []
    for conversation, name in zip(conversations, names, strict=True):
        try:
            opened.append(_opened(probe.engine, conversation, thinking))
        except VlmprobeError as error:
            raise (error if name is None else named(error, f"question {name!r}")) from error
    if not thinking.budget:
        return [each for each, _ in opened]
    formats = [format for _, format in opened]
    ready = [each.conversation for each, _ in opened]
    found: list[tuple[int, Result]] = []
    for format in dict.fromkeys(formats):  # one, unless some questions have templates of their own
        places = [place for place, each in enumerate(formats) if each == format]
        requests = [Request(ready[place], [], names[place]) for place in places]  # type: ignore[arg-type]
        found += zip(places, _generated(probe, requests, _options(probe.engine, format, thinking)), strict=True)
    return [
        _closed(probe.engine, conversation, format, result, thinking)
        for conversation, format, (_, result) in zip(
            ready, formats, sorted(found, key=lambda each: each[0]), strict=True
        )
    ]


def _opened(engine: Engine, conversation: Conversation, thinking: Thinking) -> tuple[Thoughtful, ThoughtFormat]:
    """A conversation up to where the model thinks, or, without a budget, up to where it answers without a thought."""
    if conversation.continues:
        raise GenerationOptionError(
            "think= is about a new answer, and this conversation continues one: write the thought into it, or leave "
            "out think=."
        )
    engine.check([replace(conversation, begun=Begun.of_text("."))], Options(prompt=False, demanded=frozenset()))
    adapter = _adapter(engine)
    turned = switched(adapter, conversation, bool(thinking.budget))
    off = {"thought": {"tokens": 0, "ended": "off"}}
    if not thinking.budget and turned != conversation and thinking.end is None:
        return Thoughtful(turned, None, off), ThoughtFormat("", "", "")
    format = thought_format(adapter, turned, thinking.end)
    begun = format.opening if thinking.budget else format.opening + format.closing
    return Thoughtful(replace(turned, begun=Begun.of_text(begun)), None, off), format


def _adapter(engine: Engine) -> Adapter:
    """What knows the chat template and the tokenizer.

    Raises:
        CapabilityError: for a server whose template and tokenizer are not known here.
    """
    if isinstance(engine, HasAdapter):
        return engine.adapter
    tokens = getattr(engine, "tokens", None)
    return (tokens if isinstance(tokens, Tokens) else Tokens()).need("think=")


def _options(engine: Engine, format: ThoughtFormat, thinking: Thinking) -> dict[str, Any]:
    """How a thought is generated: until its end."""
    adapter = _adapter(engine)
    ends = adapter.tokenizer.convert_tokens_to_ids([format.end])
    single = adapter.tokenizer(format.end, add_special_tokens=False)["input_ids"] == ends
    if not single:
        return {**thinking.generation, "prompt": False, "stop_strings": [format.end]}
    if isinstance(engine, HasAdapter):  # of a server they come beside its own
        ends = sorted({*adapter.end_ids, *ends})
    return {**thinking.generation, "prompt": False, "eos_token_id": ends}


def _generated(probe: Any, requests: Sequence[Request], options: Mapping[str, Any]) -> list[Result]:
    if len(requests) == 1:
        return [probe.generate(requests[0].question, [], **options)]
    return list(probe.generate_many(requests, progress=False, **options))


def _closed(
    engine: Engine, conversation: Conversation, format: ThoughtFormat, result: Result, thinking: Thinking
) -> Thoughtful:
    """A conversation with its thought, up to where the answer begins."""
    output = result.output
    text = "".join(output.tokens)
    stops = np.cumsum([len(each) for each in output.tokens])
    at = text.find(format.end)
    count = len(output)
    if at >= 0:
        ended = CLOSED
        count = int(np.searchsorted(stops, at + len(format.end))) + 1
        beyond = text[at + len(format.end) : stops[count - 1]]  # of a last token that holds more than the end
        closing = format.after.removeprefix(beyond)
    else:
        ended, closing = BUDGET, format.closing
        if result.finish_reason != "length":
            ended = STOPPED
            while count and output.kinds[count - 1] == "special":  # the end of the whole answer
                count -= 1
    drawn = int(stops[count - 1]) if count else 0
    if at < 0 and text[:drawn].endswith("\n"):
        closing = closing.lstrip("\n")
    opening = conversation.begun.text
    written = text[:drawn]
    table = output[:count]
    thought = Thought(text[: at if at >= 0 else drawn].strip(), table, ended, opening, closing)
    whole = opening + written + closing
    adapter = _adapter(engine)
    begun = Begun.of_text(whole)
    if isinstance(engine, HasAdapter):  # its tokens as they were drawn
        begun = Begun(opening, (*map(int, table.ids), *_ids(adapter, closing)), whole)
    before = 0 if result.input_ids is None else len(result.input_ids)
    told: dict[str, Any] = {"tokens": count, "ended": ended, "budget": thinking.budget}
    if not isinstance(engine, HasAdapter) and table.ids is not None and _ids(adapter, written) != table.ids.tolist():
        told["retokenised"] = True  # the server is sent its text, which the tokenizer cuts otherwise than it was drawn
    return Thoughtful(replace(conversation, begun=begun), thought, {"thought": told}, before)


def _ids(adapter: Adapter, text: str) -> list[int]:
    """Ids of a text that is written after tokens which stay as they are."""
    for before in ("x", ".", ""):  # some tokenizers write the beginning of a text otherwise than its middle
        head, whole = (
            adapter.tokenizer(each, add_special_tokens=False)["input_ids"] for each in (before, before + text)
        )
        if list(whole[: len(head)]) == list(head):
            return list(whole[len(head) :])
    return []
