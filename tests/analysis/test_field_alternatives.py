"""The likeliest values of a field, against all sequences of tokens that write them, by plain forwards."""

from __future__ import annotations

import itertools
import json
import zlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import vlmprobe
from vlmprobe.analysis import field_alternatives, fields
from vlmprobe.analysis.json_reader import value_begun
from vlmprobe.analysis.value_search import NextTokens, Search
from vlmprobe.errors import CapabilityError, ResultError, VlmprobeWarning

QUESTION = "Describe the picture."
TEXT = '{"n": 123, "colour": "red", "ok": true}'
LIKELY = '0123456789 ,"}truefalsn'  # characters that the biased model writes


@pytest.fixture(scope="module")
def probe():
    """The embedded model, which never saw JSON, made to write what JSON is made of."""
    made = vlmprobe.load("demo", check=False)
    outer, tokenizer = made.engine.adapter.model, made.engine.adapter.tokenizer
    head = torch.nn.Linear(*reversed(outer.lm_head.weight.shape))
    ids = [tokenizer.convert_tokens_to_ids(each) for each in LIKELY.replace(" ", "Ġ")]
    ids += tokenizer.convert_tokens_to_ids(["red", "Ġred", "two"])
    with torch.no_grad():
        head.weight.copy_(outer.lm_head.weight * 0.08)
        head.bias.zero_()
        head.bias[ids] += 12
        head.bias[ids[:10]] += 3  # digits
    outer.lm_head = head
    return made


@pytest.fixture(scope="module")
def result(probe):
    """An answer of given tokens."""
    begun = probe.generate(QUESTION, max_new_tokens=1)
    return replace(begun, text=TEXT, output=probe.score(QUESTION, [TEXT]).tables[0])


