"""Ctrl-C at any moment is one line and exit code 130. The signal is sent by the process itself, at a known point."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from common import picture

IMPORTED = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == POINT:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""
CALLED = """
import importlib, os, signal, sys
from vlmprobe.__main__ import main
owner = importlib.import_module(POINT.rpartition(".")[0])
def interrupted(*_, **__):
    SENT
setattr(owner, POINT.rpartition(".")[2], interrupted)
"""
SENT = "os.kill(os.getpid(), signal.SIGINT)"
SWALLOWED = f"""try:
        {SENT}
        while True: pass
    except KeyboardInterrupt:
        raise RuntimeError("cannot import")"""
RUN = """
sys.argv = ["vlmprobe", *ARGUMENTS]
from vlmprobe.__main__ import main
main()
"""


def interrupted(code: str, point: str, arguments: tuple[str, ...]) -> None:
    """Run the command, which must end in one line."""
    values = f"POINT, ARGUMENTS = {point!r}, {arguments!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", values + code + RUN],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 130, (done.stdout, done.stderr)
    assert done.stderr == "Interrupted.\n"
    assert done.stdout == ""


@pytest.fixture(scope="module")
def ask(tmp_path_factory) -> tuple[str, ...]:
    image = tmp_path_factory.mktemp("asked") / "scene.png"
    picture().save(image)
    return "probe", "demo", str(image), "What is it?", "--max-new-tokens", "2"


@pytest.mark.parametrize(
    "module", ["typer", "vlmprobe.cli.probe", "vlmprobe.inputs.images", "numpy", "torch", "transformers"]
)
def test_while_a_module_is_imported(module, ask):
    interrupted(IMPORTED, module, ask)


@pytest.mark.parametrize("arguments", [("--help",), ("models",), ("probe", "--nonsense")])
def test_before_a_model_is_needed(arguments):
    interrupted(IMPORTED, "rich.table" if arguments == ("models",) else "vlmprobe.cli.app", arguments)


@pytest.mark.parametrize("point", ["vlmprobe.probe.load.load", "vlmprobe.cli.output.write_html"])
def test_while_a_command_runs(point, ask, tmp_path):
    interrupted(CALLED.replace("SENT", SENT), point, (*ask, "--html", str(tmp_path / "report.html")))


def test_while_a_checkpoint_is_downloaded(ask):
    arguments = ("probe", "some/model", *ask[2:])
    interrupted(CALLED.replace("SENT", SENT), "huggingface_hub.hf_hub_download", arguments)


def test_a_library_that_turns_it_into_an_error_of_its_own(ask):
    interrupted(CALLED.replace("SENT", SWALLOWED), "vlmprobe.probe.load.load", ask)


def test_while_an_answer_is_streamed_before_its_first_token(ask):
    interrupted(CALLED.replace("SENT", SENT), "vlmprobe.cli.probe.follow", (*ask, "--stream"))
