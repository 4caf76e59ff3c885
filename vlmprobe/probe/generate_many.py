"""Many requests: read lazily, run in batches or concurrently, and returned in request order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from vlmprobe.engines.base import AnswersConcurrently, Engine, Options, RemembersImages
from vlmprobe.errors import GenerationOptionError, MessageError, VlmprobeError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.probe.request import Converse, Request, request_of, with_meta
from vlmprobe.results.result import Result

__all__ = ["Failure", "OnError", "answered"]

AUTO_BATCH = 16  # largest batch with batch_size="auto"
OnError: TypeAlias = Literal["raise", "keep"]
Asked: TypeAlias = "tuple[Request, Conversation | VlmprobeError]"


@dataclass(frozen=True)
class Failure:
    """Takes the place of a failed request's result, with ``on_error="keep"``."""

    error: VlmprobeError
    meta: dict[str, Any] = field(default_factory=dict)  # of the model and the request, such as its id


def answered(
    engine: Engine,
    meta: Mapping[str, Any],
    converse: Converse,
    requests: Any,
    batch_size: int | Literal["auto"],
    options: Options,
    progress: bool | None,
    on_error: OnError,
) -> Iterator[Result | Failure]:
    """The results of many requests; see :meth:`Probe.generate_many`."""
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise GenerationOptionError(f"batch_size must be 'auto' or an integer of at least 1, not {batch_size!r}")
    if on_error not in ("raise", "keep"):
        raise GenerationOptionError(f"on_error must be 'raise' or 'keep', not {on_error!r}")
    if isinstance(requests, (str, Mapping, Request)) or not isinstance(requests, Iterable):
        raise MessageError(
            f"generate_many takes a list of requests, not {type(requests).__name__}; for a single request use generate"
        )
    engine.check([], options)
    read = (_read(engine, converse, raw, options) for raw in requests)
    keeps = on_error == "keep"
    if isinstance(engine, AnswersConcurrently):
        together = None if batch_size == "auto" else batch_size
        run: Iterator[tuple[Asked, Any]] = _in_flight(engine, read, options, keeps, together)
    else:
        size = engine.batch_size(AUTO_BATCH if batch_size == "auto" else batch_size, options)
        large = "logits" in options.keep and options.store is None  # too large for a window of results
        run = _in_batches(engine, read, options, keeps, size, batch_size == "auto" and size > 1 and not large)
    return _tracked(meta, run, keeps, progress, len(requests) if isinstance(requests, Sized) else None)


def _tracked(
    meta: Mapping[str, Any], run: Iterator[tuple[Asked, Any]], keeps: bool, progress: bool | None, total: int | None
) -> Iterator[Result | Failure]:
    from vlmprobe.display.progress import tracking

    with tracking(progress, total) as done:
        for (request, conversation), outcome in run:
            more = {} if request.id is None else {"id": request.id}
            if not isinstance(outcome, VlmprobeError):
                assert isinstance(conversation, Conversation)
                yield with_meta(outcome, meta, conversation, **more)
                done(len(outcome.output))
            elif keeps:
                yield Failure(outcome, {**meta, **more})
                done(0)
            else:
                raise outcome


def _read(engine: Engine, converse: Converse, raw: Any, options: Options) -> Asked:
    """A request with its conversation, or with the error that it raised."""
    request = Request("", id=raw.get("id") if isinstance(raw, Mapping) else getattr(raw, "id", None))
    try:
        request = request_of(raw)
        conversation = converse(request.question, request.image)
        engine.check([conversation], options)
    except VlmprobeError as error:
        return request, error
    return request, conversation


def _in_flight(
    engine: AnswersConcurrently, read: Iterator[Asked], options: Options, keeps: bool, together: int | None
) -> Iterator[tuple[Asked, Any]]:
    """Run through an engine that handles concurrent requests itself."""
    waiting: deque[Asked] = deque()

    def conversations() -> Iterator[Conversation | VlmprobeError]:
        for asked in read:
            waiting.append(asked)
            yield asked[1]
            if isinstance(asked[1], VlmprobeError) and not keeps:
                return  # the valid requests before an invalid one are still answered

    outcomes = engine.answers(conversations(), options, keep_errors=True, together=together)
    try:
        for outcome in outcomes:
            yield waiting.popleft(), outcome
    finally:
        outcomes.close()


def _in_batches(
    engine: Engine, read: Iterator[Asked], options: Options, keeps: bool, size: int, grouped: bool
) -> Iterator[tuple[Asked, Any]]:
    """Run through an engine that takes one batch at a time; batched by length if ``grouped``."""
    from vlmprobe.engines.batching import WINDOW, Batches

    # Image features are cached within one call; a session also caches them across calls.
    if isinstance(engine, RemembersImages) and engine.memory is None:
        engine = engine.remembering(8)
    batches = Batches(engine, options, size, keeps)
    run = batches.grouped if grouped else batches.in_order
    for window in _windows(read, WINDOW if grouped else size, keeps):
        results = run([each for _, each in window if isinstance(each, Conversation)])
        for request, conversation in window:
            good = isinstance(conversation, Conversation)
            yield (request, conversation), next(results) if good else conversation


def _windows(read: Iterator[Asked], size: int, keeps: bool) -> Iterator[list[Asked]]:
    """Windows of requests read ahead; unless errors are kept, an invalid request is the last one read."""
    from vlmprobe.engines.batching import WINDOW_BYTES, picture_bytes

    window: list[Asked] = []
    held = 0
    for asked in read:
        window.append(asked)
        if isinstance(asked[1], Conversation):
            held += picture_bytes(asked[1])
        elif not keeps:
            break
        if len(window) >= size or held > WINDOW_BYTES:
            yield window
            window, held = [], 0
    if window:
        yield window
