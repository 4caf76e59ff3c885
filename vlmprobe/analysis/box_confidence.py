"""Confidence of the boxes and points of an answer: where else could their sides have been?

Each coordinate is a number of a few tokens, and so has a distribution: that of the numbers that could have stood there,
given all that stands before it. The rows of an answer say of it what lies along the number that was written; a probe of
the same model follows the other digits too. What is not known is told: probabilities, expectations and overlaps are
then bounds. A distribution is that of the places in the image: no number at all, or one beyond the image, is left out
and told as ``outside``.

The overlap of a box (intersection over union) with those that the model could have written in its place is computed
from draws of the model where there is a probe: number after number, each given those drawn before it, and the structure
between them as it was written. Without one, the distributions of the coordinates, each given the numbers that were
written before it, are taken as if independent: all combinations, or 512 evenly spread ones where there are more than
2,048.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlmprobe.analysis.box_notations import Frame, read_boxes
from vlmprobe.analysis.box_numbers import Outcomes, from_rows
from vlmprobe.analysis.box_overlap import Combined, Joint
from vlmprobe.analysis.box_pixels import frame_of, image_sizes, which_image
from vlmprobe.analysis.box_syntax import Found
from vlmprobe.analysis.box_table import Boxes, Coordinate
from vlmprobe.analysis.box_tree import Follower, Place
from vlmprobe.analysis.token_spans import NOTHING, Measured, SpanReader, text_and_spans
from vlmprobe.analysis.uncertainty import Source, table_of
from vlmprobe.errors import ResultError, VlmprobeWarning
from vlmprobe.probe.branch import conversation_of
from vlmprobe.results.result import Result
from vlmprobe.results.table import TokenTable

__all__ = ["boxes"]

SIDES = ("x1", "y1", "x2", "y2")
ROWS = 16  # tokens after the first one of a number in which it ends


def boxes(
    source: Source,
    format: str | None = None,
    *,
    which: int | None = None,
    probe: Any = None,
    question: Any = None,
    image: Any = None,
    frame: Sequence[int] | None = None,
    least: float = 1e-4,
    draws: int = 256,
    seed: int = 0,
) -> Boxes:
    """The boxes and points in an answer, each with its place in the image and how sure the model was of it.

    Args:
        source: an answer; or a table of tokens, such as one of ``Scores.tables``.
        format: the notation: ``"qwen2-vl"``, ``"qwen2.5-vl"``, ``"qwen3-vl"``, ``"internvl"``, ``"minicpm-v"``,
            ``"paligemma"``, ``"florence-2"``, ``"kosmos-2"`` or ``"molmo"``. If None, that of the family, if the result
            recorded it and the text has it, else the one that the text is written in.
        which: the number of the image that the boxes lie on, from 0; needed if there are several.
        probe: of the same model, on which the digits that were not written are followed. It has to be local.
        question, image: what the answer is about; needed with a probe, or for a table, if the result does not hold
            them as they were (images of more than 512 pixels).
        frame: width and height at which the model received the image, if the notation counts in such pixels and the
            result did not record them.
        least: probability, among the numbers in the image, below which one is not followed further.
        draws: how many boxes are drawn for the overlap, with a probe; 0 for none.
        seed: of the draws.

    Raises:
        ResultError: for an unknown format, JSON whose units are not known, or an image or a size that is not known.
        MessageError: with a probe, if the result answers another question, or does not hold what it is about.
        CapabilityError: for a probe that is not local.
    """
    table = table_of(source)
    result = source if isinstance(source, Result) else None
    text, reader, spans = _text_of(table, result)
    meta = {} if result is None else dict(result.meta)
    notation, found = read_boxes(text, format, meta.get("box_format"))
    if notation is None or not found:
        return Boxes.of([], text, "" if notation is None else notation.name, 0, None, None)
    sizes = image_sizes(meta, image)
    place = which_image(len(sizes), which)
    follower = None if probe is None else _follower(probe, table, result, question, image, least)
    received = sizes[place]
    if notation.units is None:
        if follower is not None and "resized_sizes" not in meta:
            meta["resized_sizes"] = probe.engine.adapter.resized_sizes(follower.conversation)
        received = frame_of(meta, frame, place)
    lies_on = Frame(notation, notation.scale(received), sizes[place])
    maker = _Maker(lies_on, table, reader, spans, follower, draws, seed)
    shown = None if result is None or place >= len(result.images) else result.images[place]
    return Boxes.of([maker.made(each) for each in found], text, notation.name, place, sizes[place], shown)


def _text_of(table: TokenTable, result: Result | None) -> tuple[str, SpanReader | None, np.ndarray]:
    """The answer with its special tokens, what measures it, and the characters of each token."""
    whole = replace(table, kinds=["text"] * len(table))
    text, spans = text_and_spans(whole.tokens, whole.kinds)
    if result is not None and result.text not in text_and_spans(table.tokens, table.kinds)[0]:
        warnings.warn(
            "The answer's text is not among what its tokens say, so that no box has a probability: it was changed "
            "after they were generated.",
            VlmprobeWarning,
            stacklevel=3,
        )
        return result.text, None, spans
    return text, SpanReader.of(whole), spans


def _follower(
    probe: Any, table: TokenTable, result: Result | None, question: Any, image: Any, least: float
) -> Follower:
    if table.ids is None:
        raise ResultError("The result has no token ids, which its engine does not give: call boxes without probe=.")
    if result is not None:
        conversation = conversation_of(probe.engine, probe.conversation, result, question, image)
    elif question is None:
        raise ResultError("A table of tokens does not say what it answers: pass question= and image= with probe=.")
    else:
        conversation = probe.conversation(question, image)
    return Follower(probe, conversation, table.ids.tolist(), least)


@dataclass
class _Maker:
    """Makes boxes of what was found in one answer."""

    frame: Frame
    table: TokenTable
    reader: SpanReader | None
    spans: np.ndarray  # int64 [T, 2]
    follower: Follower | None
    draws: int
    seed: int

    def made(self, found: Found) -> dict[str, Any]:
        """The columns of one box or point."""
        axes = self.frame.notation.axes(found.kind)
        whole = found.kind != "malformed"
        columns: dict[str, Any] = {"kind": found.kind, "label": found.label, "span": found.span, "notes": found.notes}
        columns |= {"complete": found.complete, "written": [number.value for number in found.numbers]}
        columns |= self._probabilities(found)
        places = [self._place(number, axis) for number, axis in zip(found.numbers, axes, strict=False)] if whole else []
        outcomes = [self._outcomes(place) for place in places]
        columns["coordinates"] = self._coordinates(outcomes, axes)
        columns["box"] = box = self._box(found, axes) if whole else np.full(4, np.nan)
        joint = None
        if found.kind == "box" and not np.isnan(box).any():
            joint = self._joint(places, outcomes, axes)
        columns["joint"] = joint
        return columns

    def _probabilities(self, found: Found) -> dict[str, Any]:
        """Of the numbers, and of the label; NaN where there are none."""
        measured = [self._measure(number.own) for number in found.numbers]
        label = self._measure(found.label_span) if found.label else NOTHING
        return {
            "at_least": float(np.prod([each.at_least for each in measured])) if measured else np.nan,
            "at_most": float(np.prod([each.at_most for each in measured])) if measured else np.nan,
            "straddles": any(each.straddles for each in measured),
            "label_at_least": label.at_least if found.label else np.nan,
            "label_at_most": label.at_most if found.label else np.nan,
        }

    def _measure(self, span: tuple[int, int]) -> Measured:
        return NOTHING if self.reader is None else self.reader.measure(*span)

    def _box(self, found: Found, axes: Sequence[tuple[int, ...]]) -> np.ndarray:
        """Its place in pixels, [4], NaN where a number is missing or may go on.

        What is beyond the image, or has its corners reversed, is put right and noted.
        """
        notation = self.frame.notation
        units = np.full(4, np.nan)
        for number, axis in zip(found.numbers, axes, strict=False):
            if number.ended:
                units[list(axis)] = notation.values(np.array([number.value]))[0]
            if not 0 <= number.value <= notation.greatest(axis, self.frame.scale) and "out of range" not in found.notes:
                found.notes.append("out of range")
        with np.errstate(invalid="ignore"):
            box = self.frame.pixels(units)
            if box[0] > box[2] or box[1] > box[3]:
                found.notes.append("corners reversed")
                box = np.concatenate([np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])])
        return box

    def _place(self, number: Any, axis: tuple[int, ...]) -> Place | None:
        """Where a number stands among the tokens."""
        if self.reader is None or not len(self.spans):
            return None
        start, stop = number.span
        first = int(np.searchsorted(self.spans[:, 1], start, side="right"))
        last = int(np.searchsorted(self.spans[:, 0], stop, side="left")) - 1
        lead = self.reader.text[self.spans[first, 0] : start].strip()
        tail = self.reader.text[stop : self.spans[last, 1]]
        notation = self.frame.notation
        return Place(first, last, lead, tail, notation.greatest(axis, self.frame.scale), notation.step)

    def _outcomes(self, place: Place | None) -> Outcomes | None:
        """What a number could have become."""
        if place is None:
            return None
        if self.follower is not None:
            return self.follower.outcomes(place)
        return from_rows(self.table[place.first : place.last + ROWS], place.lead, place.greatest, place.step)

    def _coordinates(self, outcomes: Sequence[Outcomes | None], axes: Sequence[tuple[int, ...]]) -> list[Any]:
        """x1, y1, x2, y2 as distributions in pixels; None where nothing is written."""
        made: list[Coordinate | None] = [None] * 4
        for found, axis in zip(outcomes, axes, strict=False):
            if found is None:
                continue
            for column, (low, high) in zip(axis, self._pixels(found, axis), strict=True):
                side = float(self.frame.size[column % 2])
                made[column] = Coordinate(SIDES[column], low, high, found.mass, found.sure, found.outside, side)
        return made

    def _pixels(self, found: Outcomes, axis: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Low and high ends of outcomes along each axis, in pixels."""
        frame = self.frame
        ends: list[tuple[np.ndarray, np.ndarray]] = []
        for side, (low, high) in enumerate(zip(*map(np.transpose, self._units(found)), strict=True)):
            column = axis[side]
            most = frame.size[column % 2]
            factor = most / frame.scale[column]
            low, high = (np.clip((each + frame.notation.offset) * factor, 0, most) for each in (low, high))
            ends.append((low, high))
        return ends

    def _units(self, found: Outcomes) -> tuple[np.ndarray, np.ndarray]:
        """Low and high ends [N, k] in units; of a range of patches, every column of the grid may be meant."""
        notation = self.frame.notation
        low, high = notation.values(found.low), notation.values(found.high)
        if notation.grid:
            open_ = ~found.exact
            low[open_, 0], high[open_, 0] = 0, self.frame.scale[0] - 1
        return low, high

    def _joint(
        self, places: Sequence[Place | None], outcomes: Sequence[Outcomes | None], axes: Sequence[tuple[int, ...]]
    ) -> Joint | Combined | None:
        """The boxes that could have been written in place of one."""
        known = [(axis, found) for axis, found in zip(axes, outcomes, strict=True) if found is not None]
        if len(known) < len(axes):
            return None
        drawn = self._drawn(places, axes)
        return drawn or Combined([(axis, *self._units(found), found) for axis, found in known], self.frame)

    def _drawn(self, places: Sequence[Place | None], axes: Sequence[tuple[int, ...]]) -> Joint | None:
        """Boxes drawn from the model, in pixels; None without any."""
        if self.follower is None or not self.draws:
            return None
        random = np.random.default_rng(self.seed)
        drawn = self.follower.draws([each for each in places if each is not None], self.draws, random)
        drawn = None if drawn is None else drawn[~np.isnan(drawn).any(axis=1)]
        if drawn is None or not len(drawn):
            return None
        units = np.empty((len(drawn), 4))
        for column, axis in enumerate(axes):
            units[:, list(axis)] = self.frame.notation.values(drawn[:, column])
        weight = np.full(len(units), 1 / len(units))
        pixels = self.frame.pixels(units)
        return Joint(pixels, pixels, weight, weight)
