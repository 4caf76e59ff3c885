"""``--engine`` with a checkpoint: another engine than transformers, in this process."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import vlmprobe
from vlmprobe.cli import app
from vlmprobe.demo import checkpoint
from vlmprobe.errors import CapabilityError


def typed(*arguments: str):
    return CliRunner().invoke(app, ["probe", *arguments])


@pytest.fixture
def loaded(monkeypatch):
    """What ``vlmprobe.load`` is called with."""
    calls: list[dict] = []

    def load(model, **more):
        calls.append({"model": model, **more})
        raise CapabilityError("seen enough")

    monkeypatch.setattr(vlmprobe, "load", load)
    return calls


def test_the_engine_gets_its_options(loaded):
    options = ["--engine-option", "tensor_parallel_size=2", "--engine-option", "logprobs_mode=raw_logits"]
    typed("demo", "none", "Hi", "--engine", "vllm", *options, "--dtype", "float32")
    told = {"engine": "vllm", "tensor_parallel_size": 2, "logprobs_mode": "raw_logits", "dtype": "float32"}
    assert loaded[0].items() >= told.items()
    typed("demo", "none", "Hi")
    assert "engine" not in loaded[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["demo", "none", "Hi", "--engine-option", "tp=2"], "name the engine with --engine"),
        (["demo", "none", "Hi", "--engine", "vllm", "--engine-option", "tp"], "tensor_parallel_size=2"),
        (["demo", "none", "Hi", "--engine", "vllm", "--engine-option", "dtype=half"], "an option of its own: --dtype"),
        (
            ["demo", "none", "Hi", "--engine", "vllm", "--engine-option", "tp=2", "--engine-option", "tp=3"],
            "given twice",
        ),
        (["http://127.0.0.1:9", "none", "Hi", "--engine-option", "tp=2"], "has loaded its model"),
        (["demo", "none", "Hi", "--processor", "demo"], "is not the URL of a server"),
    ],
)
def test_wrong_lines(loaded, line, said):
    done = typed(*line)
    assert done.exit_code == 2, done.output
    assert said in " ".join(done.output.replace("\u2502", " ").split())
    assert not loaded


@pytest.mark.parametrize(
    "more", [{"adapter": "qwen2_vl"}, {"device": "cpu"}, {"ignore_weights": ["mtp."]}, {"resize": "processor"}]
)
def test_what_an_engine_chooses_itself(more):
    with pytest.raises(CapabilityError, match="leave out adapter, resize, device, ignore_weights"):
        vlmprobe.load(checkpoint(), engine="vllm", **more)
