"""The exit codes of docs/reference/cli.md, output files that replace nothing, and errors that name their file."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from common import DOCS, picture
from refusing_hub import refusing_hub
from safetensors import SafetensorError
from typer.testing import CliRunner

import vlmprobe.demo
from vlmprobe.cli import app, ask, terminal

ASK = ("none", "What is it?", "--max-new-tokens", "1")
PAGE = "<!DOCTYPE html>\n<html><title>earlier</title></html>"


CONFIGS = {  # folder -> its config.json, and nothing else
    "text-only": '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}',
    "encoder": '{"model_type": "clip", "architectures": ["CLIPModel"]}',
    "own-code": '{"model_type": "brand_new_vl", "auto_map": {"AutoModel": "modeling.X"}}',
    "unheard": '{"model_type": "unheard_of", "architectures": ["UnheardOf"]}',
    "broken": '{"model_type": ',
    "headless": '{"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}',  # without weights
}


@pytest.fixture(scope="session")
def tiny(checkpoint) -> str:
    return str(checkpoint("llava"))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A working folder with the files that the cases name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    picture().save("scene.png")
    Path("notes.txt").write_text("not an image")
    Path("page.html").write_text(PAGE)
    Path("notes.html").write_text("my own notes")
    Path("lines.jsonl").write_text('{"question": "What?"}\n')
    Path("bad.jsonl").write_text("not json\n")
    Path("lost.jsonl").write_text('{"question": "What?", "image": "gone.png"}\n')
    Path("latin.txt").write_bytes(b"caf\xe9\n")
    Path("folder").mkdir()
    Path("folder", "inside.txt").write_text("something")
    Path("bare-folder").mkdir()
    for folder, text in CONFIGS.items():
        Path(folder).mkdir()
        Path(folder, "config.json").write_text(text)
    return tmp_path


def run(*arguments: object):
    return CliRunner().invoke(app, [str(each) for each in arguments])


def told(done) -> str:
    """What was written to standard error, without frames and line breaks."""
    return " ".join(re.sub("[─-╿]", " ", done.stderr).split())


# -- exit codes ----------------------------------------------------------------------------------------


def test_the_page_has_the_codes():
    rows = re.findall(r"^\| (\d+) \|", (DOCS / "reference" / "cli.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == ["0", str(terminal.FAILED), str(terminal.WRONG_USAGE), "3", str(terminal.INTERRUPTED)]
    assert f"| {ask.NO}, {ask.UNSURE} |" in (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")


WRONG = [  # command line, what is told
    (("page", "demo", "--no-browser", "--port", "70000"), "65535"),
    (("page", "./gone", "--no-browser"), "./gone"),
    (("probe", "demo", "gone.png", "Q"), "gone.png"),
    (("probe", "demo", "notes.txt", "Q"), "notes.txt"),
    (("probe", "demo", "folder", "Q"), "is a folder"),
    (("probe", "demo", "scene.png", "Q", "-i", "gone.png"), "gone.png"),
    (("probe", "demo", "scene.png", ""), "empty"),
    (("probe", "./gone", "none", "Q"), "./gone"),
    (("probe", "gone/deep/model", "none", "Q"), "gone/deep/model"),
    (("probe", "demo", "none", "Q", "--adapter", "nativ"), "Did you mean native"),
    (("probe", "demo", "none", "Q", "--device", "toaster"), "toaster"),
    (("probe", "demo", "none", "Q", "--dtype", "int8"), "int8"),
    (("probe", "demo", "none", "Q", "--served-model", "m"), "not the URL of a server"),
    (("probe", "http://localhost:1", "none", "Q", "--engine", "vlm"), "vllm"),
    (("probe", "demo", "none", "Q", "--temperature", "warm"), "--temperature"),
    (("probe", "demo", "none", "Q", "--temperature", "-1"), "--temperature"),
    (("probe", "demo", "none", "Q", "-o", "top_p=7"), "top_p"),
    (("probe", "demo", "none", "Q", "-o", "do_sample=false", "--temperature", "1"), "contradicts"),
    (("probe", "demo", "none", "Q", "-o", "do_sample=true", "--temperature", "0"), "contradicts"),
    (("score", "demo", "none", "Q", "--candidates-file", "gone.txt"), "gone.txt"),
    (("score", "demo", "none", "Q", "--candidates-file", "latin.txt"), "latin.txt"),
    (("score", "demo", "none", "Q", "--candidates-file", "folder"), "folder"),
    (("score", "demo", "gone.png", "Q", "-c", "yes"), "gone.png"),
    (("ask", "demo", "gone.png", "Q"), "gone.png"),
    (("ask", "demo", "scene.png"), 'vlmprobe ask demo scene.png "What is in the picture?"'),
    (("ask", "demo", "none", "Q", "yes", "no"), "after a -c"),
    (("ask", "demo", "none", "Q", "-c", "red"), "give several"),
    (("ask", "demo", "none", "Q", "-c", "red", "-c", "red"), "repeats"),
    (("ask", "demo", "none", "Q", "-c", "red", "-c", ""), "empty"),
    (("ask", "demo", "none", "Q", "-l", "3", "-l", "1", "-l", "2"), "in order"),
    (("ask", "demo", "none", "Q", "-l", "1", "-l", "2", "-c", "red", "-c", "blue"), "either --candidate or --level"),
    (("ask", "demo", "none", "Q", "-l", "1", "-l", "2", "--none-of-these"), "--none-of-these"),
    (("ask", "demo", "none", "Q", "--letters"), "--letters"),
    (("ask", "demo", "none", "Q", "-c", "red", "-c", "blue", "--rotate", "all"), "add --letters"),
    (("ask", "demo", "none", "Q", "-c", "red", "-c", "blue", "--letters", "--rotate", "always"), "'close' or 'all'"),
    (("ask", "demo", "none", "Q", "--threshold", "90"), "--threshold"),
    (("ask", "demo", "none", "Q", "--think", "0"), "--no-think is none"),
    (("ask", "demo", "none", "Q", "--think", "5", "--no-think"), "not both"),
    (("ask", "demo", "none", "Q", "--think-end", "</think>"), "pass think=256"),
    (("ask", "demo", "none", "Q", "--threshold", "0"), "--threshold"),
    (("check", "./gone"), "./gone"),
    (("check", "demo", "--only", "C999"), "C999"),
    (("check", "demo", "--expect", "C1"), "ID=REASON"),
    (("check", "http://localhost:1"), "doctor"),
    (("compare", "demo", "demo", "gone.jsonl"), "gone.jsonl"),
    (("compare", "demo", "demo", "bad.jsonl"), "bad.jsonl, line 1"),
    (("compare", "demo", "demo", "lost.jsonl"), "gone.png"),
    (("compare", "demo", "./gone", "lines.jsonl"), "./gone"),
    (("run", "demo", "gone.jsonl", "--out", "answers"), "gone.jsonl"),
    (("run", "demo", "lines.jsonl"), "--out"),
    (("show",), "DIR"),
    (("report", "answers"), "--out"),
    (("doctor", "http://localhost:1", "--engine", "vlm"), "vllm"),
    (("new-adapter", "Bad Name"), "Bad Name"),
    (("new-adapter", "mllama"), "mllama"),
    (("new-adapter", "mine", "--folder", "folder"), "folder"),
    (("nonsense",), "nonsense"),
    (("prob",), "Did you mean"),
    (("probe", "demo", "scene.png", "What", "is", "it"), "in quotes"),
    (("score", "demo", "scene.png", "Q", "yes", "no"), "after a -c"),
    (("probe", "demo", "scene.png"), 'vlmprobe probe demo scene.png "What is in the picture?"'),
    (("probe", "demo", "What is it?"), 'vlmprobe probe demo none "What is it?"'),
    (("doctor", "demo"), "vlmprobe check demo"),
    (("compare", "demo", "demo", "latin.txt"), "one JSON object per line"),
    (("models", "demo"), "demo"),
    (("demo", "scene.png"), "scene.png"),
]
WRONG_MODELS = [  # MODEL, what is told
    ("Demo", "Did you mean demo?"),
    ("demos", "Did you mean demo?"),
    ("./bare-folder", "has no config.json"),
    ("foldr", "Did you mean folder?"),
    ("./bare-foldr", "Did you mean ./bare-folder"),
    ("notes.txt", "is a file"),
    ("broken", "cannot be read as JSON"),
    ("text-only", "text-only model"),
    ("encoder", "an encoder without a language head"),
    ("own-code", "Python code of its own"),
    ("unheard", "No adapter handles"),
    ("gpt2", "text-only model"),
    ("t5-small", "text-only model"),
]
WRONG_CHOICES = [  # options, what is told
    (("--device", "gpu"), "Did you mean"),
    (("--device", "cuad"), "Did you mean cuda?"),
    (("--device", "GPU:1"), ":1?"),
    (("--device", "0"), ":0?"),
    (("--dtype", "int8"), "float32, bfloat16, float16"),
    (("--dtype", "flaot16"), "Did you mean float16"),
    (("--adapter", "nativ"), "Did you mean native"),
]
# Every command that takes a model, with a placeholder for it.
TAKING_A_MODEL = [
    ("probe", "MODEL", "none", "Q"),
    ("ask", "MODEL", "none", "Q"),
    ("score", "MODEL", "none", "Q", "-c", "yes"),
    ("check", "MODEL"),
    ("compare", "MODEL", "demo", "lines.jsonl"),
    ("run", "MODEL", "lines.jsonl", "--out", "answers"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[" ".join(each) for each, _ in WRONG])
def test_wrong_usage_is_two(arguments, says):
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert says in told(done)
    assert "run again with --debug" not in told(done)


@pytest.mark.parametrize(("model", "says"), WRONG_MODELS, ids=[model for model, _ in WRONG_MODELS])
def test_a_wrong_model_is_wrong_usage_of_every_command(model, says):
    for command in TAKING_A_MODEL:
        done = run(*(model if each == "MODEL" else each for each in command))
        assert done.exit_code == 2, (command, done.output)
        assert says in told(done)
        assert done.stdout == ""


@pytest.mark.parametrize(("chosen", "says"), WRONG_CHOICES, ids=[" ".join(chosen) for chosen, _ in WRONG_CHOICES])
def test_a_wrong_choice_is_wrong_usage_of_every_command(chosen, says):
    for command in TAKING_A_MODEL:
        option, value = chosen
        side = "-a" if command[0] == "compare" and option != "--device" else ""
        done = run(*("demo" if each == "MODEL" else each for each in command), f"{option}{side}", value)
        assert done.exit_code == 2, (command, done.output)
        assert says in told(done)


@pytest.mark.parametrize(
    ("further", "code", "last"),
    [
        (("Is there a nine?",), 0, ""),
        (("Is there a seven?",), 0, ""),
        (("Is there a nine?", "--exit-code"), 0, ""),
        (("Is there a seven?", "--exit-code"), 10, ""),
        (("Is there a seven?", "--exit-code", "--threshold", "0.9"), 10, "at 0.9: no"),
        (("Is there a seven?", "--exit-code", "--threshold", "1"), 11, "at 1: unsure"),
        (("Which digit is on the left?", "-c", "no", "-c", "nine", "--exit-code"), 0, ""),
        (
            ("Which digit is on the left?", "-c", "no", "-c", "nine", "--exit-code", "--threshold", "1"),
            11,
            "at 1: unsure",
        ),
    ],
)
def test_the_exit_code_is_the_answer_on_request(further, code, last):
    done = run("ask", "demo", vlmprobe.demo.sample_images()[0], *further)
    assert done.exit_code == code, done.output
    assert done.stderr == ""
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    assert ("at " in lines[-1]) == bool(last)
    assert not last or lines[-1] == last


def test_every_command_is_tried_in_a_wrong_way():
    tried = {arguments[0] for arguments, _ in WRONG}
    assert set(typer.main.get_command(app).commands) <= tried


@pytest.mark.parametrize("dtype", ["fp16", "half", "FP16", "torch.float16"])
def test_short_names_of_dtypes(tiny, dtype):
    done = run("probe", tiny, *ASK, "--dtype", dtype, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["meta"]["dtype"] == "float16"


@pytest.mark.parametrize(
    ("status", "code", "exit_code"), [(404, "RepoNotFound", 2), (404, "RevisionNotFound", 2), (403, "GatedRepo", 1)]
)
def test_what_the_hub_refuses(status, code, exit_code):
    with refusing_hub(status, code):
        done = run("probe", "some-org/some-model", *ASK)
    assert done.exit_code == exit_code, done.output
    assert "some-org/some-model" in told(done)


def test_a_hub_that_cannot_be_reached_is_a_failure(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = run("probe", "some-org/some-model", *ASK)
    assert done.exit_code == 1, done.output
    assert "Check the spelling, the connection" in told(done)


def test_an_old_hub_id_whose_config_is_in_the_cache(monkeypatch, tmp_path):
    commit = "0" * 40
    snapshot = tmp_path / "cache" / "models--gpt2" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes(Path("text-only", "config.json").read_bytes())
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    done = run("probe", "gpt2", *ASK)
    assert done.exit_code == 2, done.output
    assert "gpt2 is a text-only model (model_type 'gpt2', architecture GPT2LMHeadModel)" in told(done)


def test_an_image_of_standard_input_is_named(tiny):
    for piped, says in ((b"", "Standard input (-): it is empty"), (b"text", "Standard input (-) is not an image")):
        done = CliRunner().invoke(app, ["probe", tiny, "-", "What is it?"], input=piped)
        assert done.exit_code == 2, done.output
        assert says in told(done)


def test_streams_that_are_closed():
    command = [sys.executable, "-m", "vlmprobe"]
    for redirected, code in (("models >&-", 0), ("models >&- 2>&-", 0), ("probe demo - Q <&- 2>&-", 2)):
        done = subprocess.run(["bash", "-c", f"{shlex.join(command)} {redirected}"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", ""), redirected


FAILING = [
    (("probe", "headless", *ASK), "headless cannot be loaded"),
    (("probe", "http://127.0.0.1:9", *ASK), "cannot be reached"),
    (("doctor", "http://127.0.0.1:9"), "cannot be reached"),
    (("probe", "demo", "http://127.0.0.1:9/cat.png", "Q"), "http://127.0.0.1:9/cat.png"),
]


@pytest.mark.parametrize(("arguments", "says"), FAILING, ids=[" ".join(each) for each, _ in FAILING])
def test_an_error_is_one(arguments, says, monkeypatch):
    monkeypatch.setattr("vlmprobe.engines.serving.http.client.FIRST_PAUSE_S", 0.01)
    done = run(*arguments)
    assert done.exit_code == 1, done.output
    assert says in told(done)


# -- nothing is replaced by accident -------------------------------------------------------------------

TARGETS = [
    (("probe", "M", "scene.png", "Q", "--html", "scene.png"), "scene.png must end in .html"),
    (("probe", "M", "scene.png", "Q", "--html", "report"), "report must end in .html"),
    (("probe", "M", "scene.png", "Q", "--html", "notes.html"), "notes.html exists and is not an HTML page"),
    (("score", "M", "scene.png", "Q", "-c", "a", "--html", "notes.html"), "notes.html exists and is not an HTML page"),
    (("demo", "--out", "scene.png"), "scene.png must end in .html"),
    (("demo", "--out", "notes.html"), "notes.html exists"),
    (("probe", "M", "none", "Q", "--save", "folder"), "--overwrite"),
    (("probe", "M", "none", "Q", "--save", "kept.safetensors"), "kept.safetensors exists already"),
    (("score", "M", "none", "Q", "-c", "a", "--save", "folder"), "folder exists already"),
    (("check", "M", "--matrix", "scene.png"), "scene.png exists and does not hold lines of JSON"),
    (("check", "M", "--matrix", "folder"), "folder is a folder"),
    (("compare", "M", "N", "lines.jsonl", "--plot", "scene.png"), "--overwrite"),
    (("probe", "M", "none", "Q", "--html", f"{'n' * 300}.html"), "File name too long"),
    (("probe", "M", "none", "Q", "--save", "n" * 300), "File name too long"),
    (("new-adapter", "mine", "--folder", "n" * 300), "File name too long"),
]


@pytest.mark.parametrize(("arguments", "says"), TARGETS, ids=[" ".join(each) for each, _ in TARGETS])
def test_what_is_there_stays(arguments, says):
    Path("kept.safetensors").write_bytes(b"weights")
    before = {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()}
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert says in told(done)
    assert {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()} == before


def test_an_image_under_the_name_of_a_page_stays():
    Path("scene.png").rename("scene.html")
    assert run("probe", "M", "scene.html", "Q", "--html", "scene.html").exit_code == 2


def test_an_earlier_page_is_replaced_and_an_empty_file_filled(tiny):
    Path("empty.htm").touch()
    for page in ("page.html", "empty.htm"):
        assert run("probe", tiny, *ASK, "--html", page).exit_code == 0
        assert "What is it?" in Path(page).read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["answer", "answer.safetensors"])
def test_overwrite_replaces_a_saved_result(tiny, target):
    for question, more, code in (("One?", (), 0), ("Two?", (), 2), ("Three?", ("--overwrite",), 0)):
        done = run("probe", tiny, "none", question, "--max-new-tokens", "1", "--save", target, *more)
        assert done.exit_code == code, done.output
    assert vlmprobe.load_result(target).meta["question"] == "Three?"
    Path("new").mkdir()
    assert run("probe", tiny, *ASK, "--save", "new").exit_code == 0  # an empty folder loses nothing


# -- errors name their file ----------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize(
    "arguments",
    [
        ("probe", "demo", "locked/a.png", "Q"),
        ("probe", "demo", "none", "Q", "--html", "locked/a.html"),
        ("probe", "demo", "none", "Q", "--save", "locked/a"),
        ("score", "demo", "none", "Q", "--candidates-file", "locked/a.txt"),
        ("check", "demo", "--matrix", "locked/a.jsonl"),
        ("compare", "demo", "demo", "locked/a.jsonl"),
    ],
    ids=" ".join,
)
def test_a_folder_that_may_not_be_entered(arguments):
    Path("locked").mkdir(mode=0)
    try:
        done = run(*arguments)
    finally:
        Path("locked").chmod(0o700)
    assert done.exit_code == 2, done.output
    assert "locked" in told(done)
    assert "unexpected" not in told(done)


@pytest.mark.parametrize("arguments", [("--html", "new.html"), ("--save", "saved")], ids=["page", "result"])
def test_a_full_disk(tiny, arguments, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")  # without a name, as a write raises it

    monkeypatch.setattr("pathlib.Path.write_text", full)
    done = run("probe", tiny, *ASK, *arguments)
    assert done.exit_code == 1, done.output
    assert told(done) == f"Error: No space left on device: {arguments[1]}"


def test_an_error_of_the_library_that_saves(tiny, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    done = run("probe", tiny, *ASK, "--save", "saved.safetensors")
    assert done.exit_code == 1
    assert told(done).startswith("Error: saved.safetensors cannot be written: I/O error: No space left on device")


def test_writing_names_the_file_that_an_error_does_not():
    with pytest.raises(OSError, match=r"No space left on device: 'report.html'"), terminal.writing(Path("report.html")):
        raise OSError(28, "No space left on device")


def test_a_record_is_appended_to_lines_of_json(tiny):
    Path("matrix.jsonl").write_text('{"earlier": 1}\n')
    done = run("check", tiny, "--only", "C1", "--matrix", "matrix.jsonl")
    assert done.exit_code == 0, done.output
    first, second = map(json.loads, Path("matrix.jsonl").read_text().splitlines())
    assert first == {"earlier": 1}
    assert second["passed"] is True
