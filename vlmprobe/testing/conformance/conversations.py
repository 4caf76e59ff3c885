"""C20 to C23: what else a conversation may be. Its order is in the prompt, and its numbers are the model's own."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from vlmprobe.adapter.rope import may_continue
from vlmprobe.errors import VlmprobeWarning
from vlmprobe.results.result import Result
from vlmprobe.testing.conformance.candidates import own_logprobs
from vlmprobe.testing.conformance.check import check
from vlmprobe.testing.conformance.hooks import decoder_input
from vlmprobe.testing.report import CheckFailure, SkipCheck
from vlmprobe.testing.subject import ANSWER, GREEDY, SHORT, SYSTEM, Subject, text_rows
from vlmprobe.testing.tolerance import require_numbers, require_rows, scale_of

__all__ = ["require_own_rows", "rope_switch", "system_message", "text_before_image", "two_turns"]

PAIR = ["yes", "a tiger"]  # candidates
LONG_ANSWER = "a tiger in the grass, and nothing else that one could see"
WORD = "picture "  # repeated until a prompt has the length that is wanted
LONGEST = 8192  # positions: beyond, a forward that keeps all logits takes too much memory


@check(
    "C20",
    "text before the image stays before it, and its rows are the model's own",
    "a template or processor that moves images to the front: set capabilities.images_first to True",
    "parts of a message joined without their order",
)
def text_before_image(subject: Subject) -> Sequence[str] | None:
    """A question, then the image: order in the ids, rows and scores against the model's own forward."""
    conversation = subject.conversation("text first")
    if subject.adapter.facts(conversation).get("images_first"):
        raise SkipCheck("the family puts images before the text")
    subject.require("text first")
    prompt = subject.prompt("text first")
    _require_text(subject, SHORT, prompt.ids[: prompt.spans[0].start], "before the image")
    _require_numbers(subject, "text first")
    return None


@check(
    "C21",
    "a system message is in the prompt, and the rows after it are the model's own",
    "a system message that is dropped, or replaced by a default: set capabilities.system to False",
    "positions that are counted from the first user message",
)
def system_message(subject: Subject) -> Sequence[str] | None:
    """A system message before image and question: its text before the image, rows and scores."""
    subject.require("system")
    prompt = subject.prompt("system")
    _require_text(subject, SYSTEM, prompt.ids, "in the prompt")
    if np.array_equal(prompt.ids, subject.prompt().ids):
        raise CheckFailure("other ids with a system message than without", "the same")
    _require_numbers(subject, "system")
    return None


@check(
    "C22",
    "each of two turns keeps its own image, and the rows of both are the model's own",
    "all images moved to one turn, or those of earlier turns dropped",
    "images in another order than their placeholders",
)
def two_turns(subject: Subject) -> Sequence[str] | None:
    """An image and a question, an answer, another image and question: order in the ids, rows and scores."""
    subject.require("turns")
    prompt = subject.prompt("turns")
    first, second = ([span for span in prompt.spans if span.image == image] for image in (0, 1))
    if not first or not second:
        raise CheckFailure("image spans of two turns", f"{list(prompt.spans)}")
    between = prompt.ids[first[-1].stop : second[0].start]
    _require_text(subject, ANSWER, between, "between the images")
    _require_numbers(subject, "turns")
    for image, name in enumerate(("turns other first", "turns other second")):
        if not np.array_equal(subject.prompt(name).ids, prompt.ids):
            continue
        stop = (first, second)[image][-1].stop
        rows, others = (_rows_after(subject, each, stop) for each in ("turns", name))
        # A window of attention may end before the last row, but not before the first ones.
        if np.abs(rows - others).max() <= 1e-6 * max(scale_of(rows), 10.0):
            raise CheckFailure(f"other rows after another image in turn {image + 1}", "the same rows")
        changed = decoder_input(subject, subject.written(name, ())) != decoder_input(
            subject, subject.written("turns", ())
        )
        held = {place for span in (first, second)[image] for place in range(span.start, span.stop)}
        if surplus := sorted(set(changed.any(dim=-1).nonzero()[:, 0].tolist()) - held):
            raise CheckFailure(
                f"positions from {min(held)} to {max(held)}, those of turn {image + 1}, to change with its image",
                f"positions {surplus[:6]} change as well",
            )
    return None


