"""How a prompt is written reaches the engines that can write it so; the others refuse, and nothing is dropped."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
import wire_engines as wire
from common import picture
from prompt_templates import CHATML, THINKING
from transformers import LogitsProcessor
from wire_server import WireServer, refusal

import vlmprobe
from vlmprobe.errors import CapabilityError, EngineError, VlmprobeWarning

QUESTION = "What is this?"
SCENE = picture()
OFF = {"enable_thinking": False}
GREEDY = {"max_new_tokens": 3, "do_sample": False}
TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
CALL = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"at": "it"}}}
CALLED = [
    {"role": "user", "content": "Look."},
    {"role": "assistant", "content": None, "reasoning_content": "I look.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "A cat."},
]
JUDGED = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "It is"}]
VLLM = {"/version": {"version": "0.32.0"}, "/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}]}}
WAYS = {
    "variables": (QUESTION, {"chat_template_kwargs": OFF}),
    "tools": (QUESTION, {"tools": [TOOL]}),
    "calls": (CALLED, {"tools": [TOOL]}),
    "judged": (JUDGED, {"continue_final_message": False}),
    "continued": (JUDGED, {}),
    "template": (QUESTION, {"chat_template": CHATML.replace("assistant{{", "model{{")}),
    "raw": (QUESTION, {"raw_prompt": True}),
}


@pytest.fixture(scope="module")
def local(own):
    """A model whose template reads all of it."""
    named = own("qwen2_5_vl")
    processor = copy.copy(named.processor)
    processor.chat_template = CHATML
    return vlmprobe.wrap(named.model, processor)


class Reader(wire.Model):
    """Answers what a request of vLLM's chat route asks for, its prompt written as the request says."""

    def __init__(self, probe):
        super().__init__(probe, "")

    def read(self, body):
        messages = copy.deepcopy(body["messages"])
        for message in messages:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
            assert message.pop("reasoning", None) == message.get("reasoning_content")
        names = ("chat_template", "chat_template_kwargs", "tools")
        asked = {name: body[name] for name in names if name in body}
        assert ("tools" in body) == (body.get("tool_choice") == "none")
        if messages[-1]["role"] == "assistant":
            asked["continue_final_message"] = body["continue_final_message"]
            assert body["add_generation_prompt"] != body["continue_final_message"]
        return messages, asked

    def chat(self, request):
        body = request.json
        if not 0 <= body.get("top_logprobs", 0) <= 20:
            return refusal(400, "Requested sample logprobs of 1000000, which is greater than max allowed: 20")
        messages, asked = self.read(body)
        result = self.probe.generate(
            messages, keep="logits", max_new_tokens=body["max_tokens"], do_sample=False, **asked
        )
        ids = result.output.ids.tolist()

        def entry(row, each):
            return {"token": f"token_id:{each}", "logprob": float(wire.logprobs(row)[each]), "bytes": [1]}

        def content(row, each):
            named = body.get("logprob_token_ids") or wire.best(row, body.get("top_logprobs", 1))
            return {**entry(row, each), "top_logprobs": [entry(row, one) for one in dict.fromkeys([each, *named])]}

        told = [content(row, each) for row, each in zip(result.output.logits, ids, strict=True)]
        choice = {"index": 0, "message": {"role": "assistant", "content": result.text}, "finish_reason": "length"}
        choice |= {"logprobs": {"content": told}, "token_ids": ids}
        return {"choices": [choice], "prompt_token_ids": result.input_ids.tolist()}


@pytest.fixture
def vllm(local):
    with WireServer({**VLLM, "/v1/chat/completions": Reader(local).chat}) as server:
        yield server


