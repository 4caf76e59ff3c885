"""The JSON in a text, read leniently, with the place of every value: what models write is seldom the JSON alone.

One pass without recursion, so that time grows with the length of the text, and nesting is bounded. What is not JSON
(single quotes, trailing commas, an end that is missing) is read as what was meant, and told.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from vlmprobe.errors import ResultError

__all__ = ["DEEPEST", "Document", "Leaf", "Path", "read_json", "value_begun"]

Path: TypeAlias = "tuple[str | int, ...]"  # keys and indices from the root
Span: TypeAlias = "tuple[int, int]"

DEEPEST = 100  # levels of nesting
SPACE = re.compile(r"\s*+")
BODIES = {  # of a string, by its quote
    '"': re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL),
    "'": re.compile(r"[^'\\]*+(?:\\.[^'\\]*+)*+", re.DOTALL),
}
BARE = re.compile(r"""[^\s,:{}\[\]"'`]++""")
NUMBER = re.compile(r"-?(?:0|[1-9]\d*+)(\.\d++)?([eE][+-]?\d++)?", re.ASCII)
CONSTANTS = {
    "true": (True, "boolean", ""),
    "false": (False, "boolean", ""),
    "null": (None, "null", ""),
    "NaN": (float("nan"), "number", "NaN is not in JSON"),
    "Infinity": (float("inf"), "number", "Infinity is not in JSON"),
    "-Infinity": (float("-inf"), "number", "Infinity is not in JSON"),
    "True": (True, "boolean", "a constant of Python"),
    "False": (False, "boolean", "a constant of Python"),
    "None": (None, "null", "a constant of Python"),
}
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "/": "/", "\\": "\\", '"': '"'}
CUT_ESCAPE = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z")
FENCE = re.compile(r"```[\w-]*+\s*+(?=[{\[])")
OPENING, OBJECT = re.compile(r"[{\[]"), re.compile("{")
TRIES = 1000  # brackets in running text that turn out to begin no JSON


@dataclass(slots=True)
class Leaf:
    """A value that holds no others: a string, number, boolean, null, or an empty object or array."""

    path: Path
    value: Any  # escapes decoded; the text itself where it is no JSON value
    kind: (
        str  # "string", "number", "boolean", "null", "object", "array", "text" (no JSON value), "none" (cut before it)
    )
    span: Span  # in the text, without quotes
    key: Span | None  # the nearest key, without quotes; None for an item of an array
    complete: bool = True  # False if the text ends in it, so that it might have gone on
    notes: list[str] = field(default_factory=list)  # what is wrong with it


@dataclass
class Document:
    """A JSON text: its leaves in order, and what is wrong with it."""

    leaves: list[Leaf]
    span: Span  # in the text
    complete: bool  # whether every bracket is closed
    problems: list[str]  # one of each kind, such as "single quotes (4 times, first at character 2)"


@dataclass(slots=True)
class _Open:
    """An object or array that is not closed yet."""

    is_object: bool
    path: Path
    start: int
    key: Span | None  # under which it stands
    keys: set[str] = field(default_factory=set)  # of an object, so far
    count: int = 0  # members so far
    comma: int = -1  # where the comma is that the next member follows; -1 without one


class _Stop(Exception):
    """Reading cannot go on: what follows is not JSON, or the text ends."""


def read_json(text: str) -> Document:
    """The JSON in a text: that of a fenced block if there is one, else the first object, or array with an object in it,
    else the first array.

    Raises:
        ResultError: if there is none, or it is nested deeper than :data:`DEEPEST`.
    """
    at = 0
    for fence in FENCE.finditer(text):
        if fence.end() >= at:
            reader = _Reader(text, fence.end())
            if (document := reader.document()) is not None:
                return document
            at = reader.at
    plain, at = None, 0
    for _ in range(TRIES):
        found = (OPENING if plain is None else OBJECT).search(text, at)
        if found is None:
            break
        reader = _Reader(text, found.start())
        document = reader.document()
        if document is not None and (text[found.start()] == "{" or reader.has_keys):
            return document
        plain = document if plain is None else plain
        at = max(reader.at, found.end())
    if plain is None:
        begins = " ".join(text[:200].split())[:60]
        raise ResultError(
            f"There is no JSON object or array in the answer {begins!r}."
            if begins
            else "The answer is empty: there is no JSON in it."
        )
    return plain


