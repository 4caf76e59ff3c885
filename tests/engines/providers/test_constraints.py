"""Constraints of answers on serving engines: what is sent, what the numbers then mean, and who refuses."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import wire_engines as wire
from openai_stream import MODELS, answer, entry
from wire_server import WireServer, event_stream, refusal

import vlmprobe
from vlmprobe.engines.base import Options
from vlmprobe.engines.constraint import constraint_of
from vlmprobe.engines.providers.vllm.in_process import VLLMEngine
from vlmprobe.engines.serving import Alternative, Decoding, Meaning, Row
from vlmprobe.engines.serving.base import OBJECT
from vlmprobe.engines.serving.refusals import refuse
from vlmprobe.engines.serving.registry import engines
from vlmprobe.engines.serving.rows import columns
from vlmprobe.engines.serving.value_kind import judge_constrained
from vlmprobe.errors import CapabilityError, EngineError, GenerationOptionError

QUESTION = "Describe the picture."
GREEDY = {"max_new_tokens": 32, "do_sample": False}
SCHEMA = {"type": "object", "properties": {"Größe": {"type": "integer"}}, "required": ["Größe"]}
GRAMMAR = 'root ::= "yes" | "no"'
CHAT = "/v1/chat/completions"
STRICT = {"name": "answer", "strict": True, "schema": SCHEMA}
FORMAT = {"format": {"type": "json_schema", **STRICT}}
SENT = {  # (engine, kind of the constraint) -> where a request has what it sends
    ("vllm", "schema"): (CHAT, "structured_outputs", {"json": SCHEMA}),
    ("vllm", "grammar"): (CHAT, "structured_outputs", {"grammar": GRAMMAR}),
    ("sglang", "schema"): ("/generate", "sampling_params.json_schema", json.dumps(SCHEMA)),
    ("sglang", "grammar"): ("/generate", "sampling_params.ebnf", GRAMMAR),
    ("llamacpp_native", "schema"): ("/completion", "json_schema", SCHEMA),
    ("llamacpp_native", "grammar"): ("/completion", "grammar", GRAMMAR),
    ("llamacpp", "grammar"): (CHAT, "grammar", GRAMMAR),
    ("openai", "schema"): (CHAT, "response_format", {"type": "json_schema", "json_schema": STRICT}),
    ("openai_responses", "schema"): ("/v1/responses", "text", FORMAT),
}
VLLM = {"/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}]}, "/version": {"version": "0.32.0"}}
GIVEN = {"schema": SCHEMA, "grammar": GRAMMAR}


@pytest.fixture(scope="module")
def local():
    return vlmprobe.load("demo", dtype="float32", device="cpu")


def served(engine: str, path: str, model: wire.Model) -> WireServer:
    """A server that answers as that engine does, whatever it is told that the answer must obey."""
    reply = getattr(wire, engine)(model, *(["text"] if engine == "openai_responses" else []))
    folder = engine.partition("_")[0]
    listed = {"openai": MODELS, "vllm": VLLM}.get(folder) or wire.facts(folder)
    template = {"/apply-template": wire.llamacpp_template} if engine == "llamacpp_native" else {}
    return WireServer({**listed, path: reply, **template})


@pytest.mark.parametrize(("engine", "kind"), SENT)
def test_what_is_sent(local, engine, kind):
    path, where, due = SENT[engine, kind]
    name = {"openai_responses": "openai-responses"}.get(engine, "auto")
    with served(engine, path, wire.Model(local, QUESTION)) as server:
        probe = vlmprobe.connect(server.url, engine=name, processor=local if engine in ("sglang", "vllm") else None)
        result = probe.generate(QUESTION, **{kind: GIVEN[kind]}, **GREEDY)
        sent = server.of(path)[-1].json
        plain = probe.generate(QUESTION, **GREEDY)
        bare = server.of(path)[-1].json
    for key in where.split("."):
        found, sent, bare = sent[key], sent[key], bare.get(key)
    assert found == due
    assert bare is None
    assert result.meta["constraint"] == {kind: GIVEN[kind]}
    assert "constraint" not in plain.meta
    values = result.output.scores if result.meta["value_kind"] == "constrained" else result.output.logprobs
    np.testing.assert_allclose(values, plain.output.logprobs, atol=1e-6)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_numbers_under_a_constraint_are_in_scores(local, engine):
    path = SENT[engine, "schema"][0]
    with served(engine, path, wire.Model(local, QUESTION)) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        result = probe.generate(QUESTION, schema=SCHEMA, prompt=True, **GREEDY)
        plain = probe.generate(QUESTION, prompt=True, **GREEDY)
    assert result.meta["value_kind"] == "constrained"
    assert "under the schema: they are in scores" in result.meta["absent"]["logprobs"]
    assert np.isnan(result.output.logprobs).all()
    assert np.isnan(result.confidence)
    assert np.isnan(result.mass_allowed)
    assert result.output.top_logprobs.shape[1] == 0
    np.testing.assert_allclose(result.output.scores, plain.output.logprobs, atol=1e-6)
    # A prompt is constrained by nothing.
    np.testing.assert_array_equal(result.prompt.logprobs, plain.prompt.logprobs)


def test_llamacpp_rules_out_after_its_numbers(local):
    with served("llamacpp_native", "/completion", wire.Model(local, QUESTION)) as server:
        result = vlmprobe.connect(server.url).generate(QUESTION, schema=SCHEMA, alternatives=3, **GREEDY)
    assert result.meta["value_kind"] == "raw"
    assert result.output.scores is None
    assert result.output.top_logprobs.shape[1] == 3


def test_llamacpp_without_its_own_route_takes_no_schema(local):
    """On OpenAI's route its text leaves out the fence that the model wrote around the JSON."""
    with served("llamacpp", CHAT, wire.Model(local, QUESTION)) as server:
        probe = vlmprobe.connect(server.url)
        with pytest.raises(CapabilityError, match="a schema only where it has /apply-template"):
            probe.generate(QUESTION, schema=SCHEMA, **GREEDY)


