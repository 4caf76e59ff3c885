from __future__ import annotations

import json
import math
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from common import DOCS, picture
from typer.testing import CliRunner

import vlmprobe
from vlmprobe.cli import app, arguments, options, output, terminal
from vlmprobe.results import document

COMMANDS = ("demo", "probe", "score", "compare", "doctor", "check", "models", "new-adapter")
QUESTION = "What animal is this?"


@pytest.fixture(scope="session")
def tiny(checkpoint) -> str:
    return str(checkpoint("llava"))


@pytest.fixture
def scene(tmp_path) -> str:
    path = tmp_path / "scene.png"
    picture().save(path)
    return str(path)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: object, code: int = 0, stdin: bytes | None = None):
        result = CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)
        assert result.exit_code == code, (result.output, result.exception)
        return result

    return call


def shell(*arguments: str, **more) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more.pop("env", {})}
    command = [sys.executable, "-m", "vlmprobe", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, timeout=900, **more)


def words(text: str) -> str:
    """What a framed and wrapped message says."""
    return " ".join("".join(" " if "─" <= character <= "╿" else character for character in text).split())


# -- help and versions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_every_command(run, command, flag):
    text = words(run(*command, flag).stdout)
    assert f"Usage: vlmprobe {' '.join(command)}".strip() in text.replace("Usage: root", "Usage: vlmprobe")
    assert "--help" in text


