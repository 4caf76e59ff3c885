"""LMDeploy in this process: its Python interface, as the source of 0.16.0 has it, around a model that is open here."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import vlmprobe
from vlmprobe.errors import (
    CapabilityError,
    EngineError,
    EngineResponseError,
    GenerationOptionError,
    NonFiniteLogitsError,
)

PICTURES = sorted((Path(vlmprobe.__file__).parent / "demo" / "pictures").glob("*.png"))
QUESTION = "Describe the picture."
GREEDY = {"max_new_tokens": 32, "do_sample": False}


@dataclass
class Response:
    """``lmdeploy.messages.Response``: token ids and rows end before the end token."""

    text: str
    generate_token_len: int
    input_token_len: int
    finish_reason: str | None = None
    token_ids: list[int] = field(default_factory=list)
    logprobs: Any = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    index: int = 0
    error_message: str | None = None


@dataclass
class TurbomindEngineConfig:
    dtype: str = "auto"
    tp: int = 1
    session_len: int | None = None
    revision: str | None = None


@dataclass
class GenerationConfig:
    max_new_tokens: int = 512
    do_sample: bool = False
    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 50
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int | None = None
    stop_words: list[str] | None = None
    random_seed: int | None = None
    output_logits: str | None = None


class Pipeline:
    def __init__(self, probe: vlmprobe.Probe):
        self.probe = probe
        self.asked: list[Any] = []
        self.change = lambda reply: reply
        self.async_engine = SimpleNamespace(
            tokenizer=SimpleNamespace(model=SimpleNamespace(model=probe.engine.adapter.tokenizer))
        )

    def __call__(self, prompts: list[list[dict[str, Any]]], gen_config: GenerationConfig) -> list[Response]:
        self.asked.append((prompts, gen_config))
        return [self.change(self._answer(messages, gen_config, place)) for place, messages in enumerate(prompts)]

    def _answer(self, messages: list[dict[str, Any]], config: GenerationConfig, place: int) -> Response:
        parts = messages[-1]["content"]
        images = [part["image_data"]["data"] for part in parts if part["type"] == "image_data"]
        question = next(part["text"] for part in parts if part["type"] == "text")
        assert (config.top_k, config.do_sample, config.output_logits) == (1, True, "generation")
        result = self.probe.generate(
            question, images or None, keep="logits", max_new_tokens=config.max_new_tokens, do_sample=False
        )
        ids, rows = result.output.ids.tolist(), torch.tensor(result.output.logits)
        if result.finish_reason == "stop":
            ids, rows = ids[:-1], rows[:-1]
        return Response(result.text, len(ids), 9, result.finish_reason, ids, None, rows, index=place)


@pytest.fixture(scope="module")
def local():
    return vlmprobe.load("demo", dtype="float32", device="cpu")


@pytest.fixture
def installed(local, monkeypatch):
    """LMDeploy as far as a probe calls it; the pipelines that were made."""
    made: list[Any] = []
    module: Any = ModuleType("lmdeploy")
    module.TurbomindEngineConfig, module.GenerationConfig = TurbomindEngineConfig, GenerationConfig

    def pipeline(model: str, backend_config: Any, trust_remote_code: bool) -> Pipeline:
        assert trust_remote_code is False
        made.append((model, backend_config, Pipeline(local)))
        return made[-1][2]

    module.pipeline = pipeline
    monkeypatch.setitem(sys.modules, "lmdeploy", module)
    return made


def test_every_column_follows_from_the_logits(local, installed):
    probe = vlmprobe.load("model", engine="lmdeploy", dtype="float16", tp=2)
    model, config, _ = installed[0]
    assert (model, config.dtype, config.tp) == ("model", "float16", 2)
    here = local.generate(QUESTION, PICTURES[4], **GREEDY).output
    result = probe.generate(QUESTION, PICTURES[4], **GREEDY)
    count = len(here) - 1  # LMDeploy leaves the end token out
    assert len(result.output) == count
    assert (result.prompt, result.output.logits) == (None, None)
    assert result.meta["value_kind"] == "raw"
    assert "ids of its prompts" in result.meta["absent"]["prompt"]
    for name in ("ids", "logprobs", "entropy", "ranks", "logsumexp", "top_ids", "top_logprobs"):
        np.testing.assert_allclose(getattr(result.output, name), getattr(here, name)[:count], atol=1e-4, err_msg=name)
    assert result.output.tokens == here.tokens[:count]


def test_full_rows_are_kept_where_they_are_asked_for(local, installed):
    probe = vlmprobe.load("model", engine="lmdeploy")
    here = local.generate(QUESTION, PICTURES[0], keep="logits", **GREEDY).output
    rows = probe.generate(QUESTION, PICTURES[0], keep="logits", **GREEDY).output.logits
    np.testing.assert_allclose(rows, here.logits[:-1], atol=1e-4)


def test_candidates_of_one_token_are_read_from_the_whole_row(local, installed):
    probe = vlmprobe.load("model", engine="lmdeploy", processor=local)
    here = local.score(QUESTION, ["a", "an", "a red two"], PICTURES[0])
    scores = probe.score(QUESTION, ["a", "an", "a red two"], PICTURES[0])
    assert installed[0][2].asked[-1][1].max_new_tokens == 1
    one = [len(table) == 1 for table in here.tables]
    assert sum(one) >= 1
    np.testing.assert_allclose(scores.logprobs[one], here.logprobs[one], atol=1e-4)
    assert np.isnan(scores.logprobs[~np.array(one)]).all()  # of several tokens only the first is known
    assert (here.logprobs <= scores.logprob_bounds[:, 1] + 1e-5).all()
    for table, exact in zip(scores.tables, here.tables, strict=True):
        assert table.ids.tolist() == exact.ids.tolist()
        np.testing.assert_allclose(table.logprobs[0], exact.logprobs[0], atol=1e-4)
        assert table.logits is None
    answer = probe.yes_no(QUESTION, PICTURES[0])
    exact = local.yes_no(QUESTION, PICTURES[0])
    assert answer.bounds[0] - 1e-6 <= exact.probability <= answer.bounds[1] + 1e-6


def test_many_requests_go_out_together(local, installed):
    probe = vlmprobe.load("model", engine="lmdeploy")
    requests = [vlmprobe.Request(QUESTION, each) for each in PICTURES]
    found = list(probe.generate_many(requests, progress=False, **GREEDY))
    assert [each.text for each in found] == [local.generate(QUESTION, each, **GREEDY).text for each in PICTURES]
    assert len(installed[0][2].asked) == 1


def test_what_lmdeploy_cannot_do_is_refused(installed):
    probe = vlmprobe.load("model", engine="lmdeploy")
    for ask in ({"prompt": True}, {"keep": "hidden"}, {"num_beams": 2}, {"eos_token_id": 3}):
        with pytest.raises((CapabilityError, GenerationOptionError)):
            probe.generate(QUESTION, PICTURES[0], **ask)
    assert not installed[0][2].asked
    with pytest.raises(GenerationOptionError, match="TurboMind does not take this"):
        vlmprobe.load("model", engine="lmdeploy", tensor_parallel=2)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"logits": None}, CapabilityError, "PyTorch engine"),
        ({"logits": torch.zeros(3, 40)}, EngineResponseError, "3 rows of logits"),
        ({"finish_reason": "error", "error_message": "out of memory"}, EngineError, "out of memory"),
    ],
)
def test_what_comes_back_wrong_is_a_typed_error(installed, change, kind, words):
    probe = vlmprobe.load("model", engine="lmdeploy")
    installed[0][2].change = lambda reply: Response(**{**vars(reply), **change})
    with pytest.raises(kind, match=words):
        probe.generate(QUESTION, PICTURES[0], **GREEDY)


def test_nan_logits_are_an_error_that_names_the_token(installed):
    probe = vlmprobe.load("model", engine="lmdeploy")

    def spoil(reply: Response) -> Response:
        reply.logits[2, 5] = float("nan")
        return reply

    installed[0][2].change = spoil
    with pytest.raises(NonFiniteLogitsError, match="token 2"):
        probe.generate(QUESTION, PICTURES[0], **GREEDY)


def test_without_lmdeploy_the_error_names_the_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "lmdeploy", None)
    with pytest.raises(CapabilityError, match="pip install lmdeploy"):
        vlmprobe.load("model", engine="lmdeploy")
