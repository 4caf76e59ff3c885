"""The options of ``probe`` and ``score`` that say how a prompt is written, against the calls of Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from common import picture
from prompt_templates import CHATML, GUARD
from typer.testing import CliRunner

import vlmprobe
from vlmprobe.cli import app
from vlmprobe.results.files import load_result
from vlmprobe.testing import tiny

QUESTION = "What animal is this?"
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("scene") / "scene.png"
    picture().save(path)
    return str(path)


def written(tmp_path_factory, name: str, template: str | None) -> str:
    """A checkpoint with another chat template, or none."""
    folder = tiny.build(name, tmp_path_factory.mktemp("other") / name)
    (folder / "chat_template.jinja").unlink()
    settings = folder / "tokenizer_config.json"
    held = json.loads(settings.read_text(encoding="utf-8"))
    held.pop("chat_template", None)
    settings.write_text(json.dumps(held), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return written(tmp_path_factory, "qwen2_5_vl", CHATML)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return written(tmp_path_factory, "mllama", None)


@pytest.fixture(scope="module")
def guard(tmp_path_factory):
    return written(tmp_path_factory, "mllama", GUARD)


def run(*arguments: object, code: int = 0):
    result = CliRunner(env={"COLUMNS": "80"}).invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def document(*arguments: object) -> dict:
    return json.loads(run("probe", *arguments, "--json", "--max-new-tokens", "2").stdout)


def ids(read: dict) -> list[int]:
    return [row["id"] for row in read["prompt"]]


def test_variables_and_tools(reader, scene, tmp_path):
    file = tmp_path / "tools.json"
    file.write_text(json.dumps(TOOLS), encoding="utf-8")
    off = {"enable_thinking": False}
    more = ("--chat-template-kwargs", json.dumps(off), "--tools", file, "--assistant", "It is")
    read = document(reader, scene, QUESTION, *more)
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "It is"}]
    asked = {"chat_template_kwargs": off, "tools": TOOLS, "max_new_tokens": 2}
    expected = vlmprobe.load(reader, device="cpu").generate(messages, scene, **asked)
    assert ids(read) == expected.prompt.ids.tolist()
    assert read["meta"]["chat_template_kwargs"] == off
    assert read["meta"]["tools"] == TOOLS
    assert read["meta"]["assistant"] == "It is"


@pytest.mark.parametrize("continues", [True, False])
def test_an_answer_is_continued_or_judged(guard, scene, tmp_path, continues):
    more = () if continues else ("--no-continue-final-message",)
    asked = ("score", guard, scene, QUESTION, "--assistant", "A cat.", *more)
    run(*asked, "-c", "safe", "-c", "unsafe", "--save", tmp_path / "saved")
    scores = load_result(tmp_path / "saved")
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "A cat."}]
    probe = vlmprobe.load(guard, device="cpu")
    expected = probe.score(messages, ["safe", "unsafe"], scene, continue_final_message=continues)
    np.testing.assert_allclose(scores.logprobs, expected.logprobs, atol=1e-5)
    assert scores.meta.get("continue_final_message") is (None if continues else False)


def test_a_base_model(base, scene, tmp_path):
    refused = run("probe", base, scene, QUESTION, code=1)
    assert "--chat-template FILE or --raw-prompt" in " ".join(refused.output.replace("│", " ").split())
    raw = document(base, scene, "A haiku:", "--raw-prompt")
    assert raw["meta"]["raw_prompt"] is True
    probe = vlmprobe.load(base, device="cpu")
    assert ids(raw) == probe.generate("A haiku:", scene, raw_prompt=True, max_new_tokens=2).prompt.ids.tolist()
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}<|image|>{{ m.content[-1].text }}{% endfor %}", encoding="utf-8")
    read = document(base, scene, QUESTION, "--chat-template", template)
    expected = probe.generate(QUESTION, scene, chat_template=template, max_new_tokens=2)
    assert ids(read) == expected.prompt.ids.tolist() != ids(raw)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--chat-template-kwargs", "{enable_thinking}"), "is not JSON"),
        (("--chat-template-kwargs", "[1]"), "must be a mapping such as"),
        (("--tools", __file__), "is not JSON"),
        (("--tools", "absent.json"), "does not exist"),
        (("--chat-template", "absent.jinja"), "does not exist"),
        (("--chat-template", __file__, "--raw-prompt"), "leave out chat_template="),
        (("--no-continue-final-message",), "give one with --assistant"),
        (("--option", "raw_prompt=true"), "has an option of its own: --raw-prompt"),
    ],
)
def test_wrong_usage_is_told_before_a_model_is_loaded(scene, more, message):
    result = run("probe", Path("absent"), scene, QUESTION, *more, code=2)
    assert message in " ".join(result.output.replace("│", " ").split())
