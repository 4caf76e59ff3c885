"""The first-token trap: a model that would begin its answer with something else than the answers that were scored.

Scored answers stand right after the prompt. A model that first writes a quotation mark, a bold mark, a space or a whole
sentence gives "yes" little probability there, however sure it is of yes.
"""

from __future__ import annotations

import re

import numpy as np

from vlmprobe.display.view import LITTLE, label, percent
from vlmprobe.results.table import TokenTable

__all__ = ["THOUGHT", "cause_of", "held_little"]

NAMED, NAMED_FROM = 3, 0.01  # tokens that a sentence names, at most, and from which probability on
BY_SPELLING = "spell the answers with it, as in options={'yes': ['**yes', '**Yes'], 'no': ['**no', '**No']}"
LET_THINK = "ask(..., think=256) scores the answers after a thought of so many tokens, and think=False closes it"
THOUGHT = "thought"
CAUSES = (  # name, tokens, what to do
    (
        THOUGHT,
        re.compile(r"\W*(think|thinking|thought|channel|analysis)\W*", re.IGNORECASE),
        f"It thinks before it answers: {LET_THINK}.",
    ),
    ("white space", re.compile(r"[\s▁ĠĊ]+"), f"White space comes first: {BY_SPELLING.replace('**', ' ')}."),
    ("quotation mark", re.compile(r"\s*[\"'`“”‘’«「『]+"), f"It quotes its answer: {BY_SPELLING.replace('**', '`')}."),
    ("mark", re.compile(r"\s*[*_#(\[{<\-]+\s*"), f"It marks its answer: {BY_SPELLING}."),
    (
        "sentence",
        re.compile(r"\s*(the|a|an|this|that|it|in|i|there|based|to|here|answer|option)", re.IGNORECASE),
        "It begins a sentence: ask for the answer alone, as in 'Answer with one word.'",
    ),
)


def held_little(table: TokenTable, mass: float, together: str, opened: bool = False) -> str:
    """One sentence on what the model would rather begin with, and one on what to do if the reason is known.

    Args:
        table: of an answer's tokens; its first row holds the likeliest tokens there.
        mass: what the answers hold of the model's belief.
        together: such as ``"yes and no together hold"``.
        opened: whether the prompt ends within a thought.
    """
    least = max(NAMED_FROM, mass)
    found = [f"{label(text)!r} ({percent(share)})" for text, share in _first(table)[:NAMED] if share >= least]
    rather = f"; it would rather begin with {', '.join(found)}" if found else ""
    cause = cause_of(table)
    remedy = next((f" {told}" for name, _, told in CAUSES if name == cause), "")
    if opened:
        remedy = f" The prompt opens a thought, so they were scored as the beginning of that: {LET_THINK}."
    return f"{together[0].upper()}{together[1:]} {percent(mass)} of what the model would say{rather}.{remedy}"


def cause_of(table: TokenTable) -> str | None:
    """Why the answers hold little: the kind of the likeliest first token that says, or None if none does."""
    for text, share in _first(table):
        if share < LITTLE:
            break
        for name, pattern, _ in CAUSES:
            if pattern.fullmatch(text):
                return name
    return None


def _first(table: TokenTable) -> list[tuple[str, float]]:
    """The likeliest tokens of the first row and their probabilities."""
    known = [
        (text, float(np.exp(logprob)))
        for text, logprob in zip(table.top_tokens[0], table.top_logprobs[0].tolist(), strict=True)
        if logprob == logprob
    ]
    return sorted(known, key=lambda each: -each[1])
