"""Answers that are drawn under random schemas and some grammars obey them, whatever the tokenizer.

They are drawn by random scores in place of a model's, and what is written is checked by libraries that know nothing of
tokens: ``jsonschema``, ``re`` and ``ast``.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from random_schemas import random_schema
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import GenerationConfig, PreTrainedTokenizerFast

import vlmprobe
from vlmprobe.analysis.json_reader import read_json
from vlmprobe.engines.base import Options
from vlmprobe.engines.constraint import constraint_of
from vlmprobe.engines.local.grammar import Grammars
from vlmprobe.errors import CapabilityError
from vlmprobe.results.detokenize import Detokenizer
from vlmprobe.testing import tiny

KINDS = ("internvl", "llava", "gemma3", "mllama", "paligemma")  # byte-level, and SentencePiece with byte fallback
FREE, MOST = 25, 250  # tokens that are drawn before an end is sought, and all
NOWHERE = torch.zeros(1, 0, dtype=torch.long)


class Drawer:
    """Draws answers with a tokenizer."""

    def __init__(self, tokenizer, ends):
        self.tokenizer, self.ends = tokenizer, ends
        self.detokenizer = Detokenizer(tokenizer)
        self.grammars = Grammars(SimpleNamespace(tokenizer=tokenizer), self.detokenizer)
        words = [self.detokenizer.alone(each) for each in range(len(tokenizer))]
        self.closing = torch.tensor([10.0 * bool(re.match(r"[\"\]})>]", word)) - len(word) for word in words])
        self.closing[list(ends)] = 100.0

    def mask(self, **constraint):
        config = GenerationConfig(eos_token_id=list(self.ends))
        return self.grammars.constrained(Options(constraint=constraint_of(constraint)), config).processors[-1]

    def draw(self, seeds, **constraint) -> list[tuple[str, bool]]:
        """An answer for each seed, as rows of one batch, and whether it has ended."""
        mask, rows = self.mask(**constraint), len(seeds)
        drawing = [torch.Generator().manual_seed(seed) for seed in seeds]
        ids, ended = NOWHERE.expand(rows, 0), torch.zeros(rows, dtype=torch.bool)
        for step in range(MOST):
            scores = torch.stack([torch.randn(len(self.tokenizer), generator=each) for each in drawing])
            left = mask(ids, scores + (self.closing if step >= FREE else 0))
            assert (left[~ended] == float("-inf")).any()  # something is ruled out, or nothing is tested
            ids = torch.cat([ids, left.argmax(dim=-1, keepdim=True)], dim=1)
            ended |= torch.isin(ids[:, -1], torch.tensor(self.ends))
            if ended.all():
                break
        return [(self._text(row), bool(done)) for row, done in zip(ids.tolist(), ended, strict=True)]

    def _text(self, ids: list[int]) -> str:
        stop = next((place for place, each in enumerate(ids) if each in self.ends), len(ids))
        return self.detokenizer.decode(ids[:stop])


@cache
def drawer(name: str) -> Drawer:
    """Of the tiny checkpoint of a family, whose model is not needed."""
    parts = tiny.family(name).make()
    tokenizer = getattr(parts.processor, "tokenizer", parts.processor)
    return Drawer(tokenizer, tuple(tokenizer.convert_tokens_to_ids(each) for each in parts.eos))


def require_valid(text: str, schema: dict) -> None:
    value = json.loads(text)
    dialect = jsonschema.Draft202012Validator
    jsonschema.validate(value, schema, dialect, format_checker=dialect.FORMAT_CHECKER)


@pytest.mark.parametrize(
    "seeds", [range(30), pytest.param(range(30, 1000), marks=pytest.mark.long)], ids=["30 schemas", "970 schemas"]
)
def test_random_schemas(seeds):
    cut = []
    for seed in seeds:
        schema = random_schema(seed)
        for text, ended in drawer(KINDS[seed % len(KINDS)]).draw([2 * seed, 2 * seed + 1], schema=schema):
            if ended:
                require_valid(text, schema)
            else:
                cut.append(text)
                assert read_json(f"[{text}").leaves  # of what was cut, that it is JSON so far
    assert len(cut) <= len(seeds) / 10  # few, or the ends are not tested


def vocabularies() -> list[str]:
    """Families, one for each vocabulary of those that can be built here."""
    found = {}
    for name in tiny.names():
        parts = tiny.family(name).make()
        tokenizer = getattr(parts.processor, "tokenizer", parts.processor)
        found.setdefault(frozenset(tokenizer.get_vocab().items()), name)
    return list(found.values())


@pytest.mark.long
def test_random_schemas_with_every_tokenizer():
    names = vocabularies()
    assert len(names) > 30
    for place, name in enumerate(names):
        for seed in range(10 * place, 10 * place + 10):
            schema = random_schema(seed)
            for text, ended in drawer(name).draw([seed], schema=schema):
                if ended:
                    require_valid(text, schema)


def test_random_schemas_with_a_model():
    probe = vlmprobe.load("demo")
    for seed in (1, 2, 3, 5, 8, 13):
        schema = random_schema(seed)
        result = probe.generate("What is it?", schema=schema, max_new_tokens=120, do_sample=True, seed=seed)
        if result.finish_reason == "stop":
            require_valid(result.text, schema)
        assert 0 <= result.mass_allowed <= 1


SUM = """
root ::= term (ws [-+*] ws term)*
term ::= number | "(" root ")"
number ::= [1-9] [0-9]{0,3}
ws ::= " "?
"""
LIST = """
start: item ("; " item)*
item: COLOUR " " NUMBER | "ничего"
COLOUR: /red|blue|синий|红/
NUMBER: /[0-9]{1,2}/
"""
DATES = 'start: DAY "." DAY "." /(19|20)[0-9]{2}/\nDAY: /[0-3][0-9]/'
ITEM = r"((red|blue|синий|红) [0-9]{1,2}|ничего)"


def is_sum(text: str) -> bool:
    return set(text) <= set("0123456789()+-* ") and bool(ast.parse(text, mode="eval"))


GRAMMARS = {
    "GBNF": (SUM, is_sum),
    "Lark": (LIST, re.compile(f"{ITEM}(; {ITEM})*").fullmatch),
    "Lark with a pattern": (DATES, re.compile(r"[0-3]\d\.[0-3]\d\.(19|20)\d\d").fullmatch),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GRAMMARS)
def test_grammars(name, kind):
    grammar, obeyed = GRAMMARS[name]
    ended = [text for text, done in drawer(kind).draw(range(6), grammar=grammar) if done]
    assert len(ended) >= 3
    assert all(map(obeyed, ended)), ended
    assert len(set(ended)) > 1


def test_a_tokenizer_whose_tokens_do_not_make_up_the_text_is_refused():
    """WordPiece writes a space between two tokens that neither of them holds."""
    words = ["[UNK]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", *(f"##{each}" for each in "abcdefghijklmnopqrstuvwxyz")]
    backend = Tokenizer(WordPiece({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]")
    with pytest.raises(CapabilityError, match="cannot be constrained: its tokenizer writes"):
        Drawer(tokenizer, (1,)).mask(grammar='root ::= "ab"')


DIGITS = {"type": "array", "items": {"type": "string", "pattern": "[0-9]"}, "minItems": 2, "maxItems": 2}
HARD = {
    "paligemma": {
        "type": "object",
        "properties": {"Größe": {"type": "number", "minimum": -12.55}},
        "required": ["Größe"],
    },
    "gemma3": {
        "type": "array",
        "items": {"type": "array", "prefixItems": [DIGITS], "items": False, "minItems": 1},
        "minItems": 1,
        "maxItems": 3,
    },
}


@pytest.mark.parametrize("kind", HARD)
def test_a_schema_whose_answers_are_hard_to_find_is_not_refused(kind):
    """Bugs were: -0.000... for ever, and strings that chance does not end, in the search for one whole answer."""
    for text, ended in drawer(kind).draw(range(3), schema=HARD[kind]):
        if ended:
            require_valid(text, HARD[kind])
