"""C4, C5: the image has an effect, and its positions are known and never scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmprobe.inputs.image_spans import ImageSpan
from vlmprobe.results.table import TokenTable
from vlmprobe.testing.conformance.check import check
from vlmprobe.testing.conformance.hooks import decoder_input, noisy_embeddings
from vlmprobe.testing.report import CheckFailure
from vlmprobe.testing.subject import GREEDY, Subject, text_rows
from vlmprobe.testing.tolerance import log_softmax, require_numbers, scale_of

__all__ = ["image_matters", "image_positions"]


@check(
    "C4",
    "changing or removing the image changes the text rows after it",
    "images lost between messages and processor, or always the first one used",
    "pixels that never reach the model: a misnamed input, or a cache keyed by the prompt only",
)
def image_matters(subject: Subject) -> Sequence[str] | None:
    """Rows after the image with another image, without one, and with another second image."""
    notes = []
    first = subject.greedy
    other = subject.ask("other", keep="logits", max_new_tokens=1, **GREEDY)
    _require_change(subject, _tail(first.prompt, first.output), _tail(other.prompt, other.output), "another image")
    if reason := subject.unavailable("text"):
        notes.append(f"without an image: not checked ({reason})")
    else:
        without = subject.ask("text", keep="logits", max_new_tokens=1, **GREEDY)
        rows = [each.output.logits for each in (first, without)]
        if rows[0] is None or rows[1] is None or len(without.input_ids) == len(first.input_ids):
            raise CheckFailure("a prompt without image positions if there is no image", "the same positions")
        _require_change(subject, rows[0][:1], rows[1][:1], "no image")
    if reason := subject.unavailable("two"):
        notes.append(f"several images: not checked ({reason})")
    else:
        pair = [subject.ask(name, keep="logits", max_new_tokens=1, **GREEDY) for name in ("two", "two other")]
        tails = [_tail(each.prompt, each.output) for each in pair]
        _require_change(subject, tails[0], tails[1], "another second image")
    return notes


@check(
    "C5",
    "image spans are the positions that image features fill, and no placeholder is scored",
    "image_ids of the adapter: the id in the prompt is not the one that the config calls the image token",
    "special ids besides the features (row ends, indicators) whose embeddings the model replaces as well",
    "positions of two adjacent images taken for one image's",
)
def image_positions(subject: Subject) -> Sequence[str] | None:
    """Spans against positions whose decoder input depends on no token; scores against the model's own forward."""
    notes = []
    spans, length = subject.prompt().spans, len(subject.prompt().ids)
    _require_order(spans, 1, length)
    notes += _require_filled(subject, spans, length)
    _require_unscored(subject, spans)
    if reason := subject.unavailable("two"):
        notes.append(f"several images: not checked ({reason})")
    else:
        _require_owners(subject)
    if subject.unavailable("text") is None and subject.prompt("text").spans:
        raise CheckFailure("no image span without an image", f"{subject.prompt('text').spans}")
    return notes


def _tail(prompt: TokenTable | None, output: TokenTable) -> np.ndarray:
    """[R, V]: the prompt's rows after the last image, then the first row of the answer."""
    if prompt is None or prompt.logits is None or output.logits is None:
        raise CheckFailure('full rows with keep="logits"', "no logits in the result")
    images = [row for row, kind in enumerate(prompt.kinds) if kind == "image"]
    after = prompt.logits[images[-1] + 1 :] if images else prompt.logits[:0]
    return np.concatenate([after, output.logits[:1]])


def _require_change(subject: Subject, one: np.ndarray, other: np.ndarray, what: str) -> None:
    """Rows must differ by more than noise, which is small in any dtype because all are the same arithmetic."""
    rows = min(len(one), len(other))
    change = np.abs(one[-rows:].astype(np.float64) - other[-rows:]).max(axis=-1)
    least = 1e-6 * max(scale_of(one), 10.0)
    still = np.flatnonzero(change <= least)
    if len(still) > rows / 2 or rows - 1 in still:
        raise CheckFailure(
            f"with {what}, every text row after the image to change by more than {least:.1e}",
            f"{len(still)} of {rows} rows do not, the largest change is {change.max():.2g}",
            f"the last row before the answer{'' if rows - 1 in still else ' does change'}",
        )


def _require_order(spans: Sequence[ImageSpan], images: int, length: int) -> None:
    expected: list[tuple[int, int]] = []
    stop = 0
    for span in spans:
        if not stop <= span.start < span.stop <= length:
            raise CheckFailure(f"spans that follow each other within {length} positions", f"{span}")
        stop = span.stop
        tile = sum(image == span.image for image, _ in expected)
        expected.append((span.image, tile))
    if [(span.image, span.tile) for span in spans] != expected or {span.image for span in spans} != set(range(images)):
        raise CheckFailure(f"spans of {images} image(s), tiles numbered from 0", f"{list(spans)}")