@pytest.mark.parametrize("way", WAYS)
def test_vllm_writes_the_prompt_as_asked(vllm, local, way):
    question, asked = WAYS[way]
    image = None if isinstance(question, list) else SCENE
    served = vlmprobe.connect(vllm.url, processor=local)
    here = local.generate(question, image, **asked, **GREEDY)
    there = served.generate(question, image, **asked, **GREEDY, prompt=False)
    assert there.output.ids.tolist() == here.output.ids.tolist()
    assert there.input_ids.tolist() == here.input_ids.tolist()
    np.testing.assert_allclose(there.output.logprobs, here.output.logprobs, atol=1e-4)
    assert {name: there.meta.get(name) for name in asked} == {name: here.meta[name] for name in asked}
    # A candidate of one token is asked for by its id, by two requests that both write the prompt so.
    one = local.score(question, ["a", "b"], image, **asked)
    other = served.score(question, ["a", "b"], image, **asked)
    assert other.meta["candidates"] == "chosen ids"
    np.testing.assert_allclose(other.logprobs, one.logprobs, atol=1e-4)


def test_the_start_of_an_answer_keeps_its_reasoning_before_a_candidate(vllm, local):
    served = vlmprobe.connect(vllm.url, processor=local)
    served.engine.tokens_in = False
    begun = [JUDGED[0], {**JUDGED[1], "reasoning_content": "I think."}]
    with pytest.raises(EngineError):  # this server has no numbers of prompts
        served.score(begun, [" a cat"])
    last = vllm.requests[-1].json["messages"][-1]
    assert (last["content"], last["reasoning_content"]) == ("It is a cat", "I think.")


def test_vllm_is_asked_for_all_calls_of_a_probe(vllm, local):
    served = vlmprobe.connect(vllm.url, processor=local, chat_template_kwargs=OFF)
    served.generate(QUESTION, **GREEDY, prompt=False)
    assert vllm.requests[-1].json["chat_template_kwargs"] == OFF


def test_what_vllm_would_drop_is_an_error(vllm, local):
    """vLLM leaves out variables that its template does not read, without a word."""
    served = vlmprobe.connect(vllm.url, processor=local)
    sent = len(vllm.requests)
    with pytest.raises(CapabilityError, match="does not read mood"):
        served.generate(QUESTION, chat_template_kwargs={"mood": 1})
    with pytest.raises(CapabilityError, match="does not read enable_thinking"):
        served.score(QUESTION, ["a"], chat_template="{{ messages[0].content }}", chat_template_kwargs=OFF)
    assert len(vllm.requests) == sent


