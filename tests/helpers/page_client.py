"""The page's application without a network, asked as its browser asks it."""

from __future__ import annotations

import json
import socket
import threading
from types import SimpleNamespace

import uvicorn
from starlette.testclient import TestClient

import vlmprobe
from vlmprobe.demo import sample_images
from vlmprobe.page.app import application
from vlmprobe.page.guard import Guard
from vlmprobe.page.model_queue import ModelQueue

TOKEN = "a-token"
UNSURE = sample_images()[4]
QUESTION = "Describe the picture."


def opened(probe):
    """The queue of a probe, of what opens one, or of several by their names; and the Python that opens each."""
    probes = probe if isinstance(probe, dict) else {"demo": probe}
    openings = [each if callable(each) else lambda each=each: each for each in probes.values()]
    return ModelQueue(openings), {name: f"vlmprobe.load({name!r})" for name in probes}


class Page:
    """One page, asked as its browser does."""

    def __init__(self, probe, saved=None, **guard):
        self.queue, models = opened(probe)
        self.app = Guard(application(self.queue, models, saved), TOKEN, **guard)
        self.client = TestClient(self.app, base_url=f"http://127.0.0.1:8765/{TOKEN}/", raise_server_exceptions=False)

    def __enter__(self):
        self.client.__enter__()
        self.queue.start()
        return self

    def __exit__(self, *_):
        self.queue.close()
        self.client.__exit__(None, None, None)

    def image(self, data: bytes = UNSURE.read_bytes()) -> str:
        reply = self.client.post("api/images", content=data)
        assert reply.status_code == 200, reply.text
        return reply.json()["key"]

    def ask(self, text: str = QUESTION, images=(), **more):
        messages = more.pop("messages", [{"role": "user", "text": text, "images": list(images)}])
        return self.client.post("api/jobs", json={"messages": messages, **more})

    def events(self, reply) -> list[tuple[str, dict]]:
        assert reply.status_code == 202, reply.text
        text = self.client.get(f"api/jobs/{reply.json()['job']}/events").text
        return [
            (block.split("\n")[0].removeprefix("event: "), json.loads(block.split("\n")[1].removeprefix("data: ")))
            for block in text.split("\n\n")
            if block.startswith("event")
        ]

    def result(self, *args, **kwargs) -> dict:
        (last,) = [data for name, data in self.events(self.ask(*args, **kwargs)) if name not in ("token", "progress")]
        return last


class Held:
    """A probe whose calls wait until they are let go."""

    meta: dict = {}  # noqa: RUF012

    def __init__(self):
        self.go, self.begun = threading.Event(), threading.Semaphore(0)
        self.engine = SimpleNamespace(abilities=SimpleNamespace())

    def score(self, messages, candidates):
        self.begun.release()
        assert self.go.wait(60)
        raise vlmprobe.errors.CapabilityError("held")


class Server:
    """A page that a browser can open, served in a thread."""

    def __init__(self, probe, saved=None, **guard):
        self.queue, models = opened(probe)
        self.app = application(self.queue, models, saved)
        guarded = Guard(self.app, TOKEN, **guard)
        self.server = uvicorn.Server(
            uvicorn.Config(guarded, log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        )
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}/{TOKEN}/"
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self):
        self.queue.start()
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.queue.close()
        self.thread.join(10)