def _require_filled(subject: Subject, spans: Sequence[ImageSpan], length: int) -> list[str]:
    """The spans cover every position that image features fill, and no other."""
    inputs = subject.written("main", ())
    plain = decoder_input(subject, inputs)
    with noisy_embeddings(subject, inputs["input_ids"]):
        noisy = decoder_input(subject, inputs)
    filled = set((plain == noisy).all(dim=-1).nonzero()[:, 0].tolist())
    moved = set()
    if np.array_equal(subject.prompt("other").ids, subject.prompt().ids):
        other = decoder_input(subject, subject.written("other", ()))
        moved = set((plain != other).any(dim=-1).nonzero()[:, 0].tolist())
    held = {place for span in spans for place in range(span.start, span.stop)}
    if filled and filled != held:
        missing, surplus = sorted(filled - held), sorted(held - filled)
        table = subject.prompt_table(subject.greedy)
        ids = subject.prompt().ids
        where = "; ".join(
            f"{what} {places[:6]} of {len(places)} (ids {sorted({int(ids[place]) for place in places})[:6]})"
            for what, places in (("filled but in no span:", missing), ("in a span but not filled:", surplus))
            if places
        )
        raise CheckFailure(
            f"spans over the {len(filled)} positions that the model fills with image features",
            f"spans over {len(held)} positions, {table.kinds.count('image')} image rows",
            where,
        )
    if not moved <= held:
        raise CheckFailure(
            "only positions in an image span to change their decoder input with another image",
            f"positions {sorted(moved - held)[:6]} outside change",
        )
    if filled:
        return []
    if not moved:
        return ["images enter by cross-attention: a span is the position of their placeholder"]
    if still := [span for span in spans if moved.isdisjoint(range(span.start, span.stop))]:
        raise CheckFailure("another image to change every image span", f"{still[0]} does not change")
    return ["images are added to token embeddings, or are tokens themselves: found by changing the image"]


def _require_unscored(subject: Subject, spans: Sequence[ImageSpan]) -> None:
    """One row per image, without numbers; all other rows scored; perplexity is that of the text only."""
    table = subject.prompt_table(subject.greedy)
    begin, end = spans[0].start, max(span.stop for span in spans)
    rows = [row for row, kind in enumerate(table.kinds) if kind == "image"]
    if len(rows) != 1 or table.positions[rows[0]] != begin:
        raise CheckFailure(f"one image row, at position {begin}", f"image rows at {table.positions[rows].tolist()}")
    row = rows[0]
    numbers = [table.logprobs[row], table.entropy[row], table.logsumexp[row], *table.top_logprobs[row]]
    if not np.isnan(numbers).all() or table.ranks[row] != -1 or table.scored[row]:
        raise CheckFailure("no number in the image row", f"{numbers}, rank {table.ranks[row]}", f"position {begin}")
    text = [place for place in range(len(subject.prompt().ids)) if not begin <= place < end]
    held = table.positions[[kind != "image" for kind in table.kinds]].tolist()
    if held != text:
        raise CheckFailure(
            f"a row for each of the {len(text)} positions outside the image ({begin} to {end})",
            f"{len(held)} rows; {sorted(set(held) ^ set(text))[:6]} differ",
        )
    own = log_softmax(subject.own_prompt[:-1])
    ids = table.ids[text_rows(table)]
    within = ids < own.shape[-1]
    expected = float(np.exp(-own[np.flatnonzero(within), ids[within]].mean()))
    require_numbers(
        [np.log(table.perplexity)],
        [np.log(expected)],
        subject.tolerance("rows"),
        of="log perplexity of the prompt",
        path="the mean over its text tokens in the model's own forward",
        names=[f"{int(table.scored.sum())} scored rows"],
    )


def _require_owners(subject: Subject) -> None:
    """With two images, changing one of them changes only its own positions."""
    prompt = subject.prompt("two")
    _require_order(prompt.spans, 2, len(prompt.ids))
    one = decoder_input(subject, subject.written("two", ()))
    for image, name in enumerate(("other two", "two other")):
        if not np.array_equal(subject.prompt(name).ids, prompt.ids):
            continue
        other = decoder_input(subject, subject.written(name, ()))
        moved = set((one != other).any(dim=-1).nonzero()[:, 0].tolist())
        held = {place for span in prompt.spans if span.image == image for place in range(span.start, span.stop)}
        if not moved <= held:
            raise CheckFailure(
                f"positions from {min(held)} to {max(held)}, those of image {image}, to change with it",
                f"positions {sorted(moved - held)[:6]} change as well",
            )
