"""The page's routes: the page itself, images that are sent, and jobs of the model. Everything is relative."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from vlmprobe.display.html import image_parts
from vlmprobe.display.html import page as html_page
from vlmprobe.errors import ImageError, MessageError, VlmprobeError
from vlmprobe.page.asked import Asked, read_asked
from vlmprobe.page.calls import abilities, work_of
from vlmprobe.page.memory import GoneError, Images, Results
from vlmprobe.page.model_queue import Busy, Job, ModelQueue, error_document
from vlmprobe.page.panels import PANELS
from vlmprobe.page.python_code import python_of
from vlmprobe.page.saved import ORDERS, Saved, differs
from vlmprobe.results.document import dumps

__all__ = ["application"]

PAGE = 50  # saved answers in one reply
JSON_BYTES = 4 * 1024**2  # of a request that holds no image
SHARED = ("answer.js", "answer.css", "style.css")  # of the display, which reports and widgets use too
STATUS: dict[type[VlmprobeError], int] = {GoneError: 410, Busy: 503}


class Page:
    """The state of one page, and the answers to its requests."""

    def __init__(self, queue: ModelQueue, models: Mapping[str, str], saved: Saved | None = None) -> None:
        self.queue, self.names, self.openings, self.saved = queue, list(models), list(models.values()), saved
        self.images, self.results = Images(), Results()
        self.receiving = asyncio.Semaphore(2)  # each image may take hundreds of megabytes before it is decoded

    async def about(self, request: Request) -> Response:
        """The models, whether they can be asked yet, and what they cannot do."""
        lacks = [abilities(probe) for probe in self.queue.probes]
        told: dict[str, Any] = {"models": self.names, "state": self.queue.state, "queue": self.queue.length}
        told |= {"lacks": lacks, "saved": self.saved is not None}
        if self.queue.error is not None:
            told["error"] = error_document(self.queue.error)
        return _json(told)

    async def add_image(self, request: Request) -> Response:
        """Take one image file."""
        from vlmprobe.inputs.images import DEFAULT_LIMITS, load_image

        async with self.receiving:
            body = await _body(request, DEFAULT_LIMITS.max_bytes, ImageError)
            image = await asyncio.to_thread(load_image, body)
            key = await asyncio.to_thread(self.images.add, image)
        parts = await asyncio.to_thread(image_parts, image)
        return _json({"key": key, "width": image.width, "height": image.height, "shown": parts["uri"]})

    async def samples(self, request: Request) -> Response:
        """The names of the bundled images."""
        from vlmprobe.demo import sample_images

        return _json({"images": [file.name for file in sample_images()]})

    async def sample(self, request: Request) -> Response:
        """One of the bundled images."""
        from vlmprobe.demo import sample_images

        for file in sample_images():
            if file.name == request.path_params["name"]:
                return FileResponse(file)
        return _error(MessageError("there is no such image"), 404)

    async def listed(self, request: Request) -> Response:
        """Some of the saved answers."""
        asked = request.query_params
        order, start = asked.get("order", ORDERS[0]), asked.get("start", "0")
        if self.saved is None or order not in ORDERS or not start.isdecimal() or len(start) > 9:
            return _error(MessageError("there is no such list"), 404)
        found = partial(self.saved.listed, asked.get("find", "")[:1000], order, int(start), PAGE)
        return _json(await asyncio.to_thread(found))

    async def entry(self, request: Request) -> Response:
        """One of the saved answers, and its images."""
        place = request.path_params["place"]
        if self.saved is None or place >= len(self.saved.rows):
            return _error(MessageError("there is no such answer"), 404)
        return _json(await asyncio.to_thread(self._entry, self.saved, place))

    def _entry(self, saved: Saved, place: int) -> dict[str, Any]:
        entry = saved.entry(place)
        names = entry.names or ("",) * len(entry.images)
        shown = [
            {"key": self.images.add(image), "name": name, "shown": image_parts(image)["uri"]}
            for image, name in zip(entry.images, names, strict=True)
        ]
        why = entry.why or differs(self.queue.opened()[0], entry)
        key = self.results.add(entry.result)
        return {"key": key, "document": entry.result.to_dict(), "images": shown, "why": why}

    async def submit(self, request: Request) -> Response:
        """Queue a call of the model."""
        job = self.queue.submit(work_of(self._asked(await _document(request)), self.images, self.results))
        return _json({"job": job.id, "ahead": self.queue.ahead(job)}, 202)

    async def job(self, request: Request) -> Response:
        """Where in the queue a job is."""
        job = self._job(request)
        return _json({"state": job.state, "ahead": self.queue.ahead(job), "loading": self.queue.state == "loading"})

    async def events(self, request: Request) -> Response:
        """What a job tells, as server-sent events. It is stopped when the reader leaves."""
        job = self._job(request)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._events(job), media_type="text/event-stream", headers=headers)

    async def _events(self, job: Job) -> AsyncIterator[bytes]:
        async for event in job.follow():
            yield b":\n\n" if event is None else f"event: {event[0]}\ndata: {dumps(event[1])}\n\n".encode()
        self.queue.drop(job)

    async def stop(self, request: Request) -> Response:
        """Stop a job at its next token; one that nobody reads, such as that of a closed tab, is forgotten."""
        job = self._job(request)
        job.stop()
        if job.state == "waiting" or "leave" in request.query_params:
            self.queue.drop(job)
        return Response(status_code=204)

    async def share(self, request: Request) -> Response:
        """One self-contained HTML file of results that are shown."""
        asked = await _document(request)
        keys = asked.get("keys")
        if not isinstance(keys, list) or not keys or not all(isinstance(key, str) for key in keys):
            raise MessageError("give the keys of at least one answer")
        results = [self.results[key] for key in keys]
        html = await asyncio.to_thread(partial(html_page, results, title=" and ".join(self.names)))
        return Response(html, media_type="text/html; charset=utf-8", headers={"cache-control": "no-store"})

    async def python(self, request: Request) -> Response:
        """Python that asks the same."""
        given = await _document(request)
        names = given.pop("names", None) or {}
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise MessageError("names must be the names of files, by the keys of images")
        asked = self._asked(given)
        return _json({"code": python_of(asked, self.openings[asked.model], names)})

    def _asked(self, document: Any) -> Asked:
        asked = read_asked(document, len(self.names))
        if asked.panel and asked.panel not in PANELS:
            raise MessageError(f"panel must be one of {', '.join(PANELS)}")
        return asked

    def _job(self, request: Request) -> Job:
        job = self.queue.job(request.path_params["id"])
        if job is None:
            raise GoneError("There is no such question any more: ask again.")
        return job


def application(queue: ModelQueue, models: Mapping[str, str], saved: Saved | None = None) -> Starlette:
    """The application of one page.

    Args:
        queue: of the models' calls.
        models: by the name of each model, for display, the Python that opens it, such as ``vlmprobe.load("demo")``.
        saved: answers that were saved before.
    """
    page = Page(queue, models, saved)
    static = files("vlmprobe.page").joinpath("static")
    routes = [
        Route("/", partial(_file, str(static.joinpath("index.html")))),
        Route("/api/about", page.about),
        Route("/api/images", page.add_image, methods=["POST"]),
        Route("/api/samples", page.samples),
        Route("/api/samples/{name}", page.sample),
        Route("/api/saved", page.listed),
        Route("/api/saved/{place:int}", page.entry),
        Route("/api/jobs", page.submit, methods=["POST"]),
        Route("/api/jobs/{id}", page.job),
        Route("/api/jobs/{id}/events", page.events),
        Route("/api/jobs/{id}/stop", page.stop, methods=["POST"]),
        Route("/api/share", page.share, methods=["POST"]),
        Route("/api/python", page.python, methods=["POST"]),
        *(Route(f"/shared/{each}", partial(_file, _shared(each))) for each in SHARED),
        Mount("/static", StaticFiles(directory=str(static))),
    ]
    handlers: dict[Any, Callable[..., Any]] = {VlmprobeError: _failed, Exception: _failed}
    made = Starlette(routes=routes, exception_handlers=handlers)
    made.state.page = page
    return made


def _shared(name: str) -> str:
    return str(files("vlmprobe.display").joinpath("templates", name))


async def _file(path: str, request: Request) -> Response:
    return FileResponse(path, headers={"cache-control": "no-cache"})


async def _failed(request: Request, error: Exception) -> Response:
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), None)
    return _error(error, status or (400 if isinstance(error, VlmprobeError) else 500))


async def _document(request: Request) -> dict[str, Any]:
    body = await _body(request, JSON_BYTES, MessageError)
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MessageError(f"the request is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise MessageError("a request is a JSON object")
    return document


async def _body(request: Request, most: int, kind: type[VlmprobeError]) -> bytes:
    """The body of a request, read no further than its greatest size."""
    held = bytearray()
    try:
        async for part in request.stream():
            held += part
            if len(held) > most:
                raise kind(f"more than {most:,} bytes were sent")
    except ClientDisconnect as error:
        raise kind("the browser left before everything was sent") from error
    return bytes(held)


def _json(document: Any, status: int = 200) -> Response:
    return Response(dumps(document), status, {"cache-control": "no-store"}, "application/json")


def _error(error: Exception, status: int) -> Response:
    return JSONResponse({"error": error_document(error)}, status, {"cache-control": "no-store"})
