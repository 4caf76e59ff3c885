"""The key of a row: what is asked, and nothing about where it stands, what it is called or what is expected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring as _quoted
from typing import Any

from vlmprobe.errors import GenerationOptionError, MessageError
from vlmprobe.inputs.images import is_encoded
from vlmprobe.inputs.messages import IMAGE_KEYS
from vlmprobe.inputs.prompt_format import AS_BY_DEFAULT, PROMPT_OPTIONS
from vlmprobe.probe.request import Request, id_of, request_of
from vlmprobe.probe.tables import listed, plain, scalar
from vlmprobe.runs.columns import Columns, Naming
from vlmprobe.runs.images import Images, Seen

__all__ = ["Reader", "Row", "candidates_text", "hash_of", "plain_text", "seed_of"]

KINDS = 1000  # of rows, by their names, that are remembered
FORMAT = 1  # of keys: another one recomputes everything


@dataclass(slots=True)
class Row:
    """A row of a data set, with its key; its request is made when it is asked."""

    number: int  # place in the data set, from 0
    key: str
    id: Any
    carry: Mapping[str, Any]
    question: str  # for display
    images: tuple[Seen, ...]
    made: Callable[[], Request] = field(repr=False)

    def request(self) -> Request:
        """What the probe is asked.

        Raises:
            VlmprobeError: for a row that cannot be asked.
        """
        return self.made()


class Reader:
    """Makes rows of what a data set holds."""

    def __init__(self, naming: Naming, images: Images, unkept: frozenset[str] = frozenset()) -> None:
        self.naming, self.images, self.unkept = naming, images, unkept
        self._columns: dict[tuple[Any, ...], Columns] = {}
        self._last: tuple[Any, Columns] = (None, Columns({}, {}))  # names of the last row, and its columns

    def columns(self, names: Any) -> Columns:
        """The columns of rows with these names; see :meth:`Naming.columns`."""
        names = tuple(names)
        if names not in self._columns:
            if len(self._columns) >= KINDS:
                self._columns.clear()
            self._columns[names] = self.naming.columns(names, self.unkept)
        return self._columns[names]

    def row(self, number: int, raw: Any) -> Row:
        """A row; what is wrong with it is raised by :meth:`Row.request`."""
        try:
            if isinstance(raw, Exception):
                raise raw
            asked, carry = self._parts(raw)
            id = asked.pop("id", None)
            id = id if type(id) is str else plain(scalar(id), "id")
            key, question, seen = self._plain_key(asked) or self._key(asked)
        except Exception as error:  # noqa: BLE001 - it fails this row
            return self._bad(number, raw, error)
        return Row(number, key, id, carry, question, seen, lambda: self._request(asked))

    def _parts(self, raw: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if isinstance(raw, Mapping):
            known, columns = self._last
            if raw.keys() != known:
                columns = self.columns(raw)
                self._last = (raw.keys(), columns)
            return columns.asked(raw), columns.carries(raw)
        request = request_of(raw)
        asked = {"question": request.question, "image": request.image, "id": request.id}
        asked |= {"candidates": request.candidates, **request.prompt_options}
        return {name: value for name, value in asked.items() if value is not None}, dict(request.carry)

    def _plain_key(self, asked: Mapping[str, Any]) -> tuple[str, str, tuple[Seen, ...]] | None:
        """What :meth:`_key` gives of a text about one image file or none, without its detours; None of other rows."""
        question, image, candidates = asked.get("question"), asked.get("image"), asked.get("candidates")
        if type(question) is not str or len(asked) > 1 + ("image" in asked) + ("candidates" in asked):
            return None
        written = None if candidates is None else candidates_text(candidates)
        if (candidates is not None and written is None) or (image is not None and type(image) is not str):
            return None
        found = () if image is None else (self.images.seen(image),)
        return hash_of(plain_text(question, found[0].hash if found else None, written)), question, found

    def _key(self, asked: Mapping[str, Any]) -> tuple[str, str, tuple[Seen, ...]]:
        found: list[Seen] = []

        def hashed(source: Any) -> str:
            found.append(self.images.seen(source))
            return found[-1].hash

        messages, question = _canonical(asked.get("question"), asked.get("image"), hashed)
        content = [FORMAT, messages, _plain_candidates(asked.get("candidates")), self._options(asked)]
        return _digest(content), question, tuple(found)

    def _options(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        given: Any = {name: listed(asked[name]) for name in PROMPT_OPTIONS if name in asked}
        if not given:
            return {}
        template = given.get("chat_template")
        if self.images.root is not None and isinstance(template, str) and "{" not in template:
            raise GenerationOptionError("chat_template of a row is the text of a template, not the path of a file")
        return AS_BY_DEFAULT.updated(given).told

    def _request(self, asked: Mapping[str, Any]) -> Request:
        options: Any = {name: listed(asked[name]) for name in PROMPT_OPTIONS if name in asked}
        question, image = asked.get("question"), asked.get("image")
        if not isinstance(question, str):
            question = _placed(listed(question), self.images.source)
        if image is not None:
            several = listed(image)
            many = isinstance(several, (list, tuple))
            image = [self.images.source(each) for each in several] if many else self.images.source(image)
        return Request(question, image, candidates=scalar(asked.get("candidates")), **options)

    def _bad(self, number: int, raw: Any, error: Exception) -> Row:
        def request() -> Request:
            raise error

        content = {str(name): value for name, value in raw.items()} if isinstance(raw, Mapping) else [str(error)]
        try:
            id = plain(id_of(raw), "id")
        except MessageError:
            id = None
        return Row(number, _digest([FORMAT, "bad", content]), id, {}, "", (), request)


def plain_text(question: str, image: str | None, candidates: str | None) -> str:
    """The JSON whose hash is the key, of a text about one image or none.

    Args:
        question: the text.
        image: the hash of the image.
        candidates: as :func:`candidates_text` writes them.
    """
    part = "" if image is None else f'["image", {_quoted(image)}], '
    return f'[{FORMAT}, [["user", [{part}["text", {_quoted(question)}]]]], {candidates or "null"}, {{}}]'


def candidates_text(candidates: Any) -> str | None:
    """Candidates as they stand in :func:`plain_text`; None for what is not a list of texts."""
    if type(candidates) is not list or not candidates or {*map(type, candidates)} != {str}:
        return None
    return f"[{', '.join(map(_quoted, candidates))}]"


def seed_of(key: str, sample: int) -> int:
    """The seed of a sample of a row: the same on every machine, and another one for every row and sample."""
    held = hashlib.blake2b(f"{key}-{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(held, "big") >> 2  # below 2**63


def _canonical(question: Any, image: Any, hashed: Callable[[Any], str]) -> tuple[Any, str]:
    """The messages of a question and its images in the one form that equal conversations share, and the question."""
    several = listed(image) if image is not None else []
    images = list(several) if isinstance(several, (list, tuple)) else [image]
    if isinstance(question, str):
        return [["user", [*(["image", hashed(each)] for each in images), ["text", question]]]], question
    rest = iter(images)
    messages = []
    asked = ""
    for raw in listed(question) if question is not None else []:
        role, content = raw.get("role"), raw.get("content")
        several = [content] if isinstance(content, (str, Mapping)) else content or []
        parts = [_part(each, rest, hashed) for each in several]
        further = {key: value for key, value in raw.items() if key not in ("role", "content") and value}
        messages.append([role, parts, *([further] if further else [])])
        if role == "user":
            asked = "".join(part[1] for part in parts if part[0] == "text")
    left = [["image", hashed(each)] for each in rest]
    if left:
        place = next((place for place in reversed(range(len(messages))) if messages[place][0] == "user"), 0)
        messages[place][1][:0] = left
    return messages, asked


def _part(raw: Any, images: Iterator[Any], hashed: Callable[[Any], str]) -> list[Any]:
    if isinstance(raw, str):
        return ["text", raw]
    if raw.get("type") == "text":
        return ["text", raw.get("text")]
    if raw.get("type") == "image_url":
        link = raw.get("image_url")
        return ["image", hashed(link.get("url") if isinstance(link, Mapping) else link)]
    held = [_address(raw[key]) if key == "base64" else raw[key] for key in IMAGE_KEYS if raw.get(key) is not None]
    options = {key: value for key, value in raw.items() if key not in (*IMAGE_KEYS, "type") and value is not None}
    return ["image", hashed(held[0] if held else next(images, None)), *([options] if options else [])]


def _address(held: Any) -> Any:
    """What is under ``base64`` of a part, as a data URL."""
    text = bytes(held).decode("latin-1") if isinstance(held, (bytes, bytearray)) else held
    return text if not isinstance(text, str) or text.startswith("data:") else f"data:image/*;base64,{text}"


def _placed(messages: Any, source: Callable[[Any], Any]) -> Any:
    """Chat messages with the paths of their images from the root."""
    if isinstance(messages, Mapping):
        if messages.get("type") == "image_url":
            link = messages.get("image_url")
            where = {**link, "url": source(link["url"])} if isinstance(link, Mapping) and "url" in link else None
            return {**messages, "image_url": where or source(link)}
        if messages.get("type") == "image":
            held = {key: source(messages[key]) for key in ("image", "path", "url") if messages.get(key) is not None}
            return {**messages, **held}
        return {key: _placed(value, source) if key == "content" else value for key, value in messages.items()}
    if isinstance(messages, (list, tuple)):
        return [_placed(each, source) for each in messages]
    return messages


def _plain_candidates(given: Any) -> Any:
    found = listed(given)
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) and found else found or None


def _digest(content: Any) -> str:
    return hash_of(json.dumps(content, ensure_ascii=False, sort_keys=True, default=_named))


def hash_of(text: str) -> str:
    """The key of what is asked, written as JSON."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _named(value: Any) -> Any:
    """What JSON cannot hold, so that the same cell gives the same text in every process."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return hashlib.blake2b(value, digest_size=16).hexdigest()
    if is_encoded(value) or hasattr(value, "tolist"):
        return value.tolist() if hasattr(value, "tolist") else dict(value)
    return type(value).__name__