# -- OpenAI's protocol does not say what its numbers are -----------------------------------------------


def first(*listed: str, drawn: str = "{", message: dict | None = None) -> dict:
    """An answer of one token, and the likeliest at its place."""
    top = [{"token": each, "logprob": -1.0 - place} for place, each in enumerate(listed)]
    said = {"token": drawn, "logprob": -1.5, "top_logprobs": top}
    found = {
        "message": {"content": drawn} | (message or {}),
        "finish_reason": "length",
        "logprobs": {"content": [said]},
    }
    return {"choices": [found]}


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (first("Dog", "{", "Cat"), "raw"),
        (first("{", '{"', "{\n", "\n"), "constrained"),
        (first("The", "Okay", drawn="The"), "unknown"),  # of a thought, or of a server that ignores the schema
        (first("Dog", "{", message={"reasoning_content": "Hm"}), "unknown"),
        (first(), "unknown"),
        (refusal(400, "response_format is not supported"), "unknown"),
    ],
)
def test_an_object_shows_what_the_numbers_are(reply, kind):
    def chat(request):
        probing = request.json.get("response_format", {}).get("json_schema", {}).get("schema") == OBJECT
        return reply if probing else answer(["{", "}"])

    with WireServer({**MODELS, CHAT: chat}) as server:
        probe = vlmprobe.connect(server.url, value_kind="raw")
        results = list(probe.generate_many(["Hi"] * 8, schema=SCHEMA, max_new_tokens=4, progress=False))
        probe.generate("Hi", max_new_tokens=4)
        asked = [each.json for each in server.of(CHAT)]
    assert len(asked) == 10  # the object was asked for once
    for result in results:
        assert result.meta["value_kind"] == kind
        values = result.output.scores if kind == "constrained" else result.output.logprobs
        assert values.tolist() == [-0.5, -0.5]
        assert (result.output.scores is None) == (kind != "constrained")


def test_a_stream_says_the_same():
    def chat(request):
        if request.json.get("response_format", {}).get("json_schema", {}).get("schema") == OBJECT:
            return first("{", '{"')
        said = [
            {"choices": [{"delta": {"content": each}, "logprobs": {"content": [entry(each)]}, "finish_reason": None}]}
            for each in ("{", "}")
        ]
        return event_stream([*said, {"choices": [{"delta": {}, "finish_reason": "stop"}]}])

    with WireServer({**MODELS, CHAT: chat}) as server:
        stream = vlmprobe.connect(server.url, value_kind="raw").stream("Hi", schema=SCHEMA, max_new_tokens=4)
        rows = list(stream)
    assert [row.scores.tolist() for row in rows] == [[-0.5], [-0.5]]
    assert all(np.isnan(row.logprobs).all() for row in rows)
    assert stream.result.output.scores.tolist() == [-0.5, -0.5]
    assert stream.result.meta["value_kind"] == "constrained"


