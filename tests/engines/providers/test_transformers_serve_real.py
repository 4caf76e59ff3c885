"""A real ``transformers serve`` is recognised, and what to do is said. Run by ``make engine-test`` only."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx
import pytest
from proxy_server import missing, transformers_serve

import vlmprobe
from vlmprobe.errors import CapabilityError
from vlmprobe.testing.tiny import build

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if reason := missing("transformers"):
        pytest.skip(reason)
    return build("qwen2_vl", tmp_path_factory.mktemp("engine") / "qwen2_vl")


@pytest.fixture(scope="module")
def url(folder, tmp_path_factory):
    with transformers_serve(folder, log=tmp_path_factory.mktemp("log") / "serve.log") as url:
        yield url


def test_it_answers_without_log_probabilities(url, folder):
    """So nothing could be probed there."""
    asked = {"model": str(folder), "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    reply = httpx.post(f"{url}/v1/chat/completions", json={**asked, "logprobs": True, "top_logprobs": 2}, timeout=60)
    choice = reply.raise_for_status().json()["choices"][0]
    assert choice["message"]["content"]
    assert not choice.get("logprobs")


@pytest.mark.parametrize("engine", ["auto", "openai", "vllm"])
def test_the_error_names_the_folder_to_load(url, folder, engine):
    with pytest.raises(CapabilityError, match=rf"transformers serve.*vlmprobe\.load\('{re.escape(str(folder))}'\)"):
        vlmprobe.connect(url, engine=engine)
    assert vlmprobe.load(folder, check=False, device="cpu").generate("Hi", max_new_tokens=2).confidence > 0


def test_doctor_says_so_once(url, folder):
    command = [sys.executable, "-m", "vlmprobe", "doctor", url]
    for form in ([], ["--json"]):
        found = subprocess.run([*command, *form], capture_output=True, text=True, check=False)
        assert found.returncode == 1
        assert not found.stdout
        told = " ".join(found.stderr.split())
        assert told.count("is transformers serve, which sends no log-probabilities") == 1
        assert f"vlmprobe.load('{folder}')" in told
        assert "logprobs.content" not in told