def test_help_names_every_command_and_every_option(run):
    assert all(f" {name} " in words(run("--help").stdout) for name in COMMANDS)
    probe = words(run("probe", "--help").stdout)
    names = (
        "json html save logits max-new-tokens alternatives seed temperature option device dtype adapter revision system"
    )
    for name in (*names.split(), "image", "no-prompt", "debug"):
        assert f"--{name}" in probe, name
    assert "MODEL IMAGE QUESTION" in probe
    assert "none" in probe


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['vlmprobe', 'probe', '--help']\n"
        "from vlmprobe.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'safetensors', 'huggingface_hub'} & set(sys.modules)\n"
        "print('heavy:', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_models_imports_neither_torch_nor_transformers():
    code = (
        "import sys; sys.argv = ['vlmprobe', 'models']\n"
        "from vlmprobe.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print('heavy:', sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize(("typed", "offered"), [("vlmprobe mod", "models"), ("vlmprobe probe --ht", "--html")])
def test_the_shell_completes(typed, offered):
    asked = {"_VLMPROBE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    done = shell(env=asked)
    assert done.stdout.decode().split() == [offered]
    assert done.stderr == b""


def test_the_script_for_completion_is_shown():
    # It is that of the shell that started the command, which is not always what started the tests.
    command = ["bash", "-c", '"$0" -m vlmprobe --show-completion; exit $?', sys.executable]
    done = subprocess.run(command, capture_output=True, timeout=900)
    assert b"_VLMPROBE_COMPLETE=complete_bash" in done.stdout


def test_version(run):
    text = run("--version").stdout
    assert text.startswith(f"vlmprobe {vlmprobe.__version__} (")
    assert "torch" in text


def test_the_page_on_the_command_line_has_not_drifted():
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    written = runpy.run_path(str(DOCS.parent / "tools" / "docs" / "write_cli.py"))["written"]
    assert written(text) == text, "run: python tools/docs/write_cli.py"
    assert all(f"options of {name}," in text for name in COMMANDS)


# -- probe ---------------------------------------------------------------------------------------------


def test_probe_prints_the_answer_and_a_table(run, tiny, scene):
    shown = run("probe", tiny, scene, QUESTION, "--max-new-tokens", "4").stdout
    assert shown.startswith(QUESTION)
    assert all(word in shown for word in ("probability", "entropy", "confidence", "float32"))
    assert "\x1b" not in shown


def test_probe_json_is_what_the_library_returns(run, tiny, scene, probe_of):
    printed = run("probe", tiny, scene, QUESTION, "--max-new-tokens", "4", "--alternatives", "3", "--json")
    assert printed.stdout.count("\n") == 1
    read = json.loads(printed.stdout, parse_constant=pytest.fail)
    expected = probe_of("llava").generate(QUESTION, image=scene, max_new_tokens=4, alternatives=3)
    assert read["text"] == expected.text
    assert read["finish_reason"] == expected.finish_reason
    assert read["confidence"] == pytest.approx(expected.confidence)
    assert read["perplexity"] == pytest.approx(expected.output.perplexity)
    assert read["meta"]["question"] == QUESTION
    assert read["meta"]["images"] == [scene]
    for side in ("prompt", "output"):
        table = getattr(expected, side)
        assert [row["id"] for row in read[side]] == table.ids.tolist()
        assert [row["token"] for row in read[side]] == table.tokens
        assert [row["position"] for row in read[side]] == table.positions.tolist()
        assert [-1 if row["rank"] is None else row["rank"] for row in read[side]] == table.ranks.tolist()
        for name, column in (("logprob", table.logprobs), ("entropy", table.entropy), ("logsumexp", table.logsumexp)):
            values = [math.nan if row[name] is None else row[name] for row in read[side]]
            np.testing.assert_allclose(values, column, atol=1e-5)
        best = [[each["id"] for each in row["alternatives"]] for row in read[side]]
        assert best == [[each for each in row if each >= 0] for row in table.top_ids.tolist()]
    image = next(row for row in read["prompt"] if row["kind"] == "image")
    assert image["logprob"] is None
    assert image["rank"] is None
    assert image["alternatives"] == []
    assert [span["image"] for span in read["image_spans"]] == [0]


def test_every_key_of_the_json_is_documented(run, tiny, scene):
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    asked = json.loads(
        run(
            "probe", tiny, scene, QUESTION, "--max-new-tokens", "2", "--json", "--logits", "--temperature", "0.7"
        ).stdout
    )
    scored = json.loads(run("score", tiny, scene, QUESTION, "-c", "yes", "--json").stdout)
    keys = {*asked, *asked["output"][0], *scored, *scored["candidates"][0], *asked["image_spans"][0]}
    assert {"logits", "score"} <= keys
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_probe_writes_the_page_and_the_result_with_its_logits(run, tiny, scene, tmp_path):
    html, folder = tmp_path / "new" / "report.html", tmp_path / "saved"
    done = run("probe", tiny, scene, QUESTION, "--max-new-tokens", "3", "--html", html, "--save", folder, "--logits")
    assert "raw logit" in done.stdout
    assert f"Saved: {folder}" in done.stderr
    assert f"Report: {html}" in done.stderr
    assert QUESTION in html.read_text(encoding="utf-8")
    read = vlmprobe.load_result(folder)
    assert read.meta["question"] == QUESTION
    rows = read.output.logits
    assert rows.shape[0] == 3
    np.testing.assert_allclose(
        rows[np.arange(3), read.output.ids], read.output.logprobs + read.output.logsumexp, atol=1e-4
    )


def test_logits_in_the_json(run, tiny, scene):
    read = json.loads(run("probe", tiny, scene, QUESTION, "--max-new-tokens", "2", "--json", "--logits").stdout)
    row = read["output"][0]
    assert row["logits"][row["id"]] == pytest.approx(row["logprob"] + row["logsumexp"], abs=1e-4)


def test_one_file_where_the_name_says_so(run, tiny, tmp_path):
    run("probe", tiny, "none", QUESTION, "--max-new-tokens", "1", "--save", tmp_path / "one.safetensors")
    assert len(vlmprobe.load_result(tmp_path / "one.safetensors").output) == 1


def test_without_a_picture_and_without_the_prompt_side(run, tiny):
    arguments = ("probe", tiny, "none", QUESTION, "--max-new-tokens", "2", "--json", "--no-prompt")
    read = json.loads(run(*arguments).stdout)
    assert read["prompt"] is None
    assert read["meta"]["images"] == []


def test_the_prompt_in_the_terminal_on_demand(run, tiny, scene):
    arguments = ("probe", tiny, scene, QUESTION, "--max-new-tokens", "1")
    assert "[image 1]" not in run(*arguments).stdout
    assert "[image 1]" in run(*arguments, "--prompt").stdout


def test_a_picture_from_standard_input(run, tiny, scene):
    arguments = (QUESTION, "--max-new-tokens", "3", "--json")
    piped = json.loads(run("probe", tiny, "-", *arguments, stdin=Path(scene).read_bytes()).stdout)
    named = json.loads(run("probe", tiny, scene, *arguments).stdout)
    assert piped["output"] == named["output"]


def test_further_pictures_and_a_system_message(run, tiny, scene, tmp_path, probe_of):
    other = tmp_path / "other.png"
    picture(2).save(other)
    arguments = (
        "probe",
        tiny,
        scene,
        QUESTION,
        "--image",
        other,
        "--system",
        "Be brief.",
        "--max-new-tokens",
        "2",
        "--json",
    )
    read = json.loads(run(*arguments).stdout)
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "path": scene},
                {"type": "image", "path": str(other)},
                {"type": "text", "text": QUESTION},
            ],
        },
    ]
    expected = probe_of("llava").generate(messages, max_new_tokens=2)
    assert [row["id"] for row in read["prompt"]] == expected.prompt.ids.tolist()
    assert read["meta"]["images"] == [scene, str(other)]


