"""``vlmprobe page``: the address at once, one page on a port, errors of the model, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from typer.testing import CliRunner

from vlmprobe.cli import app
from vlmprobe.cli.page import _python

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vlmprobe", "page", *arguments, "--no-browser", "--port", "0"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def test_the_address_comes_before_the_model_and_ctrl_c_ends_it():
    process = started("demo")
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        about = httpx.get(f"{address}api/about").json()
        assert about["models"] == ["demo"]
        assert about["state"] == "loading"  # torch alone takes longer to import than this
        port = address.split(":")[2].split("/")[0]
        second = subprocess.run(
            [sys.executable, "-m", "vlmprobe", "page", "demo", "--no-browser", "--port", port],
            capture_output=True,
            text=True,
            timeout=120,
            env=ENVIRONMENT,
        )
        assert second.returncode == 1
        assert f"Port {port} is in use" in second.stderr
        assert "--port" in second.stderr
        end = time.monotonic() + 120
        while httpx.get(f"{address}api/about").json()["state"] != "ready":
            assert time.monotonic() < end
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "Interrupted.\n"


def test_a_model_that_cannot_be_opened_ends_the_page(tmp_path):
    process = started(str(tmp_path / "nothing"))
    address, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert address == ""
    assert errors.startswith("Error: ")
    assert "nothing" in errors
    assert "Traceback" not in errors


def test_a_page_that_is_open_to_others_says_so(monkeypatch):
    monkeypatch.setattr("vlmprobe.page.server.serve", lambda *_, **__: None)
    done = CliRunner().invoke(app, ["page", "demo", "--no-browser", "--host", "0.0.0.0"])
    assert done.exit_code == 0
    assert "Warning: 0.0.0.0 is open to other computers." in done.stderr
    assert "Warning" not in CliRunner().invoke(app, ["page", "demo", "--no-browser"]).stderr


def test_a_second_model(monkeypatch):
    served = []
    monkeypatch.setattr("vlmprobe.page.server.serve", lambda models, **_: served.extend(models))
    page = ["page", "demo", "--no-browser", "--dtype", "float32", "--adapter", "internvl", "--against"]
    assert CliRunner().invoke(app, [*page, "http://localhost:8000"]).exit_code == 0
    assert CliRunner().invoke(app, [*page, "an-org/other"]).exit_code == 0
    assert [each.python for each in served] == [
        "vlmprobe.load('demo', dtype='float32', adapter='internvl')",
        "vlmprobe.connect('http://localhost:8000')",
        "vlmprobe.load('demo', dtype='float32', adapter='internvl')",
        "vlmprobe.load('an-org/other', dtype='float32')",
    ]
    assert CliRunner().invoke(app, [*page, "demo"]).exit_code == 2


def test_a_host_that_is_not_of_this_computer():
    done = CliRunner().invoke(app, ["page", "demo", "--no-browser", "--host", "203.0.113.7", "--port", "0"])
    assert done.exit_code == 1
    assert "203.0.113.7" in done.stderr


def test_a_port_that_another_program_has():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = CliRunner().invoke(app, ["page", "demo", "--no-browser", "--port", port])
    assert done.exit_code == 1
    assert f"Port {port} is in use" in done.stderr


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("demo", {}, "vlmprobe.load('demo')"),
        ("a b", {"dtype": "float32"}, "vlmprobe.load('a b', dtype='float32')"),
        (
            "http://localhost:8000",
            {"served_model": "m", "processor": "p"},
            "vlmprobe.connect('http://localhost:8000', model='m', processor='p')",
        ),
    ],
)
def test_the_python_that_opens_the_model(model, given, expected):
    assert _python(model, given) == expected
