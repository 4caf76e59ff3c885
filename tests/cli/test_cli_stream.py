"""``vlmprobe probe --stream``: what is printed, when, and what Ctrl-C leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec

import pytest
from analysis_cases import random_table
from common import picture
from typer.testing import CliRunner

import vlmprobe
from vlmprobe.cli import app
from vlmprobe.cli.streaming import follow
from vlmprobe.errors import ResultError

QUESTION = "What animal is this?"


@pytest.fixture
def scene(tmp_path) -> str:
    path = tmp_path / "scene.png"
    picture().save(path)
    return str(path)


def test_elsewhere_than_in_a_terminal_it_is_the_plain_answer(checkpoint, probe_of, scene, tmp_path):
    page, saved = tmp_path / "report.html", tmp_path / "answer"
    asked = ["probe", str(checkpoint("llava")), scene, QUESTION, "--stream", "--max-new-tokens", "6"]
    done = CliRunner().invoke(app, [*asked, "--html", str(page), "--save", str(saved)])
    assert done.exit_code == 0, done.output
    expected = probe_of("llava").generate(QUESTION, scene, max_new_tokens=6)
    assert done.stdout == expected.text + "\n"
    result = vlmprobe.load_result(saved)
    assert result.output.ids.tolist() == expected.output.ids.tolist()
    assert result.meta["question"] == QUESTION
    assert "<html" in page.read_text(encoding="utf-8")


def test_not_together_with_json(checkpoint, scene):
    done = CliRunner().invoke(app, ["probe", "no-such-model", scene, QUESTION, "--stream", "--json"])
    assert done.exit_code == 2
    assert "--json" in done.output


class Tokens:
    """A stream of given rows that looks at what has been printed before it gives the next one."""

    def __init__(self, table, printed=None, interrupt_at=None):
        self.table, self.printed, self.interrupt_at = table, printed, interrupt_at
        self.place, self.text, self.closed = 0, "", False

    def __iter__(self):
        return self

    def __next__(self):
        if self.printed is not None:
            self.text += self.printed()
            assert self.text == "".join(self.table.tokens[: self.place]), "a token was not printed when it came"
        if self.place == self.interrupt_at:
            raise KeyboardInterrupt
        if self.place == len(self.table):
            raise StopIteration
        self.place += 1
        return self.table[self.place - 1 : self.place]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    @property
    def result(self):
        return f"result of {self.place}"


def test_each_token_is_printed_when_it_comes(capsys):
    stream = Tokens(random_table(0, 6), lambda: capsys.readouterr().out)
    assert follow(stream) == ("result of 6", False)
    assert capsys.readouterr().out == "\n"
    assert stream.closed


def test_an_interrupt_keeps_what_was_said(capsys):
    stream = Tokens(random_table(0, 6), lambda: capsys.readouterr().out, interrupt_at=2)
    assert follow(stream) == ("result of 2", True)
    assert stream.closed
    nothing = Tokens(random_table(0, 6), interrupt_at=0)
    with pytest.raises(KeyboardInterrupt):
        follow(nothing)


def test_a_model_cannot_steer_the_terminal(capsys):
    follow(Tokens(random_table(0, 3, tokens=["\x1b[31m", " a\r", "\x07"])))
    assert capsys.readouterr().out == "␛[31m a␍␇\n"


@pytest.mark.skipif(find_spec("pty") is None, reason="needs a pseudo-terminal")
@pytest.mark.parametrize("interrupted", [False, True])
def test_in_a_terminal(checkpoint, scene, tmp_path, interrupted):
    import pty

    ours, theirs = pty.openpty()
    saved = tmp_path / "answer"
    count = 1_000_000 if interrupted else 8
    length = ("--max-new-tokens", str(count), "-o", f"min_new_tokens={count}", "--save", str(saved))
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmprobe", "probe", str(checkpoint("llava")), scene, QUESTION, "--stream", *length],
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", "COLUMNS": "90"},
    )
    os.close(theirs)
    limit = threading.Timer(120, process.kill)  # reading what it shows would wait for ever
    limit.start()
    shown = b""
    try:
        if interrupted:
            while b"Answering" not in shown or len(shown.split(b"Answering")[-1]) < 400:
                shown += os.read(ours, 4096)
            process.send_signal(signal.SIGINT)
        try:
            while more := os.read(ours, 4096):
                shown += more
        except OSError:
            pass  # the terminal is closed
        assert process.wait(timeout=900) == (130 if interrupted else 0)
    finally:
        limit.cancel()
        if process.poll() is None:
            process.kill()
        os.close(ours)
    text = shown.decode("utf-8", errors="replace")
    assert "Traceback" not in text
    assert ("Interrupted." in text) == interrupted
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is visible again
    assert "\x1b[4" in text or ";4;" in text  # unsure tokens are underlined, for eyes and terminals without colour
    assert "probability of a token" in text  # the table and its legend follow
    result = vlmprobe.load_result(saved)
    assert len(result.output) == 8 or interrupted
    assert 0 < len(result.output) < 1_000_000
    assert (result.finish_reason == "closed") == interrupted


def test_a_stream_without_a_token_has_no_result(probe_of):
    """What :func:`follow` relies on: closed before it began, a stream has nothing to show."""
    stream = probe_of("llava").stream(QUESTION, picture())
    stream.close()
    with pytest.raises(ResultError):
        _ = stream.result