def test_generation_options_reach_the_model(run, tiny, scene, probe_of):
    arguments = ("probe", tiny, scene, QUESTION, "--json", "--max-new-tokens", "5")
    sampled = json.loads(run(*arguments, "--temperature", "1.5", "--seed", "4", "-o", "top_k=50").stdout)
    expected = probe_of("llava").generate(
        QUESTION, image=scene, max_new_tokens=5, do_sample=True, temperature=1.5, seed=4, top_k=50
    )
    assert [row["id"] for row in sampled["output"]] == expected.output.ids.tolist()
    assert sampled["meta"]["generation_config"]["temperature"] == 1.5
    assert sampled["meta"]["seed"] == 4
    greedy = json.loads(run(*arguments, "--temperature", "0").stdout)
    assert [row["rank"] for row in greedy["output"]] == [0] * 5


def test_values_of_options():
    given = [
        "top_p=0.9",
        "num_beams=4",
        "early_stopping=true",
        "do_sample=True",
        'stop_strings=["\\n", "="]',
        "a-b=x=y",
    ]
    expected = {
        "max_new_tokens": 3,
        "top_p": 0.9,
        "num_beams": 4,
        "early_stopping": True,
        "do_sample": True,
        "stop_strings": ["\n", "="],
        "a_b": "x=y",
    }
    assert options.generation_options(given, 3, None) == expected
    assert options.generation_options(None, None, 0.5) == {"temperature": 0.5}
    assert options.generation_options(["code=__import__('os').getcwd()"], None, None) == {
        "code": "__import__('os').getcwd()"
    }


# -- score and models ----------------------------------------------------------------------------------


def test_score_is_what_the_library_returns(run, tiny, scene, probe_of, tmp_path):
    file = tmp_path / "more.txt"
    file.write_bytes("\ufeffmaybe\r\n\r\n perhaps\n".encode())
    candidates = ["yes", "no", "maybe", " perhaps"]
    arguments = ("score", tiny, scene, QUESTION, "--candidate", "yes", "-c", "no", "--candidates-file", file)
    read = json.loads(run(*arguments, "--json").stdout, parse_constant=pytest.fail)
    expected = probe_of("llava").score(QUESTION, candidates, image=scene)
    assert [each["text"] for each in read["candidates"]] == candidates
    for name, column in (
        ("logprob", expected.logprobs),
        ("probability", expected.probabilities),
        ("mean", expected.means),
        ("per_byte", expected.per_byte),
    ):
        np.testing.assert_allclose([each[name] for each in read["candidates"]], column, atol=1e-5)
    assert read["best"] == expected.best
    assert read["mass"] == pytest.approx(expected.mass)
    tokens = [[row["id"] for row in each["tokens"]] for each in read["candidates"]]
    assert tokens == [table.ids.tolist() for table in expected.tables]
    html = tmp_path / "scores.html"
    shown = run(*arguments, "--html", html, "--save", tmp_path / "scores").stdout
    assert all(each in shown for each in ("yes", "no", "maybe", "perhaps"))
    assert QUESTION in html.read_text(encoding="utf-8")
    assert vlmprobe.load_result(tmp_path / "scores").best == expected.best