@check(
    "C23",
    "prompts and candidates on either side of a RoPE switch have the rows of one whole forward",
    "a prompt's cache continued across the length where RoPE factors change",
    "a capabilities.prefix_limit that is not where the model changes them",
)
def rope_switch(subject: Subject) -> Sequence[str] | None:
    """Prompts just below and above the switch, and candidates that end beyond it, against the model's own forward."""
    limit = subject.adapter.capabilities.prefix_limit
    if limit is None:
        raise SkipCheck("RoPE has the same factors at any length")
    if limit > LONGEST:
        raise SkipCheck(f"RoPE factors change beyond {limit:,} positions, too long a prompt for a check")
    kind = "main" if _length(subject, "main", 0) < limit or subject.unavailable("text") else "text"
    if _length(subject, kind, 0) >= limit:
        raise SkipCheck(f"RoPE factors change beyond {limit:,} positions, and every prompt is longer")
    _require_same_factors(subject, kind, limit)
    below = bisect_right(range(limit), limit, key=lambda words: _length(subject, kind, words)) - 1
    names = {"below": f"{kind} +{below}", "above": f"{kind} +{below + len(WORD)}"}
    with warnings.catch_warnings():  # where dynamic factors begin, the model's context ends
        warnings.filterwarnings("ignore", "The prompt has .* and the model's context", VlmprobeWarning)
        for side, name in names.items():
            length = len(subject.prompt(name).ids)
            if (length > limit) != (side == "above"):
                raise CheckFailure(f"a prompt {side} {limit} positions", f"{length} positions")
            # What is generated below may end above, where the model's generate keeps keys of other factors.
            new = 2 if may_continue(subject.adapter, length, length + 2) else 1
            _require_numbers(subject, name, new, candidates=["yes", LONG_ANSWER])
    return None


def _require_same_factors(subject: Subject, kind: str, limit: int) -> None:
    """Rows of a short prompt are those of a forward that goes on up to the limit."""
    ids = subject.prompt(kind).ids
    rows = np.arange(max(0, len(ids) - 8), len(ids))
    require_rows(
        subject.own(kind, rows, [int(ids[-1])] * (limit - len(ids))),
        subject.own(kind, rows),
        subject.tolerance("paths"),
        of=f"rows of the prompt in a forward of {limit} positions, which have the same RoPE factors",
        path="those of a forward of the prompt",
        names=[f"position {row}" for row in rows],
    )


def _length(subject: Subject, kind: str, words: int) -> int:
    return len(subject.prompt(f"{kind} +{words}").ids)


def _require_text(subject: Subject, text: str, ids: np.ndarray, where: str) -> None:
    """A text is somewhere in what ids decode to, whitespace and case aside."""
    held = subject.adapter.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    if _plain(text) not in _plain(held):
        raise CheckFailure(f"{text!r} {where}", f"{held[-160:]!r}")


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def _full_rows(result: Result) -> np.ndarray:
    if result.output.logits is None:
        raise CheckFailure("full rows of the answer", "none")
    return np.asarray(result.output.logits, dtype=np.float64)


def _rows_after(subject: Subject, name: str, start: int) -> np.ndarray:
    """float64 [R, V]: the rows of a prompt and of the first answer token that come from positions after ``start``."""
    result = subject.ask(name, keep="logits", max_new_tokens=1, **GREEDY)
    table = subject.prompt_table(result)
    if table.logits is None:
        raise CheckFailure("full rows of the prompt", "none")
    rows = [row for row in text_rows(table) if table.positions[row] > start]
    return np.concatenate([np.asarray(table.logits, dtype=np.float64)[rows], _full_rows(result)])


def _require_numbers(subject: Subject, name: str, new: int = 2, candidates: Sequence[str] = PAIR) -> None:
    """Rows of prompt and answer, and scores, against the model's own forward."""
    require_own_rows(subject, name, subject.ask(name, keep="logits", max_new_tokens=new, **GREEDY))
    scores = subject.score(name, candidates)
    for table, text in zip(scores.tables, candidates, strict=True):
        require_numbers(
            table.logprobs,
            own_logprobs(subject, name, text),
            subject.tolerance("paths"),
            of=f"logprobs of candidate {text!r} after a prompt of {len(subject.prompt(name).ids)} positions",
            path="a forward of prompt and candidate",
            names=subject.named(table, what="candidate token"),
        )


def require_own_rows(subject: Subject, name: str, result: Result) -> None:
    """Rows of prompt and answer, kept in a result, against the model's own forward."""
    if not np.array_equal(result.input_ids, subject.prompt(name).ids):
        raise CheckFailure(f"the {len(subject.prompt(name).ids)} ids of the prompt", f"{len(result.input_ids)} others")
    table, output = subject.prompt_table(result), result.output
    if table.logits is None:
        raise CheckFailure("full rows of the prompt", "none")
    rows, start = text_rows(table), len(result.input_ids)
    own = subject.own(name, [*(table.positions[rows] - 1), *range(start - 1, start - 1 + len(output))], output.ids[:-1])
    require_rows(
        np.concatenate([np.asarray(table.logits, dtype=np.float64)[rows], _full_rows(result)]),
        own,
        subject.tolerance("paths"),
        of="rows",
        path="the model's own forward",
        names=[*subject.named(table, rows, "prompt row"), *subject.named(output, what="generated token")],
    )