def test_a_template_that_is_not_known_is_told(vllm, local):
    served = vlmprobe.connect(vllm.url)
    with pytest.warns(VlmprobeWarning, match=r"so chat_template_kwargs may have no effect: pass processor="):
        served.generate(QUESTION, chat_template_kwargs=OFF, **GREEDY, prompt=False)
    assert vllm.requests[-1].json["chat_template_kwargs"] == OFF
    with pytest.raises(CapabilityError, match="A raw prompt with images needs the model's tokenizer"):
        served.generate(QUESTION, SCENE, raw_prompt=True, **GREEDY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        served.generate(QUESTION, raw_prompt=True, **GREEDY, prompt=False)


FACTS = {
    "sglang": ("/generate", lambda body: body["text"]),
    "lightllm": ("/generate", lambda body: body["inputs"]),
}


@pytest.mark.parametrize("engine", FACTS)
@pytest.mark.parametrize("way", WAYS)
def test_engines_that_take_text_get_it_as_asked(local, engine, way):
    question, asked = WAYS[way]
    route, text = FACTS[engine]
    with WireServer({**wire.facts(engine), route: refusal(400, "no")}) as server:
        served = vlmprobe.connect(server.url, processor=local, value_kind="raw")
        with pytest.raises(EngineError):
            served.generate(question, **asked, **GREEDY, prompt=False)
        sent = text(server.requests[-1].json)
        with pytest.raises(CapabilityError, match="does not read mood"):
            served.generate(question, chat_template_kwargs={"mood": 1}, **GREEDY)
    expected = local.engine.adapter.render([local.conversation(question, **asked)])[0]
    assert sent == expected


def sent_by(server, served, question, **asked):
    with pytest.raises(EngineError):
        served.generate(question, **asked, **GREEDY)
    return server.requests[-1].json


def test_llamacpp_takes_variables_that_its_template_reads():
    route = {"/v1/chat/completions": refusal(400, "no")}
    facts = wire.facts("llamacpp")
    known = {**facts, "/props": {**facts["/props"], "chat_template": CHATML}}
    with WireServer({**known, **route}) as server:
        served = vlmprobe.connect(server.url)
        assert sent_by(server, served, QUESTION, chat_template_kwargs=OFF)["chat_template_kwargs"] == OFF
        assert "chat_template_kwargs" not in sent_by(server, served, QUESTION)
        with pytest.raises(
            CapabilityError, match=r"does not read mood of chat_template_kwargs.*It reads enable_thinking"
        ):
            served.generate(QUESTION, chat_template_kwargs={"mood": 1})
    with WireServer({**facts, "/props": {**facts["/props"], "chat_template": "{% dialect %}"}, **route}) as server:
        served = vlmprobe.connect(server.url)
        with pytest.raises(CapabilityError, match="cannot be parsed, so what it reads is not known"):
            served.generate(QUESTION, chat_template_kwargs=OFF)
    with WireServer({**facts, **route}) as server:
        served = vlmprobe.connect(server.url)
        with pytest.warns(VlmprobeWarning, match="llama.cpp drops what its chat template does not read"):
            sent_by(server, served, QUESTION, chat_template_kwargs=OFF)


def test_openai_takes_tools_and_their_calls():
    called = [CALLED[0], {name: value for name, value in CALLED[1].items() if name != "reasoning_content"}, CALLED[2]]
    routes = {"/v1/models": {"data": [{"id": "m"}]}, "/v1/chat/completions": refusal(400, "no")}
    with WireServer(routes) as server:
        body = sent_by(server, vlmprobe.connect(server.url, value_kind="raw"), called, tools=[TOOL])
    assert body["tools"] == [TOOL]
    assert "tool_choice" not in body
    assert body["messages"][1]["content"] is None
    assert body["messages"][1]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"at": "it"}'}
    assert body["messages"][2]["tool_call_id"] == "c1"


def test_an_answer_that_is_a_call_has_no_numbers():
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": {"name": "look"}}]}
    reply = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls", "logprobs": None}]}
    routes = {"/v1/models": {"data": [{"id": "m"}]}, "/v1/chat/completions": reply}
    with WireServer(routes) as server, pytest.raises(EngineError, match="the answer is a call of a tool"):
        vlmprobe.connect(server.url, value_kind="raw").generate(QUESTION, tools=[TOOL], **GREEDY)


@pytest.mark.parametrize(
    ("engine", "ways"),
    [
        ("openai", "variables judged template raw calls"),
        ("llamacpp", "tools judged template raw calls"),
        ("ollama", "variables tools judged template raw calls"),
        ("lmdeploy", "variables tools judged template raw calls"),
    ],
)
def test_what_an_engine_does_not_take_is_refused(engine, ways):
    facts = {"/v1/models": {"data": [{"id": "m"}]}} if engine == "openai" else wire.facts(engine)
    names = {"judged": "continue_final_message", "template": "chat_template", "raw": "raw_prompt"}
    names |= {"variables": "chat_template_kwargs", "tools": "tools", "calls": "reasoning_content"}
    with WireServer({**facts, "/v1/chat/completions": wire.unreachable, "/api/chat": wire.unreachable}) as server:
        served = vlmprobe.connect(server.url)
        for way in ways.split():
            question, asked = WAYS[way]
            with pytest.raises(CapabilityError, match=f"takes no .*{names[way]}"):
                served.generate(question, **asked, **GREEDY)