def test_ask_is_what_the_library_returns(run, tiny, scene, probe_of, tmp_path):
    probe, colours = probe_of("llava"), ("-c", "red", "-c", "blue", "-c", "green")
    read = json.loads(run("ask", tiny, scene, QUESTION, "--json").stdout, parse_constant=pytest.fail)
    expected = probe.ask(QUESTION, scene)
    assert [each["text"] for each in read["candidates"]] == ["yes", "no"]
    assert read["candidates"][0]["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert read["answer"] == expected.said
    assert "decision" not in read
    html, saved = tmp_path / "answer.html", tmp_path / "answer"
    letters = ("--letters", "--rotate", "all", "--none-of-these", "--threshold", "0.2", "--html", html, "--save", saved)
    read = json.loads(run("ask", tiny, scene, "Which?", *colours, *letters, "--json").stdout)
    options = ["red", "blue", "green"]
    expected = probe.ask("Which?", scene, options=options, by="letters", rotate="all", none_of_these=True)
    assert read["decision"] == expected.at(0.2)
    assert read["threshold"] == 0.2
    np.testing.assert_allclose([each["logprob"] for each in read["candidates"]], expected.logprobs, atol=1e-4)
    assert "D. none of these" in read["question"]
    assert read["meta"]["images"] == [scene]
    again = vlmprobe.load_result(saved)
    np.testing.assert_allclose(again.by_order, expected.by_order, atol=1e-4)
    assert expected.said.split()[0] in html.read_text(encoding="utf-8")
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    rated = json.loads(run("ask", tiny, scene, "How?", "-l", "0", "-l", "5", "-l", "10", "--json").stdout)
    assert rated["values"] == [0, 5, 10]
    assert rated["expected"] == pytest.approx(probe.ask("How?", scene, levels=[0, 5, 10]).expected, abs=1e-4)
    thinking = json.loads(run("ask", tiny, scene, QUESTION, "--think", "3", "--think-end", " so:", "--json").stdout)
    thought = probe.ask(QUESTION, scene, think=3, think_end=" so:").thought
    assert [each["id"] for each in thinking["thought"]["tokens"]] == thought.output.ids.tolist()
    assert thinking["thought"]["mean_confidence"] == pytest.approx(thought.mean_confidence, abs=1e-4)
    off = json.loads(run("ask", tiny, scene, QUESTION, "--no-think", "--think-end", " so:", "--json").stdout)
    assert off["meta"]["thought"] == {"tokens": 0, "ended": "off"}
    assert [key for key in sorted({*read, *rated, *thinking}) if f"`{key}`" not in page] == []


def test_models_says_of_each_adapter_what_it_alone_handles(run):
    read = {each["name"]: each["handles"] for each in json.loads(run("models", "--json").stdout)["adapters"]}
    assert len(set(read.values())) == len(read)
    starts = {
        "gemma3n": "Gemma 3n:",
        "glm5_next": "GLM-5:",
        "hy_v4_vl": "Hy 4:",
        "qwen4_exp": "Qwen4:",
        "kosmos_2": "Kosmos-2:",
        "query_transformer": "BLIP-2 and InstructBLIP:",
    }
    assert {name: said for name, said in starts.items() if not read[name].startswith(said)} == {}
    shown = words(run("models").stdout)
    assert "Kosmos-2: images are read by queries, and stand between two markers. Limits: no batches" in shown


def test_models_lists_every_adapter(run):
    from vlmprobe.model_registry.registry import adapter_names, known_model_types

    read = json.loads(run("models", "--json").stdout)
    assert [each["name"] for each in read["adapters"]] == adapter_names()
    assert all(each["handles"] and each["package"] == "vlm-logit-probe" for each in read["adapters"])
    assert [each["name"] for each in read["adapters"] if each["generic"]] == ["native"]
    assert read["native_model_types"] == known_model_types()
    shown = run("models").stdout
    assert all(name in shown for name in adapter_names())
    assert f"{len(known_model_types())} image-text model types" in words(shown)


def test_demo_asks_about_every_picture_and_writes_a_report(run, tmp_path):
    from vlmprobe.demo import sample_images

    out = tmp_path / "made" / "demo.html"
    shown = run("demo", "--out", out).stdout
    assert sample_images()
    for path in sample_images():
        assert path.name in shown
    assert shown.count("Are the two digits the same?") == len(sample_images())
    assert " on the left" in shown
    assert str(out) in shown
    page = out.read_text(encoding="utf-8")
    assert page.count("<article") == 4 * len(sample_images())
    assert "http://" not in page.replace("http://www.w3.org", "")


# -- what goes wrong -----------------------------------------------------------------------------------


def fails(result, *parts: str) -> None:
    """One line on standard error, and nothing on standard output."""
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("Error: ")
    assert all(part in result.stderr for part in parts), result.stderr


def test_a_missing_picture(run, tiny, tmp_path):
    fails(run("probe", tiny, tmp_path / "nope.png", QUESTION, code=2), "nope.png")


def test_not_a_picture(run, tiny, tmp_path):
    (tmp_path / "notes.txt").write_text("not a picture")
    fails(run("probe", tiny, tmp_path / "notes.txt", QUESTION, code=2), "notes.txt", "PNG")
    fails(run("score", tiny, tmp_path, QUESTION, "-c", "a", code=2), "folder")
    fails(run("probe", tiny, "-", QUESTION, code=2, stdin=b""), "0 bytes")


def test_an_unknown_model(run, scene, tmp_path):
    fails(run("probe", "no-such-model", scene, QUESTION, code=2), "no-such-model", "hub id")
    fails(run("probe", tmp_path, scene, QUESTION, code=2), "config.json")
    fails(run("probe", scene, scene, QUESTION, code=2), "is a file")


def test_an_unknown_generation_option_costs_no_load(run, scene):
    fails(run("probe", "no-such-model", scene, QUESTION, "-o", "num_beam=2", code=2), "num_beam", "num_beams")
    fails(run("probe", "no-such-model", scene, QUESTION, "-o", "top_p=2", code=2), "top_p")


def test_an_unknown_device_adapter_or_dtype(run, tiny, scene):
    fails(run("probe", tiny, scene, QUESTION, "--device", "toaster", code=2), "toaster")
    fails(run("probe", tiny, scene, QUESTION, "--adapter", "nativ", code=2), "native")
    fails(run("score", tiny, scene, QUESTION, "-c", "a", "--dtype", "int8", code=2), "float32")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("probe", "M", "I", "Q", "--nonsense"), "--nonsense"),
        (("probe", "M", "scene.png"), "none"),
        (("probe", "M"), "IMAGE"),
        (("probe", "M", "none", " "), "empty"),
        (("probe", "M", "none", "Q", "-o", "top_p"), "name=value"),
        (("probe", "M", "none", "Q", "-o", "top_p=1", "-o", "top_p=2"), "twice"),
        (("probe", "M", "none", "Q", "-o", "keep=logits"), "--logits"),
        (("probe", "M", "none", "Q", "-o", "max_new_tokens=3"), "--max-new-tokens"),
        (("probe", "M", "none", "Q", "--max-new-tokens", "0"), "--max-new-tokens"),
        (("probe", "M", "none", "Q", "--alternatives", "0"), "--alternatives"),
        (("probe", "M", "none", "Q", "--temperature", "-1"), "--temperature"),
        (("probe", "M", "-", "Q", "-i", "-"), "once"),
        (("score", "M", "none", "Q"), "at least one"),
        (("score", "M", "none", "Q", "-c", ""), "empty"),
        (("score", "M", "none", "Q", "-c", "a", "-c", "a"), "twice"),
        (("score", "M", "none", "Q", "--candidates-file", "nope.txt"), "nope.txt"),
        (("prob", "M", "none", "Q"), "prob"),
    ],
)
def test_wrong_usage(run, arguments, told):
    done = run(*arguments, code=2)
    assert done.stdout == ""
    assert told in words(done.stderr)


