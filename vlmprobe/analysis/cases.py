"""Requests of a comparison, from Python and from JSON Lines files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vlmprobe.errors import MessageError, near
from vlmprobe.inputs.images import is_encoded
from vlmprobe.inputs.messages import Prompt
from vlmprobe.inputs.prompt_format import PROMPT_OPTIONS, PromptOptions
from vlmprobe.probe import Request
from vlmprobe.probe.failure import naming, where_of
from vlmprobe.probe.request import Requests, id_of, request_of
from vlmprobe.probe.tables import is_table, rows_of

__all__ = ["Case", "case_of", "cases_of", "read_cases"]

KEYS = ("id", "question", "messages", "image", "images", "candidates", "options", *PROMPT_OPTIONS)
LINES = 'A file of requests holds one JSON object per line, such as {"question": "What is it?", "image": "cat.png"}.'
REMOTE = ("http://", "https://", "data:")
LINE_BYTES = 64 * 2**20  # a longer line is rejected without being read to its end


@dataclass(frozen=True)
class Case:
    """One request of a comparison."""

    question: Prompt
    image: Any = None
    id: Any = None
    candidates: tuple[str, ...] = ()  # if given, scored instead of generating
    options: Mapping[str, Any] = field(default_factory=dict)  # generation options of this request alone
    carry: Mapping[str, Any] = field(default_factory=dict)  # further columns, if it comes from a table
    prompt_options: PromptOptions = field(default_factory=PromptOptions)  # how its prompt is written
    row: int = field(default=0, compare=False)  # place among the requests, from 0


def case_of(raw: Any, *, folder: Path | None = None, where: str = "the request") -> Case:
    """Parses a case from user input.

    Args:
        raw: a :class:`Case`, a :class:`~vlmprobe.Request`, a question, or a mapping with ``question`` (or ``messages``)
            and, optionally, ``image`` or ``images``, ``id``, ``candidates`` and ``options``.
        folder: base of relative image paths.
        where: the request's name in messages.

    Raises:
        MessageError: for anything else.
    """
    if isinstance(raw, Case):
        return raw
    if isinstance(raw, Request):
        return Case(raw.question, raw.image, raw.id, raw.candidates or (), {}, raw.carry, raw.prompt_options)
    if isinstance(raw, str):
        return Case(raw)
    if not isinstance(raw, Mapping):
        raise MessageError(f"{where} is {type(raw).__name__}; a request is an object with a question")
    for name in raw:
        if name not in KEYS:
            raise MessageError(f"{where} has {name!r}; a request may have {', '.join(KEYS)}.{near(str(name), KEYS)}")
    if ("question" in raw) == ("messages" in raw):
        raise MessageError(f"{where} must have either 'question' or 'messages'")
    if "image" in raw and "images" in raw:
        raise MessageError(f"{where} has 'image' and 'images': put all its images into one of them")
    images = raw.get("images", raw.get("image"))
    listed = list(images) if isinstance(images, (list, tuple)) else [] if images is None else [images]
    candidates, options = raw.get("candidates") or (), raw.get("options") or {}
    if isinstance(candidates, str) or not isinstance(candidates, Sequence):
        raise MessageError(f"{where}: 'candidates' must be a list of strings, such as ['yes', 'no']")
    if not isinstance(options, Mapping):
        raise MessageError(f"{where}: 'options' must be an object, such as {{'max_new_tokens': 32}}")
    if candidates and options:
        raise MessageError(f"{where}: candidates are scored and nothing is generated, so leave 'options' out")
    found = [_placed(each, folder) for each in listed]
    question = raw["question"] if "question" in raw else raw["messages"]
    written: Any = {name: raw[name] for name in PROMPT_OPTIONS if name in raw}
    return Case(question, found or None, raw.get("id"), tuple(candidates), dict(options), prompt_options=written)


def cases_of(requests: Requests, caller: str) -> tuple[Iterator[Case], int | None]:
    """The cases of a list, an iterator or a table, each with its row, and how many there are, if known.

    Args:
        requests: cases, requests as for :meth:`Probe.generate_many`, or mappings as for :func:`case_of`, whose unknown
            keys are errors; further columns of a table are carried.
        caller: name of the function, for error messages.

    Raises:
        MessageError: for a malformed one, which it names.
    """
    rows, total = rows_of(requests, caller)
    table = is_table(requests)
    return (_numbered(row, raw, table) for row, raw in enumerate(rows)), total


def _numbered(row: int, raw: Any, table: bool) -> Case:
    if table or isinstance(raw, (list, tuple)):
        with naming(row, id_of(raw)):
            if table and "options" in raw:
                raise MessageError("a column 'options' is not read from tables: rename it, or pass rows as mappings")
            raw = request_of(raw)
    return replace(case_of(raw, where=where_of(row, id_of(raw))), row=row)


def read_cases(path: str | Path) -> Iterator[Case]:
    """The requests of a file, one JSON object per line; relative image paths start from the file's folder.

    Raises:
        MessageError: for a file that cannot be read, or an invalid line, which it names.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES), ""), 1):
                where = f"{path}, line {number}"
                if len(line) >= LINE_BYTES:
                    raise MessageError(f"{where} is longer than {LINE_BYTES // 2**20} MB")
                if not line.strip():
                    continue
                try:
                    raw = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise MessageError(f"{where} is not JSON: {error}. {LINES}") from error
                if not isinstance(raw, Mapping):
                    raise MessageError(f"{where} is not a JSON object with a question. {LINES}")
                yield case_of(raw, folder=path.parent, where=where)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise MessageError(f"{path} cannot be read: {reason}. {LINES}") from error


def _placed(image: Any, folder: Path | None) -> Any:
    if folder is not None and is_encoded(image) and image.get("path") is not None:
        return {**image, "path": _placed(image["path"], folder)}
    if folder is None or not isinstance(image, str) or image.startswith(REMOTE):
        return image
    return str(folder / Path(image).expanduser())
