"""What an engine returns for one request, in one form whatever its wire format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vlmprobe.engines.constraint import Kind as ConstraintKind
from vlmprobe.engines.serving.rows import Row
from vlmprobe.engines.serving.value_kind import Kind, Meaning
from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.inputs.prompt_format import PROMPT_OPTIONS

__all__ = ["BEGUN", "EVERY_PROMPT", "Abilities", "Answer", "Scored", "Usage"]

MESSAGE_KEYS = frozenset({"tool_calls", "reasoning_content", "role 'tool'"})  # of messages that are more than contents
BEGUN = "thought before an answer that is scored"  # of Conversation.begun
EVERY_PROMPT = (
    MESSAGE_KEYS | frozenset(PROMPT_OPTIONS) | {BEGUN}
)  # of an engine that is sent the prompt as written here


@dataclass(frozen=True)
class Abilities:
    """What an engine supports. A reason says why not, and names what does; it is empty if the engine does."""

    alternatives: int | None = None  # maximum number at each position; 0 for none, None for no limit
    no_alternatives: str = ""  # why there are none, or no more
    no_prompt: str = ""  # why there is no prompt side
    no_score: str = ""  # why candidates cannot be scored
    one_token: str = ""  # why only candidates of one token can, by the alternatives of one position
    no_logits: str = "serving engines send log-probabilities, not logits"  # why there is no keep="logits"
    takes: frozenset[str] = frozenset()  # generation options, by the names of Decoding
    constraints: frozenset[ConstraintKind] = frozenset()  # what an answer can be made to obey
    constrained: Kind = "constrained"  # what the numbers of such an answer are: "raw" if it is applied after them
    images: bool = True
    prompt: frozenset[str] = frozenset()  # how a prompt can be written: names of PromptOptions, and of MESSAGE_KEYS


@dataclass(frozen=True)
class Usage:
    """How many tokens the server counted; None where it does not say."""

    prompt: int | None = None  # as the model receives it, images included
    completion: int | None = None  # that were generated, whether or not they have a row
    reasoning: int = 0  # of these, before the answer


@dataclass(frozen=True)
class Answer:
    """One answer: T rows of output and, if the engine returns them, S rows of the prompt as the model receives it."""

    text: str | None  # as the engine wrote it; None if it writes none, and the tokenizer does
    finish_reason: str  # "stop" or "length"
    output: Sequence[Row]  # [T]
    prompt_ids: np.ndarray | None = None  # int64 [S], image placeholders included
    prompt: Sequence[Row] | None = None  # [S], one for each position
    spans: tuple[ImageSpan, ...] | None = None  # if the engine reports which positions are images
    meaning: Meaning | None = None  # of these numbers, if it is not that of the server
    meta: dict[str, Any] = field(default_factory=dict)
    usage: Usage = Usage()
    reasoning: str = ""  # text that the engine sends apart, and whose rows stand before those of the text


@dataclass(frozen=True)
class Scored:
    """One candidate: the rows of its tokens."""

    rows: Sequence[Row]
    start: int  # position of the first row; -1 if unknown
    boundary: str | None = None  # what happened where the tokenizer merged prompt and candidate
    context: tuple[int, ...] = ()  # ids before the first row
