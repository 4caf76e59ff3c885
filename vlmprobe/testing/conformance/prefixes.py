"""C24: questions that share the beginning of their prompts have the numbers of each alone, in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmprobe.probe.request import Request
from vlmprobe.testing.conformance.candidates import own_logprobs, require_forwards
from vlmprobe.testing.conformance.check import check
from vlmprobe.testing.conformance.conversations import require_own_rows
from vlmprobe.testing.subject import GREEDY, Subject

__all__ = ["shared_beginning"]

PROMPTS = ("main", "other", "main +2", "wide", "main +9", "other +4")  # three about one image, two about another
LENGTHS = ("main", "other +9", "wide")  # each about an image of its own
CANDIDATES = ["yes", " no", "a tiger", "a tiger in the grass"]


@check(
    "C24",
    "questions about one image, asked together or in a session, have the numbers of a full forward of each",
    "a beginning that is taken from the cache of another image, or ends where the prompts differ already",
    "continue_from() of the adapter: positions, masks or rope deltas of the rest of a prompt",
    "an input that the rest of a prompt has and extend() does not give: override it, or set prefix_reuse to False",
)
def shared_beginning(subject: Subject) -> Sequence[str] | None:
    """Several prompts in one call, twice, and of different lengths, then in a session, against forwards of each."""
    due = {name: [own_logprobs(subject, name, text) for text in CANDIDATES] for name in {*PROMPTS, *LENGTHS}}
    # The first time, what is derived from another prompt is compared with what the processor makes.
    for names in (PROMPTS, PROMPTS, LENGTHS):
        requests = [Request(subject.conversation(name).to_chat(), candidates=CANDIDATES) for name in names]
        together = list(subject.probe.score_many(requests, progress=False))
        for name, scores in zip(names, together, strict=True):
            require_forwards(subject, scores.tables, due[name], f" of prompt {name!r}, asked together", CANDIDATES)
    with subject.probe.session() as session:
        for name in reversed(PROMPTS):
            scores = session.score(subject.conversation(name).to_chat(), CANDIDATES)
            require_forwards(subject, scores.tables, due[name], f" of prompt {name!r}, in a session", CANDIDATES)
            options: Any = {"keep": "logits", "max_new_tokens": 2, **GREEDY}
            require_own_rows(subject, name, session.generate(subject.conversation(name).to_chat(), **options))
    if scores.meta.get("prefix_in_common"):
        return None
    how = scores.meta["prefix"]
    whole = "linear attention rounds otherwise token by token, or the rest is not plain text to the model"
    return [f"every prompt runs whole: {whole if how == 'shared' else how}"]
