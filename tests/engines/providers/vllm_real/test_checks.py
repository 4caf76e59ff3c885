"""The checks of an engine on a real vLLM, and on the same behind a LiteLLM proxy. Run by ``make engine-test`` only."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import proxy_server
import pytest
import vllm_server
from engine_models import engine_model
from engine_record import CANDIDATES, QUESTION, SINGLE, picture
from engine_tables import parity, write_checks

import vlmprobe
from vlmprobe.errors import CapabilityError, EngineError, UnknownModelError, VlmprobeWarning
from vlmprobe.testing import check_engine

pytestmark = pytest.mark.engine
TOLERANCE = 2e-5  # nats
WITHIN = {"tolerance": TOLERANCE, "image_tolerance": TOLERANCE}
GREEDY = {"max_new_tokens": 12, "do_sample": False}
# Answered with a piece of a character that no other token completes.
CHINESE = "请用中文写一句话，并加上一个表情符号。"
BEHIND = "vLLM behind LiteLLM"


@pytest.fixture(scope="module")
def figures():
    with parity(BEHIND) as rows:
        yield rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if reason := vllm_server.missing():
        pytest.skip(reason)
    return engine_model("qwen2_vl", tmp_path_factory.mktemp("engine") / "qwen2_vl")


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    with vllm_server.serving(folder, "--enable-scale-out", log=tmp_path_factory.mktemp("log") / "vllm.log") as url:
        yield url


@pytest.fixture(scope="module")
def proxy(url, tmp_path_factory):
    """Address and key."""
    if reason := proxy_server.missing("litellm"):
        pytest.skip(reason)
    with proxy_server.litellm(url, log=tmp_path_factory.mktemp("log") / "litellm.log") as found:
        yield found


@pytest.fixture(scope="module")
def local(folder):
    return vlmprobe.load(folder, check=False, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def direct(url, local):
    return vlmprobe.connect(url, processor=local)


@pytest.fixture(scope="module")
def proxied(proxy, local):
    url, key = proxy
    with pytest.warns(VlmprobeWarning, match=r"does not say that it is vLLM.*owned by 'openai'"):
        return vlmprobe.connect(url, engine="vllm", processor=local, api_key=key)


def test_vllm_passes_every_check(direct, local):
    report = check_engine(direct, local, **WITHIN).raise_for_failures()
    write_checks("vLLM", report)
    assert report.counts() == {"passed": 12}


def test_behind_litellm_every_check_passes_and_what_a_stream_loses_is_told(proxied, local):
    report = check_engine(proxied, local, **WITHIN).raise_for_failures()
    write_checks(BEHIND, report)
    assert report.counts() == {"passed": 12}
    assert "chinese, streamed: 5 tokens were generated, and 1 of them sent without a row" in report["E11"].notes
    assert not any("a model of another name" in note for note in report["E12"].notes)


@pytest.mark.parametrize(
    "image", [None, picture(), [picture(), picture().rotate(180)]], ids=["text", "an image", "two images"]
)
def test_litellm_changes_no_number(direct, proxied, local, figures, image):
    one, other = (probe.generate(QUESTION, image, **GREEDY) for probe in (direct, proxied))
    here = local.generate(QUESTION, image, **GREEDY)
    count = 0 if image is None else 1 if not isinstance(image, list) else len(image)
    label = f"Qwen2-VL, {count} images"
    assert other.input_ids.tolist() == one.input_ids.tolist() == here.input_ids.tolist()
    assert other.text == one.text == here.text
    for side, what in (("prompt", "prompt rows"), ("output", "generated")):
        table, reference, own = (getattr(each, side) for each in (other, one, here))
        assert table.ids.tolist() == reference.ids.tolist() == own.ids.tolist()
        assert table.tokens == reference.tokens == own.tokens
        assert table.top_tokens == reference.top_tokens
        for name in ("logprobs", "top_logprobs", "top_ids", "ranks"):
            np.testing.assert_array_equal(getattr(table, name), getattr(reference, name))
        figures[label, what] = float(np.nanmax(np.abs(table.logprobs - own.logprobs)))
        assert figures[label, what] < TOLERANCE


def test_candidates_behind_litellm(proxied, local, figures):
    """One token by ids; longer ones as the beginning of an answer, since LiteLLM has no route that takes ids."""
    for candidates, how in ((SINGLE, "chosen ids"), (CANDIDATES, "continue_final_message")):
        here, there = (probe.score(QUESTION, candidates, picture()) for probe in (local, proxied))
        assert there.meta["candidates"] == how
        figures["Qwen2-VL, 1 images", f"candidates ({how})"] = worst = float(
            np.abs(there.logprobs - here.logprobs).max()
        )
        assert worst < 4 * TOLERANCE * max(map(len, here.tables))


def test_streams_behind_litellm(direct, proxied):
    """Chunks without text are left out, and the rows in them: pieces of characters that a later token completes."""
    lost = 0
    for question, image in ((QUESTION, None), (QUESTION, picture()), (CHINESE, None)):
        streamed = proxied.stream(question, image, **GREEDY).result
        whole = proxied.generate(question, image, **GREEDY)
        assert streamed.text == whole.text
        rows = iter(zip(whole.output.ids.tolist(), whole.output.logprobs.tolist(), strict=True))
        for row in zip(streamed.output.ids.tolist(), streamed.output.logprobs.tolist(), strict=True):
            assert row in rows  # the same numbers, in order
        assert streamed.output.lost == len(whole.output) - len(streamed.output)
        assert np.isnan(streamed.confidence) == bool(streamed.output.lost)
        assert ("rows" in streamed.meta["absent"]) == bool(streamed.output.lost)
        assert streamed.input_ids is None
        assert "a proxy before vLLM drops them" in streamed.meta["absent"]["input_ids"]
        assert "absent" not in direct.stream(question, image, **GREEDY).result.meta
        lost += streamed.output.lost
    assert lost


def test_errors_behind_litellm(proxy, proxied):
    url, key = proxy
    with pytest.raises(CapabilityError, match="max-logprobs"):
        proxied.generate("Hi", alternatives=21)
    with pytest.raises(EngineError, match="maximum context length") as error:
        proxied.generate("word " * 600, max_new_tokens=1)
    assert error.value.status == 400
    with pytest.raises(UnknownModelError, match=r"no model 'other'.*It has: tiny"):
        vlmprobe.connect(url, model="other", api_key=key)
    with pytest.warns(VlmprobeWarning, match=r"does not say|asked for all the same"):
        other = vlmprobe.connect(url, engine="vllm", model="other", api_key=key, value_kind="raw")
    with pytest.raises(EngineError, match="Invalid model name") as error:
        other.generate("Hi")
    assert error.value.status == 400
    wrong = f"sk-{'0' * 48}"
    with pytest.raises(EngineError) as error:
        vlmprobe.connect(url, api_key=wrong)
    assert wrong not in str(error.value)


def test_litellm_is_read_as_its_protocol_without_engine(proxy, local):
    """Words and bytes alone, since nothing says that vLLM is behind it."""
    url, key = proxy
    probe = vlmprobe.connect(url, api_key=key)
    assert probe.meta["engine"] == "openai"
    here, there = (each.generate(QUESTION, picture(), **GREEDY) for each in (local, probe))
    assert there.output.ids is None
    assert there.text == here.text
    np.testing.assert_allclose(there.output.logprobs, here.output.logprobs, atol=TOLERANCE)


def test_doctor_tells_what_litellm_hides(proxy, folder):
    url, key = proxy
    command = [sys.executable, "-m", "vlmprobe", "doctor", url, "--engine", "vllm", "--processor", str(folder)]
    environment = {**os.environ, "VLMPROBE_API_KEY": key}
    found = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 0, found.stderr
    assert "does not say that it is vLLM" in found.stderr
    told = json.loads(found.stdout)
    assert told["version"] is None
    state = {each["name"]: (each["state"], each["detail"]) for each in told["findings"]}
    assert "connect to vLLM itself" in state["candidates by ids"][1]
    for what in ("images", "ids of the answer", "prompt log-probabilities with images", "candidates"):
        assert state[what][0] == "yes", what
    assert key not in found.stdout + found.stderr
