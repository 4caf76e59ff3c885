"""The engine of docs/extend/add-an-engine.md works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from wire_server import WireServer

import vlmprobe
from vlmprobe.engines.serving import registry

PAGE = Path(vlmprobe.__file__).parents[1] / "docs" / "extend" / "add-an-engine.md"


@pytest.fixture
def mine(monkeypatch):
    block = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
    names: dict = {"__name__": "mine"}
    exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    names["Mine"].name = "mine"
    found = {**registry.engines(), "mine": names["Mine"]}
    monkeypatch.setattr(registry, "engines", lambda: found)
    return names["Mine"]


def reply(request):
    def token(text, value):
        return {"id": ord(text), "text": text, "logprob": value, "others": [{"id": ord(text), "logprob": value}]}

    tokens = [token("h", -0.5), token("i", -0.25)][: request.json["max_tokens"]]
    text = "".join(each["text"] for each in tokens)
    return {"text": text, "finish_reason": "length", "tokens": tokens, "generated": request.json["max_tokens"]}


def test_it_is_found_and_read(mine):
    with WireServer({"/about": {"engine": "mine", "version": 3, "models": ["m"]}, "/answer": reply}) as server:
        probe = vlmprobe.connect(server.url, value_kind="raw")
        found = probe.generate("Hello", max_new_tokens=2, alternatives=1)
        fewer = probe.generate("Hello", max_new_tokens=3, alternatives=1)
    assert probe.meta["engine"] == "mine"
    assert found.text == "hi"
    assert found.confidence == pytest.approx(np.exp(-0.75))
    assert np.isnan(fewer.confidence)  # three tokens were generated, and two have a row
