"""C6, C8: candidates are tokenised as continuations of the prompt, and share one prefill without changing a number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmprobe.adapter import EncodedPrompt
from vlmprobe.errors import CapabilityError
from vlmprobe.inputs.messages import Conversation, Message, TextPart
from vlmprobe.results.result import Scores
from vlmprobe.results.table import TokenTable
from vlmprobe.testing.conformance.check import check
from vlmprobe.testing.report import CheckFailure
from vlmprobe.testing.subject import Subject
from vlmprobe.testing.tolerance import log_softmax, require_numbers

__all__ = ["candidate_ids", "own_logprobs", "require_forwards", "shared_prefix"]

CANDIDATES = ["yes", " no", "a tiger", "a tiger's tail is long", "a tiny red house", "3.5", "一只老虎 🐅", "yesterday"]
WORDS = ("tiger", "picture", "describe", "elephant", "the", "and")


@check(
    "C6",
    "prompt ids are a prefix of prompt + candidate ids, or the merge at the boundary is reported",
    "the candidate tokenised on its own: with BOS, or without the merge at the boundary",
    "a space added or stripped at the boundary",
)
def candidate_ids(subject: Subject) -> Sequence[str] | None:
    """Ids and positions of scored candidates, against prompt text and candidate tokenised jointly."""
    _require_ids(subject, subject.conversation("main"), CANDIDATES)
    halves = _merging(subject)
    if halves is None:
        return ["a merge at the boundary: not checked (the tokenizer merges none of the words tried)"]
    begun = Message("assistant", (TextPart(f"It is {halves[0]}"),))
    candidates = [halves[1], f"{halves[1]} in the grass", " or not"]
    try:
        _require_ids(subject, Conversation((*subject.conversation("main").messages, begun)), candidates)
    except CapabilityError as error:
        return [f"a merge at the boundary: not checked ({error})"]
    return None


@check(
    "C8",
    "candidates on a shared prefix score as in a full forward of each, in any order and repeatedly",
    "the prompt's cache changed by a candidate, so that the next one continues a longer prefix",
    "continue_from() of the adapter: positions, masks or rope deltas of the candidate tokens",
    "an architecture whose cache cannot be continued: set capabilities.prefix_reuse to False",
)
def shared_prefix(subject: Subject) -> Sequence[str] | None:
    """Each candidate's log-probabilities, twice and in reverse order, against a forward of prompt and candidate."""
    forwards = [own_logprobs(subject, "main", text) for text in CANDIDATES]
    first = subject.score("main", CANDIDATES)
    require_forwards(subject, first.tables, forwards, "")
    elsewhere = subject.score("wide", CANDIDATES[:3])  # leaves another prompt's state on the model
    again = subject.score("main", CANDIDATES[::-1])
    require_forwards(subject, again.tables[::-1], forwards, ", scored again in reverse order")
    wide = [own_logprobs(subject, "wide", text) for text in CANDIDATES[:3]]
    require_forwards(subject, elsewhere.tables, wide, ", of another image and question")
    totals = np.array([sum(each) for each in forwards])
    weights = np.exp(totals - totals.max())
    require_numbers(
        first.probabilities,
        weights / weights.sum(),
        10 * subject.tolerance("paths"),
        of="probabilities over the candidates",
        path="the softmax of the summed log-probabilities of full forwards",
        names=[f"candidate {text!r}" for text in CANDIDATES],
    )
    how = first.meta.get("prefix")
    return [] if how in ("shared", None) else [f"every candidate runs the whole prompt: {how}"]