def value_begun(text: str) -> tuple[Leaf, bool] | None:
    """The value that a text begins with, and whether it has ended there, so that nothing after it belongs to it.

    Of an object or array only the bracket is looked at, which decides that it is one. Kind "none" is what is no value,
    such as a comma. None while there is only white space.
    """
    reader = _Reader(text, 0)
    try:
        reader._next()
    except _Stop:
        return None
    reader.sure = True  # what has no quotes is read as well
    with suppress(_Stop):
        reader._value((), None)
    if reader._stack:
        kind = "object" if reader._stack[0].is_object else "array"
        return Leaf((), {} if kind == "object" else [], kind, (reader._stack[0].start, reader.at), None), True
    leaf = reader.leaves[0]
    return leaf, leaf.complete if leaf.kind in ("string", "none") else leaf.span[1] < len(text)


class _Reader:
    """Reads one object or array."""

    def __init__(self, text: str, start: int) -> None:
        self.text, self.start, self.at = text, start, start
        self.leaves: list[Leaf] = []
        self.has_keys = self.sure = False  # sure: a key or a value of JSON was read, so that this is no running text
        self._stack: list[_Open] = []
        self._doubled: set[Path] = set()
        self._problems: dict[str, tuple[int, int]] = {}  # kind: how often, where first

    def document(self) -> Document | None:
        """What was read; None if it is no JSON."""
        try:
            self._open((), None)
            while self._stack:
                self._member()
        except _Stop:
            if not self.sure and self.at < len(self.text):
                return None
            top = self._stack[-1]
            if not top.count:
                self._empty(top, complete=False)
        complete = not self._stack
        if not complete:
            cut = self.at >= len(self.text)
            self._tell("cut off" if cut else "no JSON from here on", self.at)
            if not cut and self.leaves:  # such as the 1 of an unquoted 1,234.50
                self.leaves[-1].notes.append("no JSON after it")
        if self._doubled:
            for leaf in self.leaves:
                if any(leaf.path[:length] in self._doubled for length in range(1, len(leaf.path) + 1)):
                    leaf.notes.append("duplicate key")
        problems = [
            f"{kind} ({f'{count:,} times, first ' if count > 1 else ''}at character {first:,})"
            for kind, (count, first) in self._problems.items()
        ]
        return Document(self.leaves, (self.start, self.at), complete, problems)

    def _member(self) -> None:
        """Read a key with its value, an item, a comma, or a closing bracket."""
        top, char = self._stack[-1], self._next()
        if char in "}]":
            if (char == "}") != top.is_object:
                raise _Stop
            if top.comma >= 0:
                self._tell("trailing comma", top.comma)
            self.at += 1
            self._stack.pop()
            if not top.count:
                self._empty(top, complete=True)
            return
        if char == ",":
            if top.comma >= 0 or not top.count:
                raise _Stop
            top.comma = self.at
            self.at += 1
            return
        missing = self.at if top.count and top.comma < 0 else -1
        if top.is_object:
            name, key = self._key()
            path: Path = (*top.path, name)
            if name in top.keys:
                self._doubled.add(path)
                self._tell("duplicate key", key[0])
            top.keys.add(name)
        else:
            path, key = (*top.path, top.count), top.key  # type: ignore[assignment]
        if missing >= 0:
            self._tell("missing comma", missing)
        top.count, top.comma = top.count + 1, -1
        self._value(path, key if top.is_object else None)

    def _next(self) -> str:
        """The next character that is not white space."""
        self.at = SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
        if self.at >= len(self.text):
            raise _Stop
        return self.text[self.at]

    def _key(self) -> tuple[str, Span]:
        """A key, and its place; the colon after it is read too."""
        start, char = self.at, self.text[self.at]
        if char in BODIES:
            raw, span = self._quoted(char)
            if self.at > len(self.text):
                self.at = len(self.text)
                raise _Stop
        else:
            found = BARE.match(self.text, start)
            if found is None:
                raise _Stop
            raw, span = found[0], found.span()
            self.at = found.end()
        after = self._next()
        if after != ":":
            self.at = start if self.sure else self.at
            raise _Stop
        self.at += 1
        self.has_keys = self.sure = True
        if char not in BODIES:
            self._tell("key without quotes", start)
        elif char == "'":
            self._tell("single quotes", start)
        return _decoded(raw)[0], span

    def _value(self, path: Path, key: Span | None) -> None:
        try:
            char = self._next()
        except _Stop:
            self.leaves.append(Leaf(path, None, "none", (self.at, self.at), key, complete=False, notes=["cut off"]))
            raise
        if char in "{[":
            self._open(path, key)
        elif char in BODIES:
            start = self.at
            raw, span = self._quoted(char)
            complete = self.at <= len(self.text)
            value, notes = _decoded(raw, cut=not complete)
            if char == "'":
                self._tell("single quotes", start)
                notes = ["single quotes", *notes]
            self.sure = True
            self._leaf(Leaf(path, value, "string", span, key, complete, notes))
        elif (found := BARE.match(self.text, self.at)) is not None:
            value, kind, note = _constant(found[0])
            if kind == "text" and not self.sure:
                raise _Stop
            self.sure, self.at = True, found.end()
            complete = found.end() < len(self.text) or kind not in ("number", "text")
            self._leaf(Leaf(path, value, kind, found.span(), key, complete, [note] if note else []))
        else:
            self._leaf(Leaf(path, None, "none", (self.at, self.at), key, notes=["no value"]))
            if char not in ",}]":
                raise _Stop

    def _leaf(self, leaf: Leaf) -> None:
        if not leaf.complete:
            leaf.notes.append("cut off")
        self.leaves.append(leaf)

    def _quoted(self, quote: str) -> tuple[str, Span]:
        """What stands in quotes; ``at`` is behind the closing one, or beyond the end of the text if there is none."""
        found = BODIES[quote].match(self.text, self.at + 1)
        start, stop = found.span() if found else (self.at + 1, self.at + 1)
        if self.text[stop : stop + 1] != quote:
            stop = len(self.text)
        self.at = stop + 1
        return self.text[start:stop], (start, stop)

    def _open(self, path: Path, key: Span | None) -> None:
        if len(self._stack) == DEEPEST:
            raise ResultError(f"The JSON in the answer is nested more than {DEEPEST} deep, at character {self.at:,}.")
        self._stack.append(_Open(self.text[self.at] == "{", path, self.at, key))
        self.at += 1

    def _empty(self, top: _Open, complete: bool) -> None:
        value: Any = {} if top.is_object else []
        kind = "object" if top.is_object else "array"
        self._leaf(Leaf(top.path, value, kind, (top.start, min(self.at, len(self.text))), top.key, complete))

    def _tell(self, kind: str, where: int) -> None:
        count, first = self._problems.get(kind, (0, where))
        self._problems[kind] = count + 1, first


