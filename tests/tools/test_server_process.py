"""Servers of the tests end with the block that started them, workers included, also after an error in it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import httpx
import pytest
import server_process
from server_process import running

SERVER = """
import http.server, pathlib, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("worker").write_text(str(worker.pid))
host, port = sys.argv[sys.argv.index("--host") + 1], int(sys.argv[sys.argv.index("--port") + 1])
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer((host, port), Health).serve_forever()
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{process}/status").read_text() if Path("/proc/self").exists() else True


def test_a_server_and_its_workers_end_after_an_error(tmp_path):
    def failing():
        with running([sys.executable, "-c", SERVER], log=tmp_path / "log", environment=os.environ) as url:
            assert url.startswith("http://127.0.0.1:")
            assert httpx.get(f"{url}/health").status_code == 200
            failing.url = url
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    worker = int((tmp_path / "worker").read_text())
    end = time.monotonic() + 10
    while alive(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(worker)
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{failing.url}/health", timeout=2)


def test_a_server_that_does_not_start_says_why(tmp_path):
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with (
        pytest.raises(RuntimeError, match="no such model"),
        running(command, log=tmp_path / "log", environment=os.environ),
    ):
        pass


def test_a_server_that_never_answers_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(server_process, "PATIENCE_S", 1)
    script = "import os, pathlib, time; pathlib.Path('own').write_text(str(os.getpid())); time.sleep(600)"
    with (
        pytest.raises(RuntimeError, match="did not start"),
        running([sys.executable, "-c", script], log=tmp_path / "log", environment=os.environ),
    ):
        pass
    assert not alive(int((tmp_path / "own").read_text()))
