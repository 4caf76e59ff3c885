"""Many requests: read lazily, run in batches or concurrently, and returned in request order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

from vlmprobe.engines.base import AnswersConcurrently, Engine, Options, RemembersImages
from vlmprobe.errors import CapabilityError, GenerationOptionError, MessageError, VlmprobeError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.probe.failure import Failure, named, where_of
from vlmprobe.probe.read_ahead import ReadAhead
from vlmprobe.probe.request import Converse, Numbered, Request, carrying, id_of, request_of, with_meta
from vlmprobe.probe.tables import QUESTIONS, rows_of
from vlmprobe.results.result import Result

__all__ = ["Failure", "OnError", "Work", "answered"]

AUTO_BATCH = 16  # largest batch with batch_size="auto"
OnError: TypeAlias = Literal["raise", "keep"]


@dataclass(frozen=True)
class Asked:
    """A request as it was read."""

    row: int
    request: Request
    conversation: Conversation | Exception  # the error if it cannot be asked
    item: Any = None  # what the engine is given


class Work(Protocol):
    """What is asked of many requests: answers, or scores of candidates."""

    method: str  # of the probe, for errors
    bar: tuple[str, str]  # what the progress bar calls requests, and the unit of its throughput
    about_same: int  # times as many requests in a batch that is about the same images throughout

    def item(self, request: Request, conversation: Conversation) -> Any:
        """What the engine is given for a request."""

    def concurrent(self, engine: Engine) -> Callable[..., Generator[Any, None, None]] | None:
        """The engine's own method for many requests in flight; None if it has none."""

    def batch(self, engine: Engine, items: Sequence[Any], options: Options) -> Sequence[Any]:
        """The outcomes of a batch."""

    def finished(self, outcome: Any) -> Any:
        """What is returned of an outcome."""

    def count(self, outcome: Any) -> int:
        """How many of the unit an outcome is."""


class Answers:
    """An answer to each request."""

    method = "generate_many"
    bar = ("requests", "tokens")
    about_same = 1  # each has its own cache while it is answered

    def item(self, request: Request, conversation: Conversation) -> Conversation:
        """The conversation."""
        return conversation

    def concurrent(self, engine: Engine) -> Callable[..., Generator[Any, None, None]] | None:
        """Of an engine that handles concurrent requests itself."""
        return engine.answers if isinstance(engine, AnswersConcurrently) else None

    def batch(self, engine: Engine, items: Sequence[Conversation], options: Options) -> Sequence[Result]:
        """In one run of the model."""
        return engine.generate(items, options)

    def finished(self, outcome: Result) -> Result:
        """As it is."""
        return outcome

    def count(self, outcome: Result) -> int:
        """Of the answer."""
        return len(outcome.output)


def answered(
    engine: Engine,
    meta: Mapping[str, Any],
    converse: Converse,
    requests: Any,
    batch_size: int | Literal["auto"],
    options: Options,
    progress: bool | None,
    on_error: OnError,
    what: str = "request",
    work: Work | None = None,
) -> Iterator[Any]:
    """The results of many requests; see :meth:`Probe.generate_many`. Errors call a request ``what``."""
    from vlmprobe.engines.batching import WINDOW_BYTES

    work = Answers() if work is None else work
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise GenerationOptionError(f"batch_size must be 'auto' or an integer of at least 1, not {batch_size!r}")
    if on_error not in ("raise", "keep"):
        raise GenerationOptionError(f"on_error must be 'raise' or 'keep', not {on_error!r}")
    rows, total = rows_of(requests, work.method)
    engine.check([], options)
    ahead = ReadAhead(rows, WINDOW_BYTES)
    read = _asked(engine, converse, ahead, options, work)
    keeps = on_error == "keep"
    if (concurrent := work.concurrent(engine)) is not None:
        together = None if batch_size == "auto" else batch_size
        run: Iterator[tuple[Asked, Any]] = _in_flight(concurrent, read, options, keeps, together)
    else:
        size = engine.batch_size(AUTO_BATCH if batch_size == "auto" else batch_size, options)
        large = "logits" in options.keep and options.store is None  # too large for a window of results
        grouped = batch_size == "auto" and size > 1 and not large
        run = _in_batches(engine, read, ahead, options, keeps, size, grouped, work)
    return _tracked(meta, run, keeps, progress, total, what, work)


def _tracked(
    meta: Mapping[str, Any],
    run: Iterator[tuple[Asked, Any]],
    keeps: bool,
    progress: bool | None,
    total: int | None,
    what: str,
    work: Work,
) -> Iterator[Any]:
    from vlmprobe.display.progress import tracking

    with tracking(progress, total, *work.bar) as done:
        for asked, outcome in run:
            request, conversation = asked.request, asked.conversation
            if isinstance(conversation, Conversation) and not isinstance(outcome, Exception):
                try:
                    outcome = work.finished(carrying(with_meta(outcome, meta, conversation), request))
                except (CapabilityError, MessageError) as error:
                    outcome = error
            if isinstance(outcome, Exception):
                outcome = named(outcome, where_of(asked.row, request.id, what))
                if not keeps:
                    if what == "request" and isinstance(outcome, VlmprobeError):  # not the model's own
                        outcome.add_note("With on_error='keep' a Failure takes its place, and the others are answered.")
                    raise outcome
                yield Failure(outcome, request.question, request.id, asked.row, {**meta, **request.told})
                done(0)
            else:
                yield outcome
                done(work.count(outcome))


