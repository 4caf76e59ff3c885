"""``vlmprobe run``, ``vlmprobe show`` and ``vlmprobe report`` as they are typed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import vlmprobe
from vlmprobe.cli import app
from vlmprobe.demo import sample_images

RUN = [sys.executable, "-m", "vlmprobe", "run", "demo"]


def typed(*arguments: object):
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A data set of ten questions, in the working folder."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for place, path in enumerate(sample_images()):
        (tmp_path / path.name).write_bytes(path.read_bytes())
        rows.append({"id": place, "image": path.name, "question": "Is there a two?", "candidates": ["yes", "no"]})
        rows[-1]["answer"] = "yes" if "two" in path.name else "no"
    rows.append({"id": 9, "image": "gone.png", "question": "Is there a two?", "candidates": ["yes", "no"]})
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_run_and_show(data):
    done = typed("run", "demo", data, "--out", "answers", "--max-new-tokens", 4)
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert f"JSON Lines file {data}, 7 rows. The first row:" in done.stderr
    assert "question (question): Is there a two?" in done.stderr
    assert done.stderr.index("The first row") < done.stderr.index("asked, 1 of them failed")
    assert "vlmprobe show answers" in done.stderr
    again = typed("run", "demo", data, "--out", "answers", "--max-new-tokens", 4)
    assert "7 rows: 0 asked" in again.stderr
    shown = typed("show", "answers")
    assert shown.exit_code == 0, shown.output
    for part in (
        "7, of them 1 failed",
        "accuracy",
        "1.000",
        "ECE",
        "Slowest rows",
        "ImageNotFoundError",
        "row 6 (9)",
    ):
        assert part in shown.stdout
    held = json.loads(typed("show", "answers", "--json").stdout)
    assert held["rows"] == 7
    assert held["judged"] == 6
    assert held["spent"]["decode"] > 0
    assert held["spent"]["write"] >= 0
    assert held["figures"]["accuracy"] == 1
    assert held["run"]["model"] == "demo"
    assert held["reasons"][0]["count"] == 1


def test_another_option_ends_with_one_line(data):
    typed("run", "demo", data, "--out", "answers", "--max-new-tokens", 4)
    done = typed("run", "demo", data, "--out", "answers", "--max-new-tokens", 5)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("Error: answers holds another run: max_new_tokens is 4 there, and 5")


def test_a_folder_of_images(data):
    Path("pictures").mkdir()
    for path in sample_images()[:2]:
        Image.open(path).save(Path("pictures") / path.name)
    done = typed("run", "demo", "pictures", "--question-template", "Is there a two?", "--out", "answers")
    assert done.exit_code == 0, done.output
    assert len(vlmprobe.open_run("answers").table()) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("demo", "gone.jsonl", "--out", "o"), "There is no data set gone.jsonl"),
        (("demo", "dat.jsonl", "--out", "o"), "Did you mean data.jsonl?"),
        (("demo", "data.jsonl"), "--out"),
        (("demo", "data.jsonl", "--out", "o", "--part", "8/8"), "numbered from 0 to 7: 8/8 is none"),
        (("demo", "data.jsonl", "--out", "o", "--question", "ask"), "there is no column 'ask'"),
        (("demo", "data.jsonl", "--out", "o", "--question-template", "{thing}"), "asks for a column 'thing'"),
        (("demo", "data.jsonl", "--out", "o", "--carry", "splt"), "no column 'splt'"),
        (("demo", "data.jsonl", "--out", "o", "--max-failed", "lots"), "5% or 0.05"),
        (("./gone", "data.jsonl", "--out", "o"), "./gone"),
        (("demo", "data.jsonl", "--out", "o", "--option", "top_p=7"), "top_p"),
    ],
)
def test_wrong_usage(arguments, told, data):
    done = typed("run", *arguments)
    assert done.exit_code == 2, done.output
    assert told in " ".join(done.stderr.split())
    assert not Path("o").exists()


def test_nothing_to_ask(data):
    done = typed("run", "demo", data, "--out", "answers", "--limit", 0)
    assert done.exit_code == 0, done.output
    assert "0 rows: 0 asked" in done.stderr
    shown = typed("show", "answers")
    assert shown.exit_code == 0, shown.output
    assert "0, of them 0 failed" in shown.stdout


def test_show_of_no_run(data):
    done = typed("show", "gone")
    assert done.exit_code == 1
    assert "gone holds no run" in done.stderr


def test_without_pyarrow_one_line_says_what_to_install(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = typed("run", "demo", data, "--out", "answers")
    assert done.exit_code == 1
    assert "pyarrow is needed here; install it with: pip install" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_run_that_ends_early_tells_how_to_go_on(data, monkeypatch):
    from vlmprobe.engines.local.engine import LocalEngine

    def broken(self, conversations, options, **_):
        raise RuntimeError("stumbles")

    rows = [{"question": f"What is {n}?"} for n in range(30)]
    data.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(LocalEngine, "generate", broken)
    monkeypatch.setattr(sys, "argv", ["vlmprobe", "run", "demo", "data.jsonl", "--out", "my answers"])
    done = typed("run", "demo", data, "--out", "my answers")
    assert done.exit_code == 1
    assert "10 rows in a row failed, the last one with RuntimeError: stumbles" in done.stderr
    assert "To go on: vlmprobe run demo data.jsonl --out 'my answers'" in done.stderr


def begun(tmp_path: Path, count: int) -> subprocess.Popen:
    """A run of many rows that has written its first shard folder."""
    rows = [{"question": f"What is {n}?"} for n in range(count)]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    process = subprocess.Popen(
        [*RUN, "many.jsonl", "--out", "out", "--max-new-tokens", "30", "-o", "min_new_tokens=30"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    while not (tmp_path / "out" / "rows").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(1.0)
    return process


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    process = begun(tmp_path, 20_000)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Ctrl-C again leaves at once" in errors
    assert "To go on: vlmprobe run demo many.jsonl --out out" in errors
    assert errors.endswith("Interrupted.\n")
    assert 0 < len(vlmprobe.open_run(tmp_path / "out").table()) < 20_000
    assert not list(tmp_path.rglob("*.part"))


def test_sigterm_keeps_what_is_finished(tmp_path):
    process = begun(tmp_path, 20_000)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (-signal.SIGTERM, 143), errors
    assert len(vlmprobe.open_run(tmp_path / "out").table()) > 0


def test_the_commands_of_the_page_on_data_sets(tmp_path, monkeypatch):
    """From a folder of images to a report, as docs/use/datasets.md says it."""
    page = (Path(__file__).parents[2] / "docs" / "use" / "datasets.md").read_text(encoding="utf-8")
    commands = page.partition("## A report")[2].partition("```console\n")[2].partition("```")[0].splitlines()
    assert len(commands) == 5
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for path in sample_images():
        Path("pictures", path.name).write_bytes(path.read_bytes())
    labels = [f"{path.name},{'yes' if 'two' in path.name else 'no'}" for path in sample_images()]
    Path("labels.csv").write_text("id,answer\n" + "\n".join(labels), encoding="utf-8")
    for command in commands:
        prompt, program, *arguments = shlex.split(command)
        assert (prompt, program) == ("$", "vlmprobe")
        done = typed(*arguments)
        assert done.exit_code == 0, done.output
    assert "Wrote" in done.output
    for report in ("report", "compared"):
        told = Path(report, "index.html").read_text(encoding="utf-8")
        assert "<dt>rows</dt><dd>6</dd>" in told
        assert "<dt>right</dt><dd>6</dd>" in told
        assert ("<b>0</b> answers differ" in told) == (report == "compared")
    done = typed("report", "answers", "--out", "pictures")
    assert done.exit_code == 1
    assert "no report made" in done.stderr
