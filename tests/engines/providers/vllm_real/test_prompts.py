"""Prompts written as asked, by a real vLLM on CPU: ids and numbers are those of the same model run here."""

from __future__ import annotations

import numpy as np
import pytest
from engine_models import engine_model
from engine_record import picture
from prompt_templates import CHATML
from vllm_server import missing, serving

import vlmprobe
from vlmprobe.errors import CapabilityError

pytestmark = pytest.mark.engine
QUESTION = "What is this?"
OFF = {"enable_thinking": False}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]},
    },
}
CALL = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"at": "it"}}}
CALLED = [
    {"role": "user", "content": "Look."},
    {"role": "assistant", "content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "A cat."},
]
JUDGED = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "It is"}]
REASONED = [JUDGED[0], {**JUDGED[1], "reasoning_content": "I think."}]
WAYS = {
    "variables": (QUESTION, {"chat_template_kwargs": OFF}),
    "tools": (QUESTION, {"tools": [TOOL]}),
    "calls": (CALLED, {"tools": [TOOL]}),
    "reasoning": (REASONED, {}),
    "judged": (JUDGED, {"continue_final_message": False}),
    "continued": (JUDGED, {}),
    "template": (QUESTION, {"chat_template": CHATML.replace("assistant{{", "model{{")}),
    "raw": (QUESTION, {"raw_prompt": True}),
    "raw, text": ("Once upon a time", {"raw_prompt": True}),
}
BEGUN_OTHERWISE = ("variables", "template")  # their templates begin an answer otherwise than they write one


@pytest.fixture(scope="module")
def probes(tmp_path_factory):
    if reason := missing():
        pytest.skip(reason)
    folder = engine_model("qwen2_5_vl", tmp_path_factory.mktemp("engine") / "reader")
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    with serving(folder, "--trust-request-chat-template", "--enable-scale-out", log=log) as url:
        yield vlmprobe.load(folder, check=False, device="cpu"), vlmprobe.connect(url, processor=folder)


@pytest.mark.parametrize("way", WAYS)
def test_the_prompt_is_written_as_asked(probes, way):
    local, served = probes
    question, asked = WAYS[way]
    image = picture() if question == QUESTION else None
    here = local.generate(question, image, max_new_tokens=4, do_sample=False, **asked)
    there = served.generate(question, image, max_new_tokens=4, **asked)
    assert there.input_ids.tolist() == here.input_ids.tolist()
    assert there.output.ids.tolist() == here.output.ids.tolist()
    np.testing.assert_allclose(there.output.logprobs, here.output.logprobs, atol=1e-4)
    np.testing.assert_allclose(there.prompt.logprobs, here.prompt.logprobs, atol=1e-4)
    candidates = ["a", "b", "a cat"]
    one, other = (probe.score(question, candidates, image, **asked) for probe in probes)
    np.testing.assert_allclose(other.logprobs, one.logprobs, atol=1e-4)
    served.engine.tokens_in = False  # as without --enable-scale-out: by the text of an assistant message
    try:
        if way in BEGUN_OTHERWISE:
            with pytest.raises(CapabilityError, match="start the server with --enable-scale-out"):
                served.score(question, ["a cat", "a dog"], image, **asked)
            return
        by_text = served.score(question, ["a cat", "a dog"], image, **asked)
    finally:
        served.engine.tokens_in = True
    expected = local.score(question, ["a cat", "a dog"], image, **asked)
    np.testing.assert_allclose(by_text.logprobs, expected.logprobs, atol=1e-4)
