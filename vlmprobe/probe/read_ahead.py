"""Requests of an iterator, some of them read before they are asked for, so that their images are decoded meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from vlmprobe.inputs.ahead import Decoder, Job, is_decoded_by_threads, using
from vlmprobe.inputs.messages import IMAGE_KEYS
from vlmprobe.probe.request import Numbered, Request, request_of

__all__ = ["ReadAhead"]


class ReadAhead(Iterator[Any]):
    """The same requests. The iterator is advanced in the caller's thread only; what it raises keeps its place."""

    def __init__(self, rows: Iterable[Any], limit: int) -> None:
        """``limit``: bytes of images that are decoded and not asked for yet."""
        self._rows = iter(rows)
        self._decoder = Decoder(limit)
        self._read: deque[tuple[Any, list[Job]]] = deque()
        self._end: Exception | None = None  # what ended the iterator, if it was read to its end
        self._jobs: list[Job] = []  # of the request given last

    def __next__(self) -> Any:
        if self._read:
            request, self._jobs = self._read.popleft()
            return request
        self._jobs = []
        if self._end is not None:
            raise self._end
        return next(self._rows)

    @property
    def decodes(self) -> bool:
        """Whether threads have decoded images of the request given last, so that it pays to read ahead."""
        return bool(self._jobs)

    def fill(self, count: int) -> None:
        """Read ahead up to ``count`` requests; one if that has no image for threads to decode."""
        while len(self._read) < count and self._end is None and self._pays():
            try:
                request = next(self._rows)
            except Exception as error:  # noqa: BLE001 - StopIteration, or the caller's own
                self._end = error
                return
            try:
                request = request if isinstance(request, Numbered) else request_of(request)
            except Exception:  # noqa: BLE001 - told when it is asked for
                self._read.append((request, []))
                return
            own = request.request if isinstance(request, Numbered) else request
            self._read.append((request, self._decoder.add([*filter(is_decoded_by_threads, _images(own))])))

    def _pays(self) -> bool:
        return not self._read or any(jobs for _, jobs in self._read)

    def images(self) -> AbstractContextManager[None]:
        """While it is open, a conversation for the request given last is built with its decoded images."""
        return using(self._decoder, self._jobs)

    def close(self) -> None:
        """Decode no more."""
        self._decoder.close()
        self._read.clear()


def _images(request: Request) -> Iterator[Any]:
    """The images of a request, in ``image`` and in the parts of its messages; not those of an iterator."""
    yield from request.image if isinstance(request.image, (list, tuple)) else [request.image]
    messages = request.question if isinstance(request.question, (list, tuple)) else ()
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    for content in contents:
        for part in content if isinstance(content, (list, tuple)) else [content]:
            if not isinstance(part, Mapping):
                continue
            yield from (part.get(key) for key in IMAGE_KEYS if key != "base64")
            link = part.get("image_url")
            yield link.get("url") if isinstance(link, Mapping) else link
