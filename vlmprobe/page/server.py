"""Serves a page on this computer until Ctrl-C: its address is told at once, the models open meanwhile."""

from __future__ import annotations

import errno
import secrets
import socket
import webbrowser
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmprobe.errors import VlmprobeError

if TYPE_CHECKING:
    from vlmprobe.page.saved import Saved

__all__ = ["PORT", "Model", "PortError", "serve"]

PORT = 8765
LOCAL = ("127.0.0.1", "localhost", "::1")


class PortError(VlmprobeError, OSError):
    """The port cannot be listened on."""


@dataclass(frozen=True)
class Model:
    """A model of a page."""

    name: str  # for display
    open: Callable[[], Any]  # returns its probe; called once, in another thread
    python: str  # that opens it, for code that the page shows


def serve(
    models: Sequence[Model],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    allow_hosts: Collection[str] = (),
    browser: bool = True,
    told: Callable[[str], None] = print,
    saved: Saved | None = None,
) -> None:
    """Serve the page of one model, or of several side by side, until Ctrl-C.

    Args:
        models: of different names.
        host: address to listen on; anything but this computer's own lets others in who know the page's address.
        port: to listen on; 0 chooses a free one.
        allow_hosts: names under which a proxy reaches the page, beside those of this computer.
        browser: whether to open the page in a browser.
        told: called with the page's address, before the models are opened.
        saved: answers that were saved before, to be looked at.

    Raises:
        PortError: if another program, or another page, listens there.
        VlmprobeError: whatever opening a model raises.
    """
    import uvicorn

    from vlmprobe.page.app import application
    from vlmprobe.page.calls import remembering
    from vlmprobe.page.guard import Guard
    from vlmprobe.page.model_queue import ModelQueue

    listening = _listen(host, port)
    token = secrets.token_urlsafe(16)
    shown = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    address = f"http://{shown}:{listening.getsockname()[1]}/{token}/"

    def failed(error: BaseException) -> None:
        server.should_exit = True

    def opening(model: Model) -> Callable[[], Any]:
        return lambda: remembering(model.open())

    queue = ModelQueue([opening(each) for each in models], failed)
    app = application(queue, {each.name: each.python for each in models}, saved)
    guarded = Guard(app, token, [host, *allow_hosts], loopback=host in LOCAL)
    config = uvicorn.Config(
        guarded, log_level="error", access_log=False, lifespan="off", timeout_graceful_shutdown=1, server_header=False
    )
    server = uvicorn.Server(config)
    told(address)
    if browser:
        webbrowser.open(address)
    queue.start()
    try:
        server.run(sockets=[listening])
    finally:
        queue.close()
        listening.close()
    if queue.error is not None:
        raise queue.error


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise PortError(
                f"Port {port} is in use, perhaps by another page: end that one, or choose another with --port (0 for "
                "any that is free)."
            ) from error
        raise PortError(f"{host}:{port} cannot be listened on: {error}") from error
    listening.set_inheritable(True)
    return listening
