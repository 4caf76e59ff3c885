"""A server in place of the model hub, which refuses every request in the hub's own way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

__all__ = ["refusing_hub"]


@contextmanager
def refusing_hub(status: int, code: str) -> Iterator[None]:
    """Send what asks the hub to a server that answers with this status and ``X-Error-Code``."""

    class Refusing(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/{{filename}}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
            patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
            yield
    finally:
        server.shutdown()
        server.server_close()
