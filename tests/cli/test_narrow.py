"""In 60 columns nothing is wider, and no name of an option, column or figure is cut."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from common import picture
from openai_stream import events, plain
from rich.cells import cell_len
from typer.testing import CliRunner
from wire_server import event_stream

from vlmprobe.cli import app

WIDTH = 60
COMMANDS = typer.main.get_command(app).commands


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(WIDTH))

    def call(*arguments: object, code: int = 0) -> str:
        done = CliRunner().invoke(app, [str(each) for each in arguments], terminal_width=WIDTH)
        assert done.exit_code == code, (done.output, done.exception)
        assert [line for line in done.stdout.splitlines() if cell_len(line.rstrip()) > WIDTH] == []
        return done.stdout

    return call


@pytest.fixture
def scene(tmp_path) -> Path:
    picture().save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_of_a_command(run, command):
    shown = run(command, "--help")
    assert "…" not in shown
    names = [name for each in COMMANDS[command].params for name in (*each.opts, *each.secondary_opts)]
    assert [name for name in names if name.startswith("--") and name not in shown.replace(",", " ").split()] == []
    told = "".join(shown.split())  # lines are broken after hyphens too
    assert all("".join(each.help.split()) in told for each in COMMANDS[command].params)
    assert "{" not in shown.splitlines()[0]


def test_the_help_of_all(run):
    told = " ".join(run("--help").split())
    assert "…" not in told
    assert "..." not in told.replace("[ARGS]...", "")
    assert all(f"{name} " in told for name in COMMANDS)
    assert "--install-completion" in told


def test_an_answer(run, checkpoint, scene):
    given = ("--max-new-tokens", 3, "--prompt", "--logits")
    shown = run("probe", checkpoint("llava"), scene, "What?", *given)
    heads = [line.split() for line in shown.splitlines() if line.lstrip().startswith("token ")]
    assert heads[0] == ["token", "probability", "logprob", "rank", "entropy", "alternatives"]
    assert all(word in shown for word in ("confidence", "perplexity", "least sure", "raw logit", "greatest logits"))
    assert "0.03   < 0.03" in shown  # the legend is on one line


def test_scores(run, checkpoint, scene):
    shown = run("score", checkpoint("llava"), scene, "What?", "-c", "yes", "-c", "a rather long candidate answer")
    assert all(word in shown for word in ("candidate", "among these", "logprob", "per token", "per byte"))
    assert "…" not in shown


def test_an_answer_of_a_kind(run, checkpoint, scene):
    shown = run(
        "ask", checkpoint("llava"), scene, "What?", "-c", "yes", "-c", "a rather long option", "--threshold", 0.9
    )
    assert all(word in shown for word in ("candidate", "among these", "logprob", "at 0.9: "))
    assert "…" not in shown


@pytest.mark.parametrize("columns", ["40", "0", "7"])
def test_a_very_narrow_or_unknown_width_keeps_names_and_probabilities(columns, checkpoint, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)

    def shown(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(each) for each in arguments])
        assert done.exit_code == 0, (done.output, done.exception)
        assert max(cell_len(line.rstrip()) for line in done.stdout.splitlines()) <= max(int(columns) or 80, 40)
        return done.stdout

    scores = shown("score", checkpoint("llava"), "none", "What?", "-c", "yes", "-c", "no")
    for candidate in ("yes", "no"):
        assert any(line.startswith(f"{candidate} ") and "%" in line for line in scores.splitlines())
    assert "logprob" in scores
    told = shown("probe", checkpoint("llava"), "none", "What?").split()
    assert {"logprob", "rank", "entropy"} <= set(told)
    assert "chameleon" in shown("models").split()


def test_models(run):
    shown = run("models")
    assert "…" not in shown
    assert "query_transformer" in shown.split()
    assert "image needed" in " ".join(shown.split())


def test_a_comparison(run, tmp_path, scene):
    question = "Which of the two digits is on the left of this picture?"
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"question": question, "image": str(scene)}) + "\n")
    shown = run("compare", "demo", "demo", requests)
    told = " ".join(shown.split())
    assert "…" not in shown
    assert "request tokens largest how answers" in told
    assert all(
        f"{name}  " in shown
        for name in ("largest difference", "equal answers", "likeliest token the same", "tokens compared")
    )


def test_a_server(run):
    with plain(event_stream(events())) as server:
        shown = run("doctor", server.url, code=1)
    assert re.search(r"^no +prompt log-probabilities with images *$", shown, re.MULTILINE)


def test_a_check(run, checkpoint):
    shown = run("check", checkpoint("llava"), "--only", "C1,C2")
    assert shown.count("passed") == 3
    assert "…" not in shown