def _require_ids(subject: Subject, conversation: Conversation, candidates: list[str]) -> None:
    prompt = subject.adapter.encode([conversation]).prompts[0]
    scores = subject.probe.score(conversation.to_chat(), candidates)
    for place, text in enumerate(candidates):
        shared, ids = _in_one_piece(subject, prompt, text)
        table, boundary = scores.tables[place], scores.boundaries[place]
        if table.ids.tolist() != ids or table.positions.tolist() != list(range(shared, shared + len(ids))):
            raise CheckFailure(
                f"candidate {text!r} as ids {ids} from position {shared}, tokenised together with the prompt",
                f"ids {table.ids.tolist()} from position {int(table.positions[0])}",
                f"after a prompt of {len(prompt.ids)} positions that ends in {prompt.ids[-4:].tolist()}",
            )
        if (boundary is None) != (shared == len(prompt.ids)):
            raise CheckFailure(
                f"{'no boundary note' if boundary else 'a note that the tokenizer merges across the boundary'}",
                f"{boundary!r}",
                f"candidate {text!r}: {len(prompt.ids) - shared} prompt token(s) merge with it",
            )
        _require_text(subject, scores, place, prompt.ids[shared:].tolist())


def _merging(subject: Subject) -> tuple[str, str] | None:
    """A word in two halves that tokenise differently apart than together."""
    tokenizer = subject.adapter.tokenizer
    for word in WORDS:
        for cut in range(1, len(word)):
            text, half = f"It is {word}", f"It is {word[:cut]}"
            whole, begun = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in (text, half))
            if list(whole)[: len(begun)] != list(begun):
                return word[:cut], word[cut:]
    return None


def _in_one_piece(subject: Subject, prompt: EncodedPrompt, text: str) -> tuple[int, list[int]]:
    """How many prompt ids remain, and the ids after them, if prompt text and candidate are tokenised jointly.

    The prompt's text is the rendered template or, if that does not reproduce the prompt's last ids (processors
    that add text after the images), the decoded ids after the last image.
    """
    tokenizer, ids = subject.adapter.tokenizer, prompt.ids
    tail = ids[prompt.spans[-1].stop if prompt.spans else 0 :].tolist()
    written = tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    for source in (prompt.text, written):
        alone = list(tokenizer(source, add_special_tokens=False)["input_ids"])
        whole = list(tokenizer(source + text, add_special_tokens=False)["input_ids"])
        merged = len(alone) - _agreeing(alone, whole)
        agreeing = _agreeing(alone[::-1], tail[::-1])
        if merged < agreeing:
            return len(ids) - merged, whole[len(alone) - merged :]
    raise CheckFailure(
        "a tokenizer that reproduces the prompt's last ids from its text", f"{alone[-4:]} for {source[-40:]!r}"
    )


def _agreeing(one: list[int], other: list[int]) -> int:
    """Length of the longest common prefix."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _require_text(subject: Subject, scores: Scores, place: int, lost: list[int]) -> None:
    """The candidate's ids decode to the candidate, after the prompt tokens that it merged with."""
    tokenizer, table = subject.adapter.tokenizer, scores.tables[place]
    merged, whole = (
        tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for ids in (lost, table.ids.tolist())
    )
    if whole.strip() != (merged + scores.candidates[place]).strip():
        text = scores.candidates[place]
        raise CheckFailure(f"ids that decode to {merged + text!r}", f"{whole!r}", f"candidate {text!r}")


def require_forwards(
    subject: Subject,
    tables: Sequence[TokenTable],
    forwards: Sequence[np.ndarray],
    when: str,
    candidates: Sequence[str] = CANDIDATES,
) -> None:
    """The log-probabilities of candidates are those of :func:`own_logprobs`; ``when`` they were asked, for messages."""
    for table, expected, text in zip(tables, forwards, candidates, strict=False):
        require_numbers(
            table.logprobs,
            expected,
            subject.tolerance("paths"),
            of=f"logprobs of candidate {text!r}{when}",
            path="a forward of prompt and candidate",
            names=subject.named(table, what="candidate token"),
        )


def own_logprobs(subject: Subject, name: str, text: str) -> np.ndarray:
    """float64 [T]: log-probability of each token of a candidate in the model's own forward of prompt and candidate."""
    prompt = subject.prompt(name)
    continuation = subject.adapter.continuation(prompt, text)
    ids = list(continuation.ids)
    rows = np.arange(continuation.shared - 1, continuation.shared - 1 + len(ids))
    own = subject.own(name, rows, ids, drop=len(prompt.ids) - continuation.shared)
    return log_softmax(own)[np.arange(len(ids)), ids]