class Forwards:
    """Plain forwards of transformers, and all ways to write a text in tokens."""

    def __init__(self, probe, before):
        adapter = probe.engine.adapter
        self.model, tokenizer = adapter.model, adapter.tokenizer
        turn = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
        options = {"tokenize": True, "add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        prompt = adapter.processor.apply_chat_template(turn, **options)["input_ids"][0].tolist()
        self.begin = prompt + tokenizer(before).input_ids
        special = set(tokenizer.all_special_ids)
        self.texts = {token: tokenizer.decode([token]) for token in range(len(tokenizer)) if token not in special}
        self.after = {}

    def ask(self, beginnings):
        """Reads the next tokens after these, whose lengths are the same."""
        ids = torch.tensor([[*self.begin, *each] for each in beginnings])
        with torch.inference_mode():
            rows = self.model(input_ids=ids).logits[:, -1].double().softmax(-1).numpy()
        self.after |= zip(map(tuple, beginnings), rows, strict=True)

    def probability(self, ids):
        """Of a sequence of tokens after the beginning."""
        reach = 1.0
        for end in range(len(ids)):
            if ids[:end] not in self.after:
                self.ask([ids[:end]])
            reach *= self.after[ids[:end]][ids[end]]
        return reach

    def written(self, text, ids=()):
        """All sequences of tokens that begin with a text, the last of which may go on behind it."""
        for token, each in self.texts.items():
            if each.startswith(text):
                yield (*ids, token)
            elif each and text.startswith(each):
                yield from self.written(text[len(each) :], (*ids, token))


def test_numbers_of_three_digits_have_the_probability_of_all_sequences_that_write_them(probe, result):
    forwards = Forwards(probe, '{"n":')
    token = {text: token for token, text in forwards.texts.items()}
    ends = [each for each, text in forwards.texts.items() if text[:1] in tuple(",:{}[]\"'` \n\t\r\f\v")]
    digits = [token[each] for each in "0123456789"]
    for blank, length in itertools.product(([], [token[" "]]), range(4)):
        forwards.ask([(*blank, *each) for each in itertools.product(digits, repeat=length)])
    expected = {}
    for number in range(100, 1000):
        ids = tuple(token[each] for each in str(number))
        ways = [ids, (token[" "], *ids)]  # with more white space it is below the tolerance
        expected[number] = sum(forwards.probability(way) * forwards.after[way][ends].sum() for way in ways)
    found = field_alternatives(probe, result, "n", values=range(100, 1000), least=1e-8, rows=10_000)
    table = dict(zip(found.values, found.probability.tolist(), strict=True))
    assert len(found) == 900
    assert sum(expected.values()) > 0.02
    np.testing.assert_allclose([table[each] for each in expected], list(expected.values()), rtol=0, atol=1e-5)
    np.testing.assert_allclose([table[each] for each in expected], list(expected.values()), rtol=0.02)
    assert found.unexplored < 1e-3
    assert found.rest == pytest.approx(1 - found.probability.sum())
    assert found.values[int(np.flatnonzero(found.is_given)[0])] == 123


def test_values_of_an_enum_in_every_tokenisation(probe, result):
    forwards = Forwards(probe, '{"n": 123, "colour":')
    values = ["red", "te", None]
    found = field_alternatives(probe, result, "colour", schema={"properties": {"colour": {"enum": values}}}, least=1e-9)
    table = dict(zip(found.values, found.probability.tolist(), strict=True))
    for value in values[:2]:
        ways = [way for blank in ("", " ") for way in forwards.written(f'{blank}"{value}"')]
        assert len(ways) >= (4 if value == "red" else 2)
        assert table[value] == pytest.approx(sum(map(forwards.probability, ways)), abs=1e-7, rel=0.01)
    assert set(table) == set(values)
    assert found.is_given.tolist() == [value == "red" for value in found.values]
    assert "".join(found.written) in ('"red""te"null', '"te""red"null', 'null"red""te"', 'null"te""red"')


def test_booleans_of_a_schema_are_both_there(probe, result):
    found = field_alternatives(probe, result, "ok", schema={"properties": {"ok": {"type": "boolean"}}}, least=1e-9)
    forwards = Forwards(probe, '{"n": 123, "colour": "red", "ok":')
    for value, probability in zip(found.values, found.probability, strict=True):
        text = json.dumps(value)
        ways = [way for blank in ("", " ") for end in ",}] " for way in forwards.written(f"{blank}{text}{end}")]
        assert probability == pytest.approx(sum(map(forwards.probability, ways)), abs=1e-8, rel=0.05)
    assert set(found.values) == {True, False}


class OnlyScores:
    """An engine that scores texts, and nothing else."""

    def __init__(self, engine):
        self.engine = engine

    def score(self, conversation, candidates, options):
        return self.engine.score(conversation, candidates, options)


def test_an_engine_that_only_scores_gives_lower_bounds(probe, result):
    values = [*range(100), "red"]
    whole = field_alternatives(probe, result, "n", values=values, least=1e-6)
    scored = field_alternatives(replace(probe, engine=OnlyScores(probe.engine)), result, "n", values=values, least=1e-6)
    upper = dict(zip(whole.values, whole.at_most, strict=True))
    known = {value: each for value, each in zip(scored.values, scored.probability, strict=True) if each > 0}
    assert len(known) > 5
    assert all(each <= upper[value] + 1e-7 for value, each in known.items())
    lower = dict(zip(whole.values, whole.probability, strict=True))
    assert all(upper >= lower[value] - 1e-7 for value, upper in zip(scored.values, scored.at_most, strict=True))


def test_an_engine_that_tokenises_the_answer_otherwise_says_so(probe, result):
    table = replace(result.output, tokens=["{", '"', *result.output.tokens[1:]][: len(result.output.tokens)])
    other = replace(result, output=replace(table, tokens=['{"', *result.output.tokens[2:], ""]))
    with pytest.raises(CapabilityError, match="another way than it was generated"):
        field_alternatives(replace(probe, engine=OnlyScores(probe.engine)), other, "ok")


# -- the search, on a language of a few tokens ------------------------------------------------------------

VOCABULARY = ["1", "2", "12", ".5", "0", ",", "}", " ", '"', 'a"', "b", '", ', "null", "\\", "<end>"]


def named(value):
    return value.kind, repr(float(value.value) if value.kind == "number" else value.value)


@dataclass
class Toy:
    """Next tokens that depend on all tokens before, drawn once."""

    blind: tuple = ()  # beginnings that cannot be asked for

    def after(self, ids):
        draws = np.random.default_rng(zlib.crc32(repr(ids).encode())).normal(0, 2, len(VOCABULARY))
        draws[5:7] += 2  # so that values end
        return np.exp(draws - np.log(np.exp(draws).sum()))

    def __call__(self, beginnings, at_least):
        return [
            None if ids in self.blind else self._kept(self.after(ids), least)
            for ids, least in zip(beginnings, at_least, strict=True)
        ]

    def _kept(self, shares, least):
        kept = np.flatnonzero(shares >= least)
        texts = [VOCABULARY[each] for each in kept]
        return NextTokens(kept, np.log(shares[kept]), texts, kept == len(VOCABULARY) - 1)

    def enumerated(self, lead, length):
        """Probability of each value by all sequences of up to so many tokens, and what had not ended by then."""
        found, level = {}, {(): 1.0}
        for _ in range(length):
            longer = {}
            for ids, reach in level.items():
                for token, share in enumerate(self.after(ids)):
                    text = "".join(VOCABULARY[each] for each in (*ids, token))
                    if VOCABULARY[token] == "<end>" or not (text.startswith(lead) or lead.startswith(text)):
                        continue
                    begun = value_begun(text[len(lead) :])
                    if begun is None or not begun[1]:
                        longer[*ids, token] = reach * share
                    elif begun[0].kind != "none":
                        key = named(begun[0])
                        found[key] = found.get(key, 0.0) + reach * share
            level = longer
        return found, sum(level.values())


@pytest.mark.parametrize("lead", ["", " ", '", '])
def test_a_search_finds_what_all_sequences_add_up_to(lead):
    toy = Toy()
    expected, left = toy.enumerated(lead, 3)
    found = Search(toy, lead, None, 1e-6, 100_000).run(100_000)
    assert len(found.values) > 10
    for each in found.values:
        key = named(each)
        assert expected.get(key, 0.0) - 1e-12 <= each.probability + found.unexplored
        assert each.probability <= expected.get(key, 0.0) + left + 1e-12
    assert sum(each.probability for each in found.values) + found.unexplored <= 1 + 1e-9
    assert found.unexplored < 0.05


def test_the_k_likeliest_are_found_without_asking_for_all():
    whole = Search(Toy(), "", None, 1e-5, 100_000).run(100_000)
    some = Search(Toy(), "", None, 1e-5, 100_000).run(3)
    assert some.rows < whole.rows / 2
    assert [each.written for each in some.values[:3]] == [each.written for each in whole.values[:3]]
    for few, all_of_them in zip(some.values[:3], whole.values, strict=False):
        assert few.probability <= all_of_them.probability <= few.probability + some.unexplored


def test_what_cannot_be_asked_for_is_unexplored():
    bounded = Search(Toy(), "", None, 0.0, 1).run(5)
    assert bounded.rows == 1
    assert sum(each.probability for each in bounded.values) + bounded.unexplored <= 1
    assert Search(Toy(blind=((),)), "", None, 1e-3, 10).run(1).unexplored == 1


def test_one_value_written_in_two_ways_is_one_value():
    found = Search(Toy(), "", [0.5, 12, None, "b"], 1e-9, 10_000).run(1)
    forms = {each.written for each in found.values}
    assert {"12", "null", '"b"'} <= forms
    twelve = next(each for each in found.values if each.value == 12)
    expected, left = Toy().enumerated("", 3)
    assert expected["number", "12.0"] == pytest.approx(twelve.probability, abs=left + 1e-6)
    assert twelve.probability > twelve.likeliest  # "12", and "1" with "2"


# -- what is asked for ------------------------------------------------------------------------------------


def test_one_field_that_is_there_is_asked_for(probe, result):
    for path, told in (("m", "no value"), ("", "3 fields, such as n"), ("colour.x", "no value")):
        with pytest.raises(ResultError, match=told):
            field_alternatives(probe, result, path)
    with pytest.raises(ResultError, match="changed after"), pytest.warns(VlmprobeWarning):
        field_alternatives(probe, replace(result, text='{"n": 124}'), "n")
    for wrong in ({"k": 0}, {"rows": 0}, {"least": 1.0}, {"values": []}, {"values": "red"}):
        with pytest.raises(ValueError, match=r"k and rows|least|values"):
            field_alternatives(probe, result, "n", **wrong)


def test_alternatives_can_be_shown(probe, result):
    found = field_alternatives(probe, result, "n", k=3)
    assert len(found) == 3
    frame = found.to_pandas()
    assert frame.columns.tolist() == ["value", "written", "kind", "probability", "at_most", "is_given"]
    assert repr(found).startswith("Alternatives(n: ")
    told = json.loads(json.dumps(found.to_dict()))
    assert told["path"] == "n"
    assert len(told["values"]) == 3
    labels = [each.get_text() for each in found.plot().get_yticklabels()]
    assert labels[-1] == "all else"
    assert "unexplored" in found._repr_html_()
    assert fields(result, "n").probability[0] > 0