def test_image_and_question_in_the_wrong_order(run, scene):
    assert "order" in words(run("probe", "M", QUESTION, scene, code=2).stderr)


def test_targets_are_checked_before_anything_runs(run, tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("")
    for option, target, told in (
        ("--html", tmp_path, "folder"),
        ("--save", file, "file"),
        ("--html", file / "report.html", "nothing can be written below"),
    ):
        assert told in words(run("probe", "M", "none", "Q", option, target, code=2).stderr)
    (tmp_path / "x.safetensors").mkdir()
    assert "folder" in words(run("score", "M", "none", "Q", "--save", tmp_path / "x.safetensors", code=2).stderr)


def test_a_folder_that_is_not_writable(run, monkeypatch, tmp_path):
    monkeypatch.setattr("vlmprobe.cli.targets.os.access", lambda path, mode: Path(path) != tmp_path)
    assert "not writable" in words(run("probe", "M", "none", "Q", "--html", tmp_path / "r.html", code=2).stderr)


def test_a_candidates_file_that_is_not_text(run, tmp_path):
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe\x00")
    told = run("score", "M", "none", "Q", "--candidates-file", tmp_path / "c.bin", code=2).stderr
    assert "UTF-8" in words(told)


def test_an_unexpected_error_is_one_line_and_a_traceback_with_debug(run, monkeypatch, scene):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("first line\nsecond \x1b[31mline")

    monkeypatch.setattr("vlmprobe.cli.open_model.open_probe", broken)
    fails(run("probe", "M", scene, QUESTION, code=1), "RuntimeError: first line", "--debug")
    raised = CliRunner().invoke(app, ["probe", "M", scene, QUESTION, "--debug"]).exception
    assert isinstance(raised, RuntimeError)


def test_an_error_shows_control_characters_and_markup_as_text(run, tiny):
    told = run("probe", tiny, "[red]\x1b[31m\n.png", QUESTION, code=2)
    assert "\x1b" not in told.stderr
    assert "[red]" in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_an_out_of_space_error_names_the_file(run, monkeypatch, tiny, tmp_path):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "report.html")

    monkeypatch.setattr("vlmprobe.cli.output.write_html", full)
    arguments = ("probe", tiny, "none", QUESTION, "--max-new-tokens", "1", "--html", tmp_path / "report.html")
    fails(run(*arguments, code=1), "No space left on device: report.html")


