"""A server in a process group of its own on 127.0.0.1, ended with the block that started it, whatever happens there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

PATIENCE_S = 420  # a start takes half a minute on an idle machine
LEAVE_S = 30  # to end by itself


@contextmanager
def running(
    command: Sequence[Any], *, log: Path, environment: Mapping[str, str], path: str = "/health"
) -> Iterator[str]:
    """The address of a server, once ``path`` answers; ``--host`` and ``--port`` are added to its command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output, stderr=output, env=dict(environment), start_new_session=True, cwd=log.parent,
        )  # fmt: skip
    try:
        end = time.monotonic() + PATIENCE_S
        while not _answers(url + path):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[2]} did not start: {log.read_text(errors='replace')[-3000:]}")
            time.sleep(1)
        yield url
    finally:
        _end(process)


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """The whole group: a server's workers may outlive it."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
        except ProcessLookupError:
            break
        try:
            process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            continue