def test_a_token_that_begins_nothing_shows_nothing():
    assert judge_constrained("", ["", "{"]) == "constrained"
    assert judge_constrained("{", ["x"]) == "raw"
    assert judge_constrained("x", ["{"]) == judge_constrained("{", []) == "unknown"


def test_scores_of_whole_rows_of_logits():
    """As vLLM with --logprobs-mode raw_logits: what is ruled out is minus infinity, or the sentinel for it."""
    full = np.array([1.0, -np.inf, 2.5, -9999.0], np.float32)
    found = columns([Row(2.5, 2, full=full)], 5, Meaning("raw", logits=True).constrained("constrained"), "none", "here")
    np.testing.assert_allclose(found.numbers["scores"], [2.5 - np.log(np.exp(1.0) + np.exp(2.5))], atol=1e-6)
    assert np.isnan(found.numbers["logprobs"]).all()
    assert found.numbers.get("logits") is None
    listed = Row(2.5, 2, top=(Alternative(2.5, 2),))  # without a whole row a logit is no probability
    meaning = Meaning("filtered", logits=True)
    assert np.isnan(columns([listed], 5, meaning, "filtered", "here").numbers["scores"]).all()


# -- who refuses ---------------------------------------------------------------------------------------


def asked(**constraint) -> Options:
    return Options(constraint=constraint_of(constraint), demanded=frozenset())


@pytest.mark.parametrize("name", sorted(engines()))
def test_every_engine_takes_or_refuses_by_name(name):
    engine = engines()[name]
    for kind, given in (*GIVEN.items(), ("prefix_allowed_tokens_fn", lambda batch, ids: [0])):
        if kind in engine.abilities.constraints:
            refuse(engine.title, engine.abilities, [], asked(**{kind: given}))
            continue
        with pytest.raises(CapabilityError, match=rf"{re.escape(engine.title)}.*{kind}.*vlmprobe\.load"):
            refuse(engine.title, engine.abilities, [], asked(**{kind: given}))
    due = {kind for tested, kind in SENT if tested.replace("_native", "").replace("_", "-") == name}
    assert engine.abilities.constraints == due


def test_full_rows_under_a_constraint_are_refused_where_they_are_not_the_models():
    abilities = replace(engines()["vllm"].abilities, no_logits="")  # of a server that sends full rows
    options = replace(asked(schema=SCHEMA), keep=frozenset({"logits"}))
    with pytest.raises(CapabilityError, match="vLLM applies the schema to its logits"):
        refuse("vLLM", abilities, [], options)
    refuse("vLLM", replace(abilities, constrained="raw"), [], options)


def test_nothing_is_sent_for_a_constraint_that_is_refused(local):
    with served("openai", CHAT, wire.Model(local, QUESTION)) as server:
        probe = vlmprobe.connect(server.url)
        with pytest.raises(CapabilityError, match=r"takes no grammar: it takes schema; vLLM"):
            probe.generate(QUESTION, grammar=GRAMMAR)
        with pytest.raises(GenerationOptionError, match="both"):
            probe.generate(QUESTION, grammar=GRAMMAR, schema=SCHEMA)
        assert not server.of(CHAT)


def test_a_grammar_that_the_server_cannot_read_is_its_error(local):
    def chat(request):
        bad = "structured_outputs" in request.json
        return (
            refusal(400, "Invalid grammar specification.") if bad else wire.vllm(wire.Model(local, QUESTION))(request)
        )

    said = "Invalid grammar specification"
    with WireServer({**VLLM, CHAT: chat}) as server, pytest.raises(EngineError, match=said):
        vlmprobe.connect(server.url).generate(QUESTION, grammar="root", **GREEDY)


@pytest.mark.parametrize(("kind", "due"), [("schema", {"json": SCHEMA}), ("grammar", {"grammar": GRAMMAR})])
def test_what_vllm_in_this_process_is_given(monkeypatch, kind, due):
    told = SimpleNamespace(SamplingParams=lambda **given: given)
    monkeypatch.setitem(sys.modules, "vllm", told)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", SimpleNamespace(StructuredOutputsParams=dict))
    engine = VLLMEngine(None, None, "raw_logprobs")
    assert (
        engine._sampling(Decoding(), None, 1, None, asked(**{kind: GIVEN[kind]}).constraint)["structured_outputs"]
        == due
    )
    assert engine._sampling(Decoding(), None, 1, None)["structured_outputs"] is None
    assert engine.abilities.constrained == "constrained"