def _asked(engine: Engine, converse: Converse, ahead: ReadAhead, options: Options, work: Work) -> Iterator[Asked]:
    for row, raw in enumerate(ahead):
        with ahead.images():
            asked = _read(engine, converse, row, raw, options, work)
        yield asked


def _read(engine: Engine, converse: Converse, row: int, raw: Any, options: Options, work: Work) -> Asked:
    """A request with its conversation, or with the error that it raised."""
    if isinstance(raw, Numbered):
        row, raw = raw.row, raw.request
    try:
        request = request_of(raw)
    except Exception as error:  # noqa: BLE001 - it keeps its place
        return Asked(row, _unread(raw), error)
    try:
        conversation = converse(request.question, request.image, **request.prompt_options)
        engine.check([conversation], options)
        return Asked(row, request, conversation, work.item(request, conversation))
    except Exception as error:  # noqa: BLE001 - it keeps its place
        return Asked(row, request, error)


def _unread(raw: Any) -> Request:
    """What is known of a request that could not be read."""
    question: Any = None if isinstance(raw, tuple) else raw
    if isinstance(raw, Mapping):
        question = next((raw[name] for name in QUESTIONS if name in raw), None)
    return Request(question, id=id_of(raw))


def _in_flight(
    concurrent: Callable[..., Generator[Any, None, None]],
    read: Iterator[Asked],
    options: Options,
    keeps: bool,
    together: int | None,
) -> Iterator[tuple[Asked, Any]]:
    """Run through an engine that handles concurrent requests itself."""
    waiting: deque[Asked] = deque()

    def items() -> Iterator[Any]:
        for asked in read:
            waiting.append(asked)
            yield asked.conversation if isinstance(asked.conversation, Exception) else asked.item
            if isinstance(asked.conversation, Exception) and not keeps:
                return  # the valid requests before an invalid one are still answered

    outcomes = concurrent(items(), options, keep_errors=True, together=together)
    try:
        for outcome in outcomes:
            yield waiting.popleft(), outcome
    finally:
        outcomes.close()


def _in_batches(
    engine: Engine,
    read: Iterator[Asked],
    ahead: ReadAhead,
    options: Options,
    keeps: bool,
    size: int,
    grouped: bool,
    work: Work,
) -> Iterator[tuple[Asked, Any]]:
    """Run through an engine that takes one batch at a time; batched by length if ``grouped``."""
    from vlmprobe.engines.batching import WINDOW, Batches

    batches = Batches(engine, size, keeps, work.about_same)
    run = batches.grouped if grouped else batches.in_order
    images = _Remembered(engine)
    size = WINDOW if grouped else size
    try:
        for window in _windows(read, ahead, size, keeps):
            right = [each for each in window if isinstance(each.conversation, Conversation)]
            conversations = [each.conversation for each in right if isinstance(each.conversation, Conversation)]
            images.read(conversations, full=len(window) == size)

            def batch(places: Sequence[int], right: Sequence[Asked] = right) -> Sequence[Any]:
                return work.batch(images.engine_for(places), [right[place].item for place in places], options)

            results = run(conversations, batch)
            for asked in window:
                yield asked, next(results) if isinstance(asked.conversation, Conversation) else asked.conversation
    finally:
        ahead.close()


class _Remembered:
    """Remembers what is computed from images from batch to batch, where a batch is about images of another one.

    For each batch it costs to find out whether the model has changed since the last, which a caller may do between two
    results. Within a batch an engine encodes an image once by itself.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._remembering: Engine | None = None
        self._now: list[tuple[str, ...]] = []  # the images of each conversation of the window
        self._around: frozenset[tuple[str, ...]] = frozenset()  # of the window before, and what the next may begin with

    def read(self, conversations: Sequence[Conversation], *, full: bool) -> None:
        """The conversations of the next window; one that is not ``full`` is the last."""
        before = frozenset(self._now)
        self._now = [tuple(part.digest for part in each.image_parts) for each in conversations]
        *_, last, end = ((), (), *self._now)
        self._around = before | {end} if full and end == last else before

    def engine_for(self, places: Sequence[int]) -> Engine:
        """The engine for some of them."""
        if not isinstance(self.engine, RemembersImages) or self.engine.memory is not None:  # a session's remembers all
            return self.engine
        mine = {self._now[place] for place in places} - {()}
        other = {images for place, images in enumerate(self._now) if place not in places}
        if mine.isdisjoint(other | self._around):
            return self.engine
        if self._remembering is None:
            self._remembering = self.engine.remembering(8, exact=False)
        return self._remembering


def _windows(read: Iterator[Asked], ahead: ReadAhead, size: int, keeps: bool) -> Iterator[list[Asked]]:
    """Windows of requests; unless errors are kept, an invalid request ends the last one.

    While the model runs, threads decode the images of the next window, where they are files.
    """
    from vlmprobe.engines.batching import WINDOW_BYTES, picture_bytes

    window: list[Asked] = []
    held = 0
    ahead.fill(size)
    for asked in read:
        window.append(asked)
        if isinstance(asked.conversation, Conversation):
            held += picture_bytes(asked.conversation)
        elif not keeps:
            break
        if len(window) >= size or held > WINDOW_BYTES:
            if ahead.decodes:
                ahead.fill(size)
            yield window
            window, held = [], 0
            ahead.fill(size)
    if window:
        yield window
