"""Which column of a data set is what: found by name, or named by the caller; and questions written from a template."""

from __future__ import annotations

import json
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmprobe.errors import MessageError, near
from vlmprobe.inputs.prompt_format import PROMPT_OPTIONS
from vlmprobe.probe.tables import IMAGES, QUESTIONS, further_columns, missing, plain, scalar
from vlmprobe.runs.fields import RESERVED

__all__ = ["Columns", "Naming", "template_fields"]

WORDED = (*QUESTIONS, "messages")
LISTED = ("image", "candidates", "question")  # what a text cell may hold as a JSON list


@dataclass(frozen=True)
class Columns:
    """The columns of one kind of rows: the name that a request has for each, and the name that the data set has."""

    of: Mapping[str, str]  # question, image, candidates, id, options of the prompt -> column
    carried: Mapping[str, str]  # name in the records -> column
    left_out: tuple[str, ...] = ()  # columns that hold bytes, and are not carried
    template: str | None = None

    def asked(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of a request that a row has; those of missing cells are left out.

        Raises:
            MessageError: for a template that it cannot fill.
        """
        found = {}
        for name, column in self.of.items():
            cell = row[column]
            if type(cell) is str:
                if cell[:1] == "[" and name in LISTED:
                    cell = _list_in(cell)
            elif missing(cell):
                continue
            found[name] = cell
        if self.template is not None:
            found["question"] = _filled(self.template, row)
        return found

    def carries(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The further columns of a row, as data that a file can hold.

        Raises:
            MessageError: for a cell that is none.
        """
        carried = self.carried.items()
        return {name: cell if type(cell := row[column]) is str else plain(cell, name) for name, column in carried}


@dataclass(frozen=True)
class Naming:
    """What the caller says about columns; None finds them by their names."""

    question: str | None = None
    image: str | None = None
    candidates: str | None = None
    answer: str | None = None
    id: str | None = None
    carry: Sequence[str] | None = None  # all further columns if None
    template: str | None = None

    def __post_init__(self) -> None:
        """Raises MessageError for a template that is none."""
        if self.template is not None:
            template_fields(self.template)
            if self.question is not None:
                raise MessageError("the question comes from a column or from a template: name one of the two")

    def columns(self, names: Collection[Any], unkept: Collection[str] = ()) -> Columns:
        """The columns of rows with these names.

        Args:
            names: of all columns.
            unkept: those that hold bytes, carried only if the caller names them.

        Raises:
            MessageError: for a column that is not there, none of questions, or one that cannot be carried.
        """
        names = list(names)
        given = {"question": self.question, "image": self.image, "candidates": self.candidates, "id": self.id}
        for column in (*given.values(), self.answer, *(self.carry or ())):
            if column is not None and column not in names:
                raise MessageError(f"there is no column {column!r}.{near(column, map(str, names))} {_listing(names)}")
        if self.template is not None:
            for field in template_fields(self.template):
                if field not in names:
                    raise MessageError(
                        f"the template asks for a column {field!r}.{near(field, map(str, names))} {_listing(names)}"
                    )
        of = {name: column for name, column in given.items() if column is not None}
        known = {"image": IMAGES, "candidates": ("candidates",), "id": ("id",)}
        if self.template is None:
            known["question"] = WORDED
        for name, words in known.items():
            found = [each for each in words if each in names]
            if name not in of and len(found) > 1:
                raise MessageError(
                    f"there are columns {' and '.join(map(repr, found))}: name the one of the {name} with --{name} "
                    f"({name}= in Python)"
                )
            if name not in of and found:
                of[name] = found[0]
        if "question" not in of and self.template is None:
            likely = near("question", map(str, names)) or near("prompt", map(str, names))
            raise MessageError(
                f"there is no column 'question', 'prompt' or 'messages'.{likely} Name it with --question COL, or "
                "write the questions with --question-template (question= and question_template= in Python). "
                f"{_listing(names)}"
            )
        of |= {name: name for name in PROMPT_OPTIONS if name in names}
        return replace(self._carrying(names, of, unkept), of=of, template=self.template)

    def _carrying(self, names: list[Any], of: Mapping[str, str], unkept: Collection[str]) -> Columns:
        read = {*of.values(), *(WORDED if self.template or self.question else ()), *(IMAGES if self.image else ())}
        further = [name for name in names if name not in read and name != self.answer]
        left_out = [name for name in further if name in unkept] if self.carry is None else []
        if self.carry is not None:
            further = [name for name in self.carry if name != self.answer]
        carried = {name: name for name in further if name not in left_out}
        if self.answer is not None:
            carried = {**{name: column for name, column in carried.items() if name != "answer"}, "answer": self.answer}
        for name in carried:
            if name in RESERVED:
                raise MessageError(
                    f"column {name!r} has a name that the results have themselves: rename it, or name the columns to "
                    "carry with --carry (carry= in Python)"
                )
        shown = ["image"] if "image" in of else []
        further_columns(["question", *shown, *carried])  # its errors: options of generation, images by another name
        return Columns({}, carried, tuple(left_out))


def template_fields(template: str) -> list[str]:
    """The columns that a template such as ``"Is there a {thing}?"`` names.

    Raises:
        MessageError: for one that is no such text: a format or an attribute of a value cannot be asked for.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise MessageError(f"the question template {template!r} cannot be read: {error}") from error
    for _, field, format, conversion in parsed:
        if field is not None and (not field or format or conversion or set(field) & set(".[]")):
            raise MessageError(
                f"the question template {template!r} has a field {{{field}}} that is no name of a column: write "
                "{name}, and {{ and }} for braces"
            )
    return [field for _, field, _, _ in parsed if field is not None]


def _filled(template: str, row: Mapping[str, Any]) -> str:
    written = []
    for text, field, _, _ in string.Formatter().parse(template):
        written.append(text)
        if field is not None:
            value = scalar(row[field])
            if value is None:
                raise MessageError(f"column {field!r} is empty, and the question template needs it")
            written.append(str(value))
    return "".join(written)


def _list_in(cell: str) -> Any:
    """The list that a text holds, as in CSV, which has no lists; the text if it is none."""
    try:
        held = json.loads(cell)
    except ValueError:
        return cell
    return held if isinstance(held, list) else cell


def _listing(names: Collection[Any]) -> str:
    return f"The columns are {', '.join(repr(str(name)) for name in names) or 'none'}."
