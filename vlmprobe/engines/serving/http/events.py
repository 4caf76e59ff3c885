"""Server-sent events of a streamed answer: ``data: {...}`` lines until ``data: [DONE]``."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator

__all__ = ["NoEventsError", "read_events"]

END = b"[DONE]"


class NoEventsError(Exception):
    """The body is not an event stream, or incomplete; the message follows the server's address."""


async def read_events(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The data of each event. Every supported engine writes an event on one line.

    Args:
        chunks: of the body, as they come; bounded by the caller.

    Raises:
        NoEventsError: if the body is something else, or ends before ``[DONE]``.
    """
    begun: list[bytes] = []  # of the line that is not complete yet
    async for chunk in chunks:
        begun.append(chunk)
        if b"\n" not in chunk:
            continue
        *lines, rest = b"".join(begun).split(b"\n")
        begun = [rest]
        for line in lines:
            data = _data(line)
            if data == END:
                return
            if data is not None:
                yield data
    if _data(b"".join(begun)) != END:
        raise NoEventsError("broke off before the end of its stream: see the server's log.")


def _data(line: bytes) -> bytes | None:
    """The data in a line; None for comments, other fields and the empty line after an event."""
    name, _, data = line.strip().partition(b":")
    if name not in (b"", b"data", b"event", b"id", b"retry"):
        said = line.strip()[:80].decode("utf-8", "replace")
        raise NoEventsError(f'sends no event stream but {said!r}: does the server support "stream": true?')
    return data.strip() if name == b"data" else None
