"""Ends of prompts tokenised by themselves: their ids are those in the whole text."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

from vlmprobe.adapter.text_ends import TextEnds
from vlmprobe.testing.tiny.chat_formats import (
    cohere_tokenizer,
    gemma_tokenizer,
    llama3_tokenizer,
    mistral_tokenizer,
    qwen_tokenizer,
    vicuna_tokenizer,
)

TOKENIZERS = [cohere_tokenizer, gemma_tokenizer, llama3_tokenizer, mistral_tokenizer, qwen_tokenizer, vicuna_tokenizer]
PIECES = [
    "yes",
    " no",
    "\n",
    "  ",
    "红色",
    "🐯",
    "e\u0301",
    "<",
    "|>",
    "9",
    "Is it red?",
    "\t",
    "\u3000",
    ". ",
    "<|",
    "ß",
]


def tokenised(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("made", TOKENIZERS, ids=lambda each: each.__name__)
def test_ids_are_those_at_the_end_of_any_text(made):
    tokenizer = made()
    ends, draw = TextEnds(tokenizer), random.Random(0)
    marks = list(ends.cuts.values())
    assert marks
    for _ in range(400):
        text = "".join(draw.choice(PIECES + marks) for _ in range(12)) + draw.choice(marks)
        text += "".join(draw.choice(PIECES) for _ in range(draw.randrange(4)))
        whole = tokenised(tokenizer, text)
        start = ends.start(text, whole)
        assert start is not None
        assert text[start:].startswith(tuple(marks))
        alone = list(ends.ids(text[start:]))
        assert alone == whole[-len(alone) :]


def test_nothing_is_cut_at_a_token_that_depends_on_what_is_around_it():
    tokenizer = qwen_tokenizer()
    odd = {
        "<word>": AddedToken("<word>", special=True, single_word=True),
        "<plain>": AddedToken("<plain>", special=True, normalized=True),
        "<known>": AddedToken("<known>", special=False),
        "{": AddedToken("{", special=True, normalized=False),
        "@{": AddedToken("@{", special=True, normalized=False),
    }
    tokenizer.add_tokens(list(odd.values()))
    cuts = set(TextEnds(tokenizer).cuts.values())
    assert "<|im_start|>" in cuts
    assert "@{" in cuts
    assert cuts.isdisjoint({"<word>", "<plain>", "<known>", "{"})


def test_a_token_that_is_added_later_is_known():
    tokenizer = qwen_tokenizer()
    ends = TextEnds(tokenizer)
    assert ends.fits(tokenizer)
    assert not ends.fits(qwen_tokenizer())
    tokenizer.add_tokens([AddedToken("<late>", special=True, normalized=False)])
    assert not ends.fits(tokenizer)


def test_candidates_after_a_token_that_was_added_between_two_calls(checkpoint):
    import vlmprobe

    probe = vlmprobe.load(checkpoint("qwen3_vl"), device="cpu", dtype="float32")
    adapter = probe.engine.adapter
    prompt = adapter.encode([probe.conversation("Is it red?")]).prompts[0]
    before = adapter.continuation(prompt, "<yes>")
    adapter.tokenizer.add_tokens([AddedToken("<yes>", special=True, normalized=False)])
    after = adapter.continuation(prompt, "<yes>")
    assert len(before.ids) > 1
    assert after.ids == (adapter.tokenizer.convert_tokens_to_ids("<yes>"),)


CHANGES = {
    "normalizer": lambda backend: setattr(backend, "normalizer", Lowercase()),
    "pre_tokenizer": lambda backend: setattr(
        backend, "pre_tokenizer", Sequence([Split(" ", "isolated"), ByteLevel(False)])
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_candidates_after_the_tokenizer_was_changed_between_two_calls(checkpoint, change):
    import vlmprobe

    probe = vlmprobe.load(checkpoint("qwen3_vl"), device="cpu", dtype="float32")
    adapter, candidate = probe.engine.adapter, "YES 1 a tiger"
    probe.score("Is it red?", [candidate])
    CHANGES[change](adapter.tokenizer.backend_tokenizer)
    scores = probe.score("Is it red?", [candidate])
    whole = adapter.tokenize(adapter.render([probe.conversation("Is it red?")])[0] + candidate)
    assert scores.tables[0].ids.tolist() == whole[-len(scores.tables[0]) :]


@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "mllama", "llava", "idefics3", "internvl", "mistral3"])
def test_a_candidate_is_tokenised_as_in_the_whole_text(probe_of, name):
    """The ids of prompt and candidate written as one text, which the tokenizer cuts where it likes."""
    probe = probe_of(name)
    adapter, draw = probe.engine.adapter, random.Random(1)
    for _ in range(30):
        question = "".join(draw.choice(PIECES) for _ in range(5)) + "?"
        candidate = "".join(draw.choice(PIECES) for _ in range(1 + draw.randrange(3)))
        prompt = adapter.encode([probe.conversation(question)]).prompts[0]
        found = adapter.continuation(prompt, candidate)
        whole = adapter.tokenize(prompt.text + candidate)
        mine = [*prompt.ids[: found.shared].tolist(), *found.ids]
        assert mine == whole, (question, candidate)
