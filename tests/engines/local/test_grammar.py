"""Constrained answers: which tokens are allowed, and what the numbers mean, against a search of one's own."""

from __future__ import annotations

import json
import sys

import jsonschema
import numpy as np
import pytest
import torch
from transformers import PrefixConstrainedLogitsProcessor

import vlmprobe
from vlmprobe.errors import GenerationOptionError, MissingExtraError

QUESTION = "What colour is it?"
WORDS = ("red nine", "red seven", "green", "blue one")  # none begins with another one
CHOICE = "start: " + " | ".join(f'"{each}"' for each in WORDS)
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["colour", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def probe():
    return vlmprobe.load("demo")


@pytest.fixture(scope="module")
def vocabulary(probe):
    """The text of every token that is not special."""
    alone, special = probe.engine.detokenizer.alone, probe.engine.detokenizer.special
    return {each: alone(each) for each in range(len(probe.engine.adapter.tokenizer)) if each not in special}


@pytest.fixture(scope="module")
def chosen(probe):
    return probe.generate(QUESTION, grammar=CHOICE, keep="logits", max_new_tokens=20)


def allowed_after(written, vocabulary, ends):
    """The tokens that go on to one of the words: a search that knows no grammar."""
    if written in WORDS:
        return sorted(ends)
    return [each for each, text in vocabulary.items() if text and any(w.startswith(written + text) for w in WORDS)]


def test_numbers_of_a_constrained_answer_by_hand(probe, vocabulary, chosen):
    assert chosen.text in WORDS
    assert chosen.finish_reason == "stop"
    output, written = chosen.output, ""
    for t, token in enumerate(output.ids.tolist()):
        row = torch.from_numpy(output.logits[t].copy()).double()
        allowed = allowed_after(written, vocabulary, probe.engine.adapter.end_ids)
        assert token in allowed
        whole, inside = row.logsumexp(0), row[allowed].logsumexp(0)
        assert output.logprobs[t] == pytest.approx(float(row[token] - whole), abs=1e-5)
        assert output.scores[t] == pytest.approx(float(row[token] - inside), abs=1e-5)
        assert output.mass_allowed[t] == pytest.approx(float((inside - whole).exp()), rel=1e-5)
        written += vocabulary.get(token, "")
    assert chosen.mass_allowed == pytest.approx(np.prod(output.mass_allowed.astype(float)), rel=1e-6)
    assert chosen.confidence == pytest.approx(chosen.mass_allowed * np.exp(output.scores.sum()), rel=1e-4)


def test_raw_numbers_are_those_of_the_same_answer_scored(probe, chosen):
    """A plain forward over the answer's text knows of no constraint."""
    scores = probe.score(QUESTION, [chosen.text])
    assert chosen.output.ids[:-1].tolist() == scores.tables[0].ids.tolist()
    np.testing.assert_allclose(chosen.output.logprobs[:-1], scores.tables[0].logprobs, atol=1e-5)


def test_an_answer_without_constraint_has_no_mass(probe):
    result = probe.generate(QUESTION, max_new_tokens=2)
    assert result.output.mass_allowed is None
    assert np.isnan(result.mass_allowed)


def test_a_schema_is_obeyed_and_told(probe):
    result = probe.generate(QUESTION, schema=SCHEMA, max_new_tokens=200)
    jsonschema.validate(json.loads(result.text), SCHEMA)
    assert result.meta["constraint"] == {"schema": SCHEMA}
    cut = probe.generate(QUESTION, schema=SCHEMA, max_new_tokens=3)
    assert cut.finish_reason == "length"
    assert result.text.startswith(cut.text)


class Model:
    """As a Pydantic model."""

    @staticmethod
    def model_json_schema():
        return SCHEMA


def test_a_schema_in_every_form(probe, tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    wanted = probe.generate(QUESTION, schema=SCHEMA, max_new_tokens=12).text
    for given in (json.dumps(SCHEMA), path, str(path), Model):
        assert probe.generate(QUESTION, schema=given, max_new_tokens=12).text == wanted


def test_samples_obey_and_a_temperature_is_in_scores_alone(probe, vocabulary):
    ends = probe.engine.adapter.end_ids
    for seed in range(6):
        result = probe.generate(QUESTION, grammar=CHOICE, temperature=3.0, seed=seed, top_k=0, keep="logits")
        assert result.text in WORDS
        row = torch.from_numpy(result.output.logits[0].copy()).double()
        allowed = allowed_after("", vocabulary, ends)
        token = int(result.output.ids[0])
        assert result.output.scores[0] == pytest.approx(
            float(row[token] / 3 - (row[allowed] / 3).logsumexp(0)), abs=1e-4
        )
        assert result.output.mass_allowed[0] == pytest.approx(float(row.softmax(0)[allowed].sum()), rel=1e-4)


def test_a_batch_gives_the_same_as_single_calls(probe):
    questions = [QUESTION, "How many are there?", "Name the digit, please."]
    alone = [probe.generate(each, grammar=CHOICE) for each in questions]
    together = list(probe.generate_many(questions, grammar=CHOICE, batch_size=3, progress=False))
    assert together[0].meta["batch_size"] == 3
    for one, other in zip(alone, together, strict=True):
        assert one.text == other.text
        np.testing.assert_allclose(one.output.mass_allowed, other.output.mass_allowed, rtol=1e-4)


def test_a_stream_gives_the_same_rows(probe, chosen):
    with probe.stream(QUESTION, grammar=CHOICE) as tokens:
        mass = [row.mass_allowed[0] for row in tokens]
    np.testing.assert_allclose(mass, chosen.output.mass_allowed, rtol=1e-5)
    assert tokens.result.text == chosen.text


def test_a_branch_goes_on_in_the_grammar(probe, chosen):
    free = probe.generate(QUESTION, max_new_tokens=4)
    other = next(word for word in WORDS if not word.startswith(chosen.text[:2]))
    branch = probe.branch(free, 0, other[:1], grammar=CHOICE)
    assert branch.text in WORDS
    assert branch.text.startswith(other[:1])
    assert np.isnan(branch.output.mass_allowed[0])
    with pytest.raises(GenerationOptionError, match="begin with 'x', which its grammar forbids"):
        probe.branch(free, 0, "x", grammar=CHOICE)


def test_saved_and_shown(probe, chosen, tmp_path):
    again = vlmprobe.load_result(chosen.save(tmp_path / "result"))
    np.testing.assert_array_equal(again.output.mass_allowed, chosen.output.mass_allowed)
    assert chosen.to_pandas()["mass_allowed"].tolist() == chosen.output.mass_allowed.tolist()
    assert chosen.to_dict()["output"][0]["mass_allowed"] == pytest.approx(float(chosen.output.mass_allowed[0]))


def test_a_function_is_that_of_transformers(probe):
    some = [int(each) for each in probe.generate(QUESTION, max_new_tokens=1).output.top_ids[0][2:6]]

    def listed(batch, ids):
        return some

    ours = probe.generate(QUESTION, prefix_allowed_tokens_fn=listed, max_new_tokens=4)
    theirs = probe.generate(QUESTION, logits_processor=[PrefixConstrainedLogitsProcessor(listed, 1)], max_new_tokens=4)
    assert ours.output.ids.tolist() == theirs.output.ids.tolist()
    np.testing.assert_allclose(ours.output.scores, theirs.output.scores, atol=1e-6)
    assert ours.output.mass_allowed[0] == pytest.approx(np.exp(ours.output.top_logprobs[0][2:6]).sum(), rel=1e-4)
    assert ours.meta["constraint"] == {"prefix_allowed_tokens_fn": "listed"}


REFUSED = [
    ({"schema": {"type": "integer", "minimum": 5, "maximum": 3}}, "Unsatisfiable schema"),
    ({"schema": {"not": {"type": "null"}}}, "Unimplemented keys"),
    ({"schema": 5}, "schema is a JSON Schema"),
    ({"schema": "{"}, "schema is no JSON"),
    ({"schema": "no/such/file.json"}, "cannot be read"),
    ({"schema": {"a": float("nan")}}, "schema cannot be used"),
    ({"grammar": ""}, "text of a grammar"),
    ({"grammar": "start: [a"}, "grammar cannot be used"),
    ({"grammar": 'start: "a" start'}, "does it have an end"),
    (
        {
            "schema": {
                "$defs": {"a": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/a"}}},
                "$ref": "#/$defs/a",
            }
        },
        ".",
    ),
    ({"grammar": CHOICE, "schema": SCHEMA}, "give one of them"),
    ({"grammar": CHOICE, "num_beams": 2}, "beams cannot be constrained"),
    ({"grammar": CHOICE, "eos_token_id": []}, "needs an end token"),
    ({"prefix_allowed_tokens_fn": 5}, "must be a function"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refused_before_anything_runs(probe, options, message, monkeypatch):
    monkeypatch.setattr(type(probe.engine.adapter.model), "generate", None)
    with pytest.raises(GenerationOptionError, match=message):
        probe.generate(QUESTION, **options)


def test_a_grammar_that_the_tokenizer_cannot_spell(probe, monkeypatch):
    """No token of the vocabulary has the byte that the grammar needs next."""
    monkeypatch.setattr(
        type(probe.engine.detokenizer), "bytes_of", without(b"9", type(probe.engine.detokenizer).bytes_of)
    )
    fresh = vlmprobe.load("demo")
    with pytest.raises(GenerationOptionError, match="no token with which the answer could go on as the grammar says"):
        fresh.generate(QUESTION, grammar='start: /[a-z]/ "9" | "88888"')
    monkeypatch.setattr(type(fresh.engine.adapter.model), "generate", None)
    with pytest.raises(GenerationOptionError, match="no tokens for an answer that obeys this grammar: after 'a'"):
        fresh.generate(QUESTION, grammar='start: "a9"')


def without(byte, real):
    def bytes_of(self, each):
        found = real(self, each)
        return b"" if byte in found else found

    return bytes_of


def test_other_options_that_leave_no_token(probe):
    with pytest.raises(GenerationOptionError, match=r"min_new_tokens.* rule out what the grammar allows"):
        probe.generate(QUESTION, grammar='start: "red"', min_new_tokens=8)


def test_without_llguidance(probe, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match="llguidance is needed"):
        probe.generate(QUESTION, grammar='start: "violet"')
