"""The checks of an engine pass on a real llama.cpp, and each catches an engine that is wrong in its way."""

from __future__ import annotations

import shutil
from dataclasses import replace

import llamacpp_server
import numpy as np
import pytest
from engine_tables import write_checks
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

import vlmprobe
from vlmprobe.cli.app import app
from vlmprobe.engines.serving import Alternative, Usage
from vlmprobe.errors import GenerationOptionError
from vlmprobe.testing import check_engine

WITHIN = {"tolerance": 2e-4, "image_tolerance": 5e-3}


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    server, running = llamacpp_server.start(tmp_path_factory.mktemp("llamacpp") / "tiny")
    yield server
    del running


@pytest.fixture(scope="module")
def local(started):
    return vlmprobe.load(str(started.folder), dtype="float32", device="cpu")


@pytest.fixture
def served(started, local):
    return vlmprobe.connect(started.url, processor=local)


def test_a_real_server_passes_and_what_it_lacks_is_skipped(served, local):
    report = check_engine(served, local, **WITHIN)
    write_checks("llama.cpp", report)
    assert report.raise_for_failures().counts() == {"passed": 10, "skipped": 2}
    assert "no log-probabilities of prompts" in report["E6"].reason
    assert "sent without a row" in report["E1"].reason
    assert report.meta["tolerances"] == {"text": 2e-4, "image": 5e-3}
    assert report.meta["engine"] == "llamacpp"


def test_without_ids_of_its_own_tokenizer(started, local):
    check_engine(vlmprobe.connect(started.url), local, **WITHIN).raise_for_failures()


# -- each is caught ------------------------------------------------------------------------------------


def spoil(monkeypatch, probe, change):
    """The answers of the engine, changed."""
    inner = type(probe.engine)._ask

    async def ask(self, conversation, decoding, options, more):
        return change(await inner(self, conversation, decoding, options, more), decoding)

    monkeypatch.setattr(type(probe.engine), "_ask", ask)


def rows(answer, change):
    return replace(answer, output=[change(place, row) for place, row in enumerate(answer.output)])


def known(row):
    return row.value is not None


WRONG = {
    "E1": lambda answer, _: replace(answer, output=answer.output[:-2], usage=Usage()),
    "E2": lambda answer, _: rows(answer, lambda place, row: replace(row, id=70) if place == 0 else row),
    "E4": lambda answer, _: rows(
        answer,
        lambda place, row: replace(row, top=[Alternative(each.value, None, "\ufffd") for each in row.top]),
    ),
    "E5": lambda answer, _: rows(
        answer, lambda place, row: replace(row, value=row.value - 0.01) if known(row) else row
    ),
    "E8": lambda answer, decoding: (
        rows(answer, lambda place, row: replace(row, value=row.value / 2) if known(row) else row)
        if decoding.do_sample
        else answer
    ),
    "E9": lambda answer, _: rows(answer, lambda place, row: replace(row, value=-9999.0) if known(row) else row),
}


@pytest.mark.parametrize("check", WRONG)
def test_an_engine_that_is_wrong_is_caught(monkeypatch, served, local, check):
    assert check_engine(served, local, only=[check], **WITHIN).passed
    spoil(monkeypatch, served, WRONG[check])
    report = check_engine(served, local, only=[check], **WITHIN)
    assert report[check].status == "failed", report
    assert report[check].causes


def test_a_text_that_is_not_the_servers_is_caught(monkeypatch, served, local):
    inner = type(served.engine).result

    async def result(self, conversation, options):
        right = await inner(self, conversation, options)
        return replace(right, text=right.text.replace("\ufffd", "?"))

    monkeypatch.setattr(type(served.engine), "result", result)
    report = check_engine(served, local, only=["E3"], **WITHIN)
    assert "as the ids read here" in report["E3"].failure