# -- untrusted text and odd streams --------------------------------------------------------------------


def test_json_is_valid_and_cannot_steer_a_terminal():
    hostile = {"a": "\x1b[31m\x9b2J\u202e 中文 \ud800", "b": [math.nan, -math.inf, 1.5], "c": {"d": np.float32}}
    text = document.dumps(hostile)
    assert "\n" not in text
    assert not any(character in text for character in "\x1b\x9b\u202e\ud800")
    assert "中文" in text
    read = json.loads(text, parse_constant=pytest.fail)
    assert read["a"] == hostile["a"]
    assert read["b"] == [None, None, 1.5]


def test_arguments_in_another_locale_are_read_as_utf8():
    hidden = "猫 ok".encode().decode("ascii", errors="surrogateescape")
    assert arguments.candidate_list([hidden], None) == ["猫 ok"]


def test_notes_stay_on_one_line(capsys):
    terminal.note("a\nb [red]c[/red] \x07" + "x" * 300)
    told = capsys.readouterr().err
    assert told == "a b [red]c[/red] ␇" + "x" * 300 + "\n"


def test_what_a_library_prints_does_not_get_into_the_output(capsys):
    with terminal.working("Loading"):
        print("chatter")
    assert capsys.readouterr().out == ""


def test_told_keeps_what_was_known(probe_of):
    result = probe_of("llava").generate(QUESTION, max_new_tokens=1)
    assert output.told(result, {"question": "?"}).meta == {**result.meta, "question": "?"}


# -- a real process ------------------------------------------------------------------------------------


def test_a_process_prints_json_in_utf8_and_nothing_else_whatever_the_locale(tiny, scene):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = shell("probe", tiny, scene, "这是什么?", "--max-new-tokens", "3", "--json", env=plain)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    assert "这是什么?".encode() in done.stdout
    read = json.loads(done.stdout.decode("utf-8"))
    assert read["meta"]["question"] == "这是什么?"
    assert len(read["output"]) == 3


def test_the_exit_code_of_a_process():
    done = shell("probe", "no-such-model", "none", QUESTION)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.decode().startswith("Error: ")
    assert b"Traceback" not in done.stderr


def test_a_reader_that_stops_reading(tiny):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "vlmprobe", "score", tiny, "none", QUESTION, "-c", "yes", "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=900)
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == b""


@pytest.mark.skipif(find_spec("pty") is None, reason="needs a pseudo-terminal")
def test_ctrl_c_in_the_middle_of_an_answer(tiny, scene, tmp_path):
    import pty

    ours, theirs = pty.openpty()
    target = tmp_path / "report.html"
    endless = ("--max-new-tokens", "1000000", "-o", "min_new_tokens=1000000", "--html", str(target))
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmprobe", "probe", tiny, scene, QUESTION, *endless],
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
    )
    os.close(theirs)
    limit = threading.Timer(120, process.kill)  # reading what it shows would wait for ever
    limit.start()
    shown = b""
    try:
        while b"Answering" not in shown:
            shown += os.read(ours, 4096)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        try:
            while more := os.read(ours, 4096):
                shown += more
        except OSError:
            pass  # the terminal is closed
        assert process.wait(timeout=900) == 130
    finally:
        limit.cancel()
        if process.poll() is None:
            process.kill()
        os.close(ours)
    text = shown.decode("utf-8", errors="replace")
    assert "Interrupted." in text
    assert "Traceback" not in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is visible again
    assert not target.exists()


def test_warnings_of_ours_are_shown_and_those_of_libraries_are_not():
    """As with a server that does not say what it is: the warning names the line that called, which is not ours."""
    script = """
from vlmprobe.cli.terminal import prepare
prepare()
import warnings
from vlmprobe.errors import VlmprobeWarning
warnings.warn("this is told", VlmprobeWarning)
warnings.warn("this is not")
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "this is told" in found.stderr
    assert "this is not" not in found.stderr
