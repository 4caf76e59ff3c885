"""How boxes and points are written: what each syntax finds in a text, in time that grows with its length only."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

__all__ = ["SYNTAXES", "Found", "Number"]

Span = tuple[int, int]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
TAG = re.compile(r"<[^<>]*>")
BEFORE_LABEL = re.compile(r"\s+|<[^<>]*>")
LABEL = 1000  # characters in which the end of a label is looked for, lest time grow with their square
KINDS = {4: "box", 2: "point"}


class Number(NamedTuple):
    """A coordinate as it is written."""

    span: Span  # characters of its digits
    own: Span  # the same, or those of the location token that it is
    value: float
    ended: bool  # False where the text ends right after it, so that it may go on


@dataclass
class Found:
    """A box or point, or what was to become one."""

    kind: str  # "box", "point", or "malformed"
    numbers: list[Number]
    span: Span  # of its numbers
    label: str = ""
    label_span: Span = (0, 0)
    complete: bool = True  # False where the text ends in it
    notes: list[str] = field(default_factory=list)


def _numbers(text: str, start: int, stop: int) -> list[Number]:
    return [
        Number(each.span(), each.span(), float(each[0]), each.end() < len(text))
        for each in NUMBER.finditer(text, start, stop)
    ]


def _found(numbers: list[Number], span: Span, wanted: int, *, complete: bool) -> Found:
    """What a group of numbers is: a box or point of ``wanted`` numbers, or, if that is 0, of 4 or 2."""
    count = len(numbers)
    complete = complete or (count == (wanted or 4) and numbers[-1].ended)  # all but what closes it
    due = wanted or (count if count in KINDS and complete else 4)
    if not complete and count <= due:
        return Found(KINDS[due], numbers, span, complete=False, notes=["cut off"])
    if count == due:
        return Found(KINDS[due], numbers, span)
    return Found("malformed", numbers, span, notes=[f"{count} number{'s' if count != 1 else ''}, not {due}"])


def _bodies(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[re.Match[str], int, bool]]:
    """Every opening, where its body ends, and whether a closing is there: the groups ``open`` and ``close``."""
    begun: re.Match[str] | None = None
    for each in pattern.finditer(text):
        if begun is not None:
            yield begun, each.start(), each["close"] is not None
        begun = each if each["open"] is not None else None
    if begun is not None:
        yield begun, len(text), False


def _labelled(text: str, found: list[Found], pattern: re.Pattern[str]) -> list[Found]:
    """Each with the last label that stands before it."""
    labels = list(pattern.finditer(text))
    starts = [each.start() for each in labels]
    for each in found:
        place = bisect_left(starts, each.span[0]) - 1
        if place >= 0:
            _set_label(each, text, labels[place].span(1))
    return found


def _set_label(found: Found, text: str, span: Span) -> None:
    """The label in a stretch of text, without tags and white space around it."""
    start, stop = span
    while skipped := BEFORE_LABEL.match(text, start, stop):
        start = skipped.end()
    inner = text[start:stop].partition("<")[0].rstrip()
    found.label, found.label_span = inner, (start, start + len(inner))


# -- one function for each syntax ------------------------------------------------------------------------

BOX_START = re.compile(r"(?P<open><\|box_start\|>)|(?P<close><\|box_end\|>)")
OBJECT_REF = re.compile(r"<\|object_ref_start\|>(.{0,500}?)<\|object_ref_end\|>", re.DOTALL)
PAIR = re.compile(r"\([^()]*\)?")


def _box_start(text: str) -> list[Found]:
    """``<|box_start|>(x1,y1),(x2,y2)<|box_end|>``, or one pair for a point."""
    found = []
    for begun, stop, closed in _bodies(text, BOX_START):
        numbers = _numbers(text, begun.end(), stop)
        each = _found(numbers, (begun.start(), stop), 0, complete=closed or stop < len(text))
        if not closed and stop < len(text):
            each.notes.append("not closed")
        found.append(each)
    return _labelled(text, found, OBJECT_REF)


JSON_BOX = re.compile(r"""(?P<open>["'](?:bbox|point)_2d["']\s*:\s*\[)|(?P<close>\])""")
JSON_LABEL = re.compile(r"""["']label["']\s*:\s*("((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""")


def _json(text: str) -> list[Found]:
    """``{"bbox_2d": [x1, y1, x2, y2], "label": "..."}``, or ``point_2d``; several in an array, or one after another."""
    labels = list(JSON_LABEL.finditer(text))
    starts = [each.start() for each in labels]
    found = []
    before = 0
    for begun, stop, closed in _bodies(text, JSON_BOX):
        wanted = 4 if "bbox" in begun["open"] else 2
        numbers = _numbers(text, begun.end(), stop)
        each = _found(numbers, (begun.start(), stop), wanted, complete=closed or stop < len(text))
        opened = text.rfind("{", before, begun.start())
        end = text.find("}", stop, stop + LABEL)
        inner = range(opened if opened >= 0 else before, end if end >= 0 else stop + LABEL)
        before = stop
        place = bisect_left(starts, inner.start)
        if place < len(labels) and starts[place] in inner:
            label = labels[place]
            group = 2 if label[2] is not None else 3
            each.label, each.label_span = _unescaped(label[group]), label.span(group)
        found.append(each)
    return found


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return text


BOX_TAG = re.compile(r"(?P<open><box>)|(?P<close></box>)")
REF_TAG = re.compile(r"<ref>(.{0,500}?)</ref>", re.DOTALL)
LIST = re.compile(r"\[([^\[\]]*)(\]?)")


def _box_lists(text: str) -> list[Found]:
    """``<ref>label</ref><box>[[x1, y1, x2, y2], ...]</box>``, or lists of two for points."""
    found = []
    for begun, stop, _ in _bodies(text, BOX_TAG):
        if "[" not in text[begun.end() : stop]:
            continue
        lists = [each for each in LIST.finditer(text, begun.end(), stop) if each[1].strip()]
        for each in lists:
            made = _found(_numbers(text, *each.span(1)), each.span(), 0, complete=bool(each[2]) or stop < len(text))
            if not each[2] and stop < len(text):
                made.notes.append("not closed")
            found.append(made)
    return _labelled(text, found, REF_TAG)


BOX_OR_POINT = re.compile(r"(?P<open><(?:box|point)>)|(?P<close></(?:box|point)>)")


def _box_numbers(text: str) -> list[Found]:
    """``<ref>label</ref><box>x1 y1 x2 y2</box>``, or ``<point>x y</point>``."""
    found = []
    for begun, stop, closed in _bodies(text, BOX_OR_POINT):
        if "[" in text[begun.end() : stop]:
            continue
        wanted = 4 if begun["open"] == "<box>" else 2
        each = _found(_numbers(text, begun.end(), stop), (begun.start(), stop), wanted, complete=stop < len(text))
        if not closed and stop < len(text):
            each.notes.append("not closed")
        found.append(each)
    return _labelled(text, found, REF_TAG)


def _token_groups(text: str, pattern: re.Pattern[str], count: int, begun: re.Pattern[str]) -> list[Found]:
    """Runs of location tokens in groups of ``count``; ``begun`` is what one looks like that the text ends in."""
    runs: list[list[re.Match[str]]] = []
    for each in pattern.finditer(text):
        if runs and len(runs[-1]) < count and not text[runs[-1][-1].end() : each.start()].strip():
            runs[-1].append(each)
        else:
            runs.append([each])
    found = []
    for run in runs:
        numbers = [Number(each.span(1), each.span(), float(each[1]), True) for each in run]
        stop = run[-1].end()
        complete = len(run) == count
        if not complete:
            rest = TAG.sub("", text[stop : stop + LABEL]).strip() if run is runs[-1] else "more"
            complete = bool(rest) and not begun.fullmatch(rest)
        found.append(_found(numbers, (run[0].start(), stop), count, complete=complete))
    return found


LOC_YXYX, LOC_YXYX_BEGUN = re.compile(r"<loc(\d{1,4})>"), re.compile(r"<(l(o(c\d*)?)?)?")
LOC_XYXY, LOC_XYXY_BEGUN = re.compile(r"<loc_(\d{1,4})>"), re.compile(r"<(l(o(c(_\d*)?)?)?)?")
PATCH, PATCH_BEGUN = re.compile(r"<patch_index_(\d{1,4})>"), re.compile(r"<(p[a-z_]*\d*)?")
PHRASE = re.compile(r"<phrase>(.{0,500}?)</phrase>", re.DOTALL)


def _loc_yxyx(text: str) -> list[Found]:
    """``<loc0012><loc0034><loc0056><loc0078> label ; ...``: the label comes after, the segmentation is passed over."""
    found = _token_groups(text, LOC_YXYX, 4, LOC_YXYX_BEGUN)
    for each, following in zip_longest(found, found[1:]):
        stop = len(text) if following is None else following.span[0]
        semicolon = text.find(";", each.span[1], stop)
        _set_label(each, text, (each.span[1], stop if semicolon < 0 else semicolon))
    return found


def _loc_xyxy(text: str) -> list[Found]:
    """``label<loc_12><loc_34><loc_56><loc_78>``: several boxes may follow one label."""
    found = _token_groups(text, LOC_XYXY, 4, LOC_XYXY_BEGUN)
    before = 0
    label: Span = (0, 0)
    for each in found:
        if TAG.sub("", text[before : each.span[0]]).strip():
            label = before, each.span[0]
        _set_label(each, text, label)
        before = each.span[1]
    return found


def _patches(text: str) -> list[Found]:
    """``<phrase>label</phrase><object><patch_index_0044><patch_index_0863></object>``."""
    found = _token_groups(text, PATCH, 2, PATCH_BEGUN)
    for each in found:  # of two corners
        each.kind = "box" if each.kind == "point" else each.kind
    return _labelled(text, found, PHRASE)


POINT_TAG = re.compile(r"<points?\b[^<>]*(>?)")
ATTRIBUTE = re.compile(r'\b([xy])(\d*)\s*=\s*["\']?\s*(-?\d+(?:\.\d+)?)')
ALT = re.compile(r'\balt\s*=\s*"([^"]*)"')


def _point_tags(text: str) -> list[Found]:
    """``<point x="61.5" y="40.6" alt="label">``, or ``<points x1= y1= x2= y2= alt=>``."""
    found = []
    for tag in POINT_TAG.finditer(text):
        closed = bool(tag[1]) or tag.end() < len(text)
        places: dict[str, dict[str, Number]] = {}
        for each in ATTRIBUTE.finditer(text, *tag.span()):
            number = Number(each.span(3), each.span(3), float(each[3]), each.end() < len(text))
            places.setdefault(each[2], {})[each[1]] = number
        alt = ALT.search(text, *tag.span())
        for held in places.values():
            numbers = [held[axis] for axis in "xy" if axis in held]
            whole = len(numbers) == 2 and numbers[1].ended
            span = numbers[0].span[0], numbers[-1].span[1]
            made = _found(numbers, span, 2, complete=closed or whole)
            if alt is not None:
                made.label, made.label_span = alt[1].strip(), alt.span(1)
            found.append(made)
    return found


SYNTAXES: dict[str, Callable[[str], list[Found]]] = {
    "box_start": _box_start,
    "json": _json,
    "box_lists": _box_lists,
    "box_numbers": _box_numbers,
    "loc_yxyx": _loc_yxyx,
    "loc_xyxy": _loc_xyxy,
    "patches": _patches,
    "point_tags": _point_tags,
}