# -- thoughts -------------------------------------------------------------------------------------------------


class Speaks(LogitsProcessor):
    """Makes a model begin its answer with given ids."""

    def __init__(self, ids):
        self.ids, self.start = ids, None

    def __call__(self, input_ids, scores):
        self.start = input_ids.shape[1] if self.start is None else self.start
        at = input_ids.shape[1] - self.start
        if at < len(self.ids):
            scores = scores.clone().fill_(-1e9)
            scores[:, self.ids[at]] = 0
        return scores


class Thinker(Reader):
    """Thinks what it is told to, whatever the question."""

    def __init__(self, probe, ids):
        super().__init__(probe)
        self.probe, self.here, self.ids = self, probe, ids

    def generate(self, messages, **options):
        answers = messages[-1]["role"] == "assistant"
        return self.here.generate(messages, logits_processor=[] if answers else [Speaks(self.ids)], **options)


@pytest.fixture(scope="module")
def thinker(own):
    named = own("qwen2_5_vl")
    processor = copy.deepcopy(named.processor)
    processor.chat_template = THINKING
    processor.tokenizer.add_tokens(["<think>", "</think>"])
    return vlmprobe.wrap(named.model, processor)


@pytest.mark.parametrize("thought", ["I look at it.\n</think>", "I look at it, and"], ids=["closed", "cut"])
def test_vllm_goes_on_from_a_thought_as_the_model_does(thinker, thought):
    ids = thinker.tokenizer(thought, add_special_tokens=False)["input_ids"]
    budget = len(ids) + (2 if "</think>" in thought else 0)
    asked = {"options": {"a": ["a"], "b": ["b"]}}
    spoken = {"max_new_tokens": budget, "do_sample": False, "logits_processor": [Speaks(ids)]}
    here = thinker.ask(QUESTION, SCENE, **asked, think=spoken)
    with WireServer({**VLLM, "/v1/chat/completions": Thinker(thinker, ids).chat}) as server:
        there = vlmprobe.connect(server.url, processor=thinker).ask(QUESTION, SCENE, **asked, think=budget)
        off = vlmprobe.connect(server.url, processor=thinker).ask(QUESTION, SCENE, **asked, think=False)
        sent = [each.json["messages"][-1] for each in server.requests if each.json and "messages" in each.json]
    assert there.thought.ended == here.thought.ended == ("closed" if "</think>" in thought else "budget")
    assert there.thought.text == here.thought.text == thought.partition("\n</think>")[0]
    assert there.thought.output.ids.tolist() == ids
    np.testing.assert_allclose(there.thought.output.logprobs, here.thought.output.logprobs, atol=1e-4)
    np.testing.assert_allclose(there.logprobs, here.logprobs, atol=1e-4)
    begun = [each["content"][0]["text"] for each in sent if each["role"] == "assistant"]
    assert f"{there.thought.text}\n</think>\n\n" in begun
    np.testing.assert_allclose(off.logprobs, thinker.ask(QUESTION, SCENE, **asked, think=False).logprobs, atol=1e-4)


def test_a_server_that_cannot_go_on_from_a_thought_says_so(thinker):
    listed = {"/v1/models": {"data": [{"id": "m", "owned_by": "someone"}]}}
    with WireServer({**listed, "/v1/chat/completions": refusal(400, "never asked")}) as server:
        served = vlmprobe.connect(server.url, processor=thinker, engine="openai")
        asked = len(server.requests)
        with pytest.raises(CapabilityError, match=r"takes no thought before an answer.*vlmprobe\.load"):
            served.ask(QUESTION, SCENE, think=5)
        assert len(server.requests) == asked
    with (
        WireServer({**VLLM, "/v1/chat/completions": refusal(400, "never asked")}) as server,
        pytest.raises(CapabilityError, match="processor="),
    ):
        vlmprobe.connect(server.url).ask(QUESTION, SCENE, think=5)