def test_prompt_rows_of_another_model_are_caught(monkeypatch, served, local):
    """llama.cpp has none: the model here answers for it, with a row that is off."""
    inner = type(served).generate

    def generate(self, *args, prompt=None, **more):
        if self is served and prompt:
            right = local.generate(*args, prompt=True, **more)
            moved = right.prompt.logprobs + np.float32(0.01)
            return replace(right, prompt=replace(right.prompt, logprobs=moved))
        return inner(self, *args, **({} if prompt is None else {"prompt": prompt}), **more)

    monkeypatch.setattr(type(served), "generate", generate)
    report = check_engine(served, local, only=["E6"], **WITHIN)
    assert "difference of 0.01" in report["E6"].failure


def test_scores_of_other_candidates_are_caught(monkeypatch, served, local):
    inner = type(served).score

    def score(self, question, candidates, **more):
        given = list(candidates)
        found = inner(self, question, given[::-1] if self is served else given, **more)
        return replace(found, candidates=given)

    monkeypatch.setattr(type(served), "score", score)
    assert check_engine(served, local, only=["E7"], **WITHIN)["E7"].status == "failed"


def test_answers_in_another_order_are_caught(monkeypatch, served, local):
    inner = type(served).generate_many
    monkeypatch.setattr(
        type(served), "generate_many", lambda self, requests, **more: list(inner(self, requests[::-1], **more))
    )
    assert check_engine(served, local, only=["E10"], **WITHIN)["E10"].status == "failed"


def test_a_stream_that_drops_a_row_is_caught(monkeypatch, served, local):
    inner = type(served.engine).pieces

    async def pieces(self, conversation, decoding, options):
        count = 0
        async for piece in inner(self, conversation, decoding, options):
            count += 1
            yield replace(piece, output=[] if count == 2 else piece.output, usage=Usage())

    monkeypatch.setattr(type(served.engine), "pieces", pieces)
    report = check_engine(served, local, only=["E11"], **WITHIN)
    assert report["E11"].status == "failed"


def test_a_prompt_that_is_cut_without_a_word_is_caught(monkeypatch, served, local):
    inner = type(served.engine).result

    async def result(self, conversation, options):
        if len(conversation.messages[0].text) > 1000:
            return await inner(self, local_question(), options)
        return await inner(self, conversation, options)

    def local_question():
        from vlmprobe.inputs.messages import Conversation

        return Conversation.build("word")

    monkeypatch.setattr(type(served.engine), "result", result)
    report = check_engine(served, local, only=["E12"], **WITHIN)
    assert "a prompt beyond" in report["E12"].failure


def test_another_model_on_the_server_is_caught(served, started, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(started.folder, other, ignore=shutil.ignore_patterns("*.gguf"))
    weights = load_file(other / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * 1.01
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    report = check_engine(served, vlmprobe.load(str(other), dtype="float32", device="cpu"), **WITHIN)
    assert {"E5"} <= {each.id for each in report.failures}


# -- how it is asked -----------------------------------------------------------------------------------


def test_wrong_arguments(served, local):
    with pytest.raises(TypeError, match="must be one of a server"):
        check_engine(local, local)
    with pytest.raises(TypeError, match="runs in this process"):
        check_engine(served, served)
    for tolerance in (0, -1, True, "1e-3", float("nan")):
        with pytest.raises(GenerationOptionError, match="a difference in nats"):
            check_engine(served, local, tolerance=tolerance)
    with pytest.raises(GenerationOptionError, match="E1 to E12"):
        check_engine(served, local, only=["C1"])


def test_on_the_command_line(started):
    command = ["check", started.url, "--against", str(started.folder), "--tolerance", "2e-4"]
    done = CliRunner().invoke(app, [*command, "--image-tolerance", "5e-3"])
    assert done.exit_code == 0, done.output
    assert "10 passed, 2 skipped" in done.output
    done = CliRunner().invoke(app, [*command, "--only", "E5", "--tolerance", "1e-9"])
    assert done.exit_code == 1
    assert "the model's own forward" in done.output
    done = CliRunner().invoke(app, ["check", started.url])
    assert done.exit_code == 2
    assert "--against MODEL" in done.output.replace("\n", " ")
