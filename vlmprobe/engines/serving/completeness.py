"""Compares the rows of an answer with what the server says that it generated: one place for all engines.

A row can be missing for a reason that leaves the answer whole (an end token or a stop string that the server counts and
cuts, reasoning that it hides), or be lost: llama.cpp has no row for a token that ends inside a character, and SGLang
drops rows of text that it holds back in a stream. Then no sum of the answer's log-probabilities is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmprobe.engines.serving.answer import Answer
from vlmprobe.engines.serving.rows import Row
from vlmprobe.results.detokenize import Detokenizer

__all__ = ["LOST", "Compared", "compared", "lost_row"]

LOST = (
    "so their log-probabilities are not known, and no sum or mean of the answer's; the sum of the others is an upper "
    "bound"
)


@dataclass(frozen=True)
class Compared:
    """The rows of an answer, told apart."""

    rows: Sequence[Row]  # [T] of the text, and of its end
    reasoning: Sequence[Row]  # those before it, of what the server sends apart as reasoning
    lost: int  # tokens that were generated and have no row, in unknown places
    absent: dict[str, str]  # what has no row, and why


def lost_row(token: int | None = None) -> Row:
    """The row of a token that was generated, and of which the server sent nothing but perhaps its id."""
    return Row(id=token, text="", at_most=0.0)


def compared(answer: Answer, stops: Sequence[str], detokenizer: Detokenizer | None) -> Compared:
    """The rows of an answer, and what is missing of them.

    Args:
        answer: of the engine.
        stops: the stop strings that were requested.
        detokenizer: of the model's tokenizer, if it is known.
    """
    texts = _texts(answer.output, detokenizer)
    first = _first_of_answer(texts, answer.text or "") if answer.reasoning else 0
    rows, reasoning = answer.output[first:], answer.output[:first]
    told = sum(row.value is None for row in answer.output)
    generated = answer.usage.completion
    missing = 0 if generated is None else max(0, generated - len(answer.output))
    absent: dict[str, str] = {}
    if missing and answer.usage.reasoning and not reasoning:
        hidden = min(missing, answer.usage.reasoning)
        absent["reasoning"] = f"the server sends no rows of the {hidden} tokens of reasoning before the answer"
        missing -= hidden
    # A row of the end token shows that the server sends it.
    ended = detokenizer is not None and bool(rows) and rows[-1].id in detokenizer.special
    if missing and not told and not ended and _is_the_end(answer, texts[first:], missing, stops):
        what = "those of the stop string" if stops else "the end token"
        absent["end"] = f"the server counts {missing} more than it sends rows of: {what}, which it cuts"
        missing = 0
    if missing or told:
        count = missing + told
        many = "they were" if generated is None else f"{generated} tokens were"
        absent["rows"] = f"{many} generated, and {count} of them sent without a row, {LOST}"
    return Compared(rows, reasoning, missing, absent)


def _texts(rows: Sequence[Row], detokenizer: Detokenizer | None) -> list[str]:
    """The text of each row; empty for special tokens, where they are known."""
    ids = [row.id for row in rows if row.id is not None]
    if detokenizer is None or len(ids) < len(rows):
        return [row.text or "" for row in rows]
    pairs = zip(ids, detokenizer.texts(ids), strict=True)
    return ["" if each in detokenizer.special else text for each, text in pairs]


def _first_of_answer(texts: Sequence[str], text: str) -> int:
    """The first row of the text, which stands at the end, perhaps before an end token; 0 if it does not."""
    wanted = text.strip()
    for count in (len(texts), len(texts) - 1):
        joined = "".join(texts[:count])
        start = len(joined.rstrip()) - len(wanted)
        if start < 0 or joined[start:].strip() != wanted:
            continue
        place = 0
        for row, each in enumerate(texts[:count]):
            if place + len(each) > start:
                return row
            place += len(each)
        return count
    return 0


def _is_the_end(answer: Answer, texts: Sequence[str], missing: int, stops: Sequence[str]) -> bool:
    """Whether the missing tokens are those that end the answer, rather than pieces of its characters."""
    if answer.finish_reason != "stop" or (missing > 1 and not stops):
        return False
    if answer.text is not None and "".join(texts).strip() != answer.text.strip():
        return False
    # A lost piece of a character leaves its text to the row that completes it, whose own alternative is shorter.
    rows = answer.output[len(answer.output) - len(texts) :]
    return all(
        text.isascii() or any(each.value == row.value and each.text in (None, text) for each in row.top)
        for row, text in zip(rows, texts, strict=True)
    )