def _constant(raw: str) -> tuple[Any, str, str]:
    """Value, kind and note of what stands there without quotes."""
    if raw in CONSTANTS:
        return CONSTANTS[raw]
    found = NUMBER.fullmatch(raw)
    if found is None:
        return raw, "text", "no JSON value"
    if found[1] or found[2]:
        return float(raw), "number", ""
    try:
        return int(raw), "number", ""
    except ValueError:  # more digits than Python reads
        return float(raw), "number", ""


def _decoded(raw: str, cut: bool = False) -> tuple[str, list[str]]:
    """A string without its escapes, and what is wrong with them."""
    if "\\" not in raw:
        return raw, []
    notes: dict[str, None] = {}

    def character(found: re.Match[str]) -> str:
        if found[1]:
            return chr(int(found[1], 16))
        if found[2] not in ESCAPED:
            notes[f"unknown escape \\{found[2]}"] = None
        return ESCAPED.get(found[2], found[2])

    text = ESCAPE.sub(character, CUT_ESCAPE.sub("", raw) if cut else raw)
    if any("\ud800" <= each <= "\udfff" for each in text):  # the two halves of one character, or a half alone
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if "\N{REPLACEMENT CHARACTER}" in text:
            notes["half a surrogate pair"] = None
    return text, list(notes)
