"""The command line asks a model behind a server as it asks one that it loads."""

from __future__ import annotations

import json

import pytest
from common import DATA, picture
from engine_models import engine_model
from openai_stream import WORDS, events, plain
from typer.testing import CliRunner
from wire_recordings import routes
from wire_server import WireServer, event_stream

import vlmprobe
from vlmprobe.cli import app

RECORDING = DATA / "wire/vllm/recorded-0.32.0-qwen2_vl.jsonl"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr("vlmprobe.engines.serving.http.client.FIRST_PAUSE_S", 0.01)


def run(*arguments: object, code: int = 0):
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


@pytest.fixture
def scene(tmp_path) -> str:
    path = tmp_path / "scene.png"
    picture().save(path)
    return str(path)


@pytest.fixture
def url():
    with plain(event_stream(events())) as server:
        yield server.url


def test_an_answer_of_a_server(url, scene, tmp_path):
    page, saved = tmp_path / "report.html", tmp_path / "answer"
    told = run("probe", url, scene, "Was ist das?", "--html", page, "--save", saved).stdout
    assert "".join(WORDS) in told
    result = vlmprobe.load_result(saved)
    assert result.meta["url"] == url
    assert result.meta["question"] == "Was ist das?"
    assert "Haus" in page.read_text(encoding="utf-8")
    document = json.loads(run("probe", url, "none", "Was?", "--json").stdout)
    assert document["text"] == "".join(WORDS)


def test_candidates_of_one_token(scene):
    entries = [{"token": word, "logprob": value} for word, value in (("yes", -0.2), ("no", -2.0), ("so", -4.0))]

    def chat(request):
        listed = {"content": [{**entries[0], "top_logprobs": entries[: request.json["top_logprobs"]]}]}
        return {"choices": [{"message": {"content": "yes"}, "logprobs": listed}]}

    with WireServer({"/v1/models": {"data": [{"id": "m"}]}, "/v1/chat/completions": chat}) as server:
        asked = ("score", server.url, scene, "Is it?", "-c", "yes", "-c", "no", "-c", "maybe")
        document = json.loads(run(*asked, "--json").stdout)
        shown = run(*asked).stdout
        none = run("score", server.url, scene, "Is it?", "-c", "perhaps", "-c", "maybe", code=1)
        health = json.loads(run("doctor", server.url, "--json").stdout)
    assert document["best"] == "yes"
    assert [each["logprob"] for each in document["candidates"]] == pytest.approx([-0.2, -2.0, None])
    assert document["candidates"][2]["logprob_at_most"] == pytest.approx(-4.0)
    assert "≤ −4.000" in shown
    assert "at least 95.4%" in shown
    assert "'yes' 0.819, 'no' 0.135, 'so' 0.018" in none.stderr.replace("\n", " ")
    (found,) = (each for each in health["findings"] if each["name"] == "candidates")
    assert found["state"] == "yes"
    assert found["detail"].startswith("of one token, among the 20 likeliest")


def test_an_answer_of_a_server_while_it_is_written(url, scene):
    assert run("probe", url, scene, "Was ist das?", "--stream").stdout == "".join(WORDS) + "\n"


def test_candidates_on_a_server(tmp_path):
    model = engine_model("qwen2_vl", tmp_path / "m_qwen2_vl")
    with WireServer(routes(RECORDING)) as server:
        probe = vlmprobe.connect(server.url)
        expected = probe.score("Is it?", ["yes", "no"], alternatives=1)
        given = ["score", server.url, "none", "Is it?", "-c", "yes", "-c", "no", "--alternatives", "1", "--json"]
        document = json.loads(run(*given).stdout)
        # With the processor the candidates are asked for by their ids, which this server was not asked.
        wrong = run(*given, "--processor", model, code=1)
    assert [each["logprob"] for each in document["candidates"]] == pytest.approx(expected.logprobs.tolist())
    assert "not recorded" in wrong.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--prompt",), "no prompt"),
        (("--logits",), "logits"),
        (("--alternatives", 50), "at most 20"),
        (("--served-model", "n"), "no model 'n'"),
    ],
)
def test_what_the_server_cannot_give(url, given, said):
    told = run("probe", url, "none", "Was?", *given, code=1)
    assert said in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_doctor_says_that_a_server_lacks_a_model(url):
    told = run("doctor", url, "--model", "n", code=1)
    assert "no model 'n'" in told.stderr


def test_a_processor_that_does_not_exist_is_wrong_usage(url):
    assert "./gone" in run("probe", url, "none", "Was?", "--processor", "./gone", code=2).stderr


def test_an_engine_that_does_not_exist():
    told = run("probe", "http://localhost:1", "none", "Was?", "--engine", "vlm", code=2)
    assert "vllm" in told.stderr


@pytest.mark.parametrize("given", [("--dtype", "float16"), ("--device", "cpu"), ("--adapter", "native")])
def test_options_of_a_checkpoint_are_not_for_a_server(given):
    told = run("probe", "http://localhost:1", "none", "Was?", *given, code=2)
    assert given[0] in told.output
    assert "has loaded its model" in " ".join(told.output.replace("│", " ").split())


def test_options_of_a_server_are_not_for_a_checkpoint():
    told = run("score", "demo", "none", "Was?", "-c", "a", "--processor", "demo", code=2)
    assert "--processor" in told.output


def test_an_address_without_its_scheme():
    told = run("probe", "localhost:8000", "none", "Was?", code=2)
    assert "http://localhost:8000" in told.output


def test_nothing_listens():
    assert "cannot be reached" in run("probe", "http://127.0.0.1:9", "none", "Was?", code=1).stderr


def test_load_of_an_address_names_connect():
    with pytest.raises(vlmprobe.errors.UnknownModelError, match=r"vlmprobe\.connect"):
        vlmprobe.load("http://localhost:8000")
