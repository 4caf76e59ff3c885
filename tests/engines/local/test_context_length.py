"""A prompt beyond the model's context: a warning with both numbers, and the numbers of the model's own forward."""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from common import QUESTION, picture
from reference import chat, columns, encode, forward
from transformers import BloomConfig, LlamaConfig

import vlmprobe
from vlmprobe.analysis.image_contrast import contrast
from vlmprobe.analysis.logit_lens import lens
from vlmprobe.engines.local.context_length import context_length
from vlmprobe.errors import VlmprobeWarning

CALL = {"max_new_tokens": 2, "do_sample": False}
FEW = ("llava", "qwen3_vl", "gemma3")


@pytest.fixture
def short(own):
    """Name of a family -> a probe of it whose text config says that its context ends with, or before, the prompt."""

    def make(name: str, *, by: int):
        held = own(name)
        length = encode(held, chat(QUESTION, picture()))["input_ids"].shape[1]
        model = copy.copy(held.model)
        model.config = copy.deepcopy(held.model.config)
        model.config.get_text_config().max_position_embeddings = length - by
        return vlmprobe.wrap(model, held.processor), length

    return make


def told(call) -> list:
    """What Python shows by default: once for each line that warns of the same, here the line of the call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        call()
    return [each for each in caught if issubclass(each.category, VlmprobeWarning)]


@pytest.mark.parametrize("name", FEW)
def test_a_prompt_beyond_the_context_is_told_once_with_both_numbers(name, short, own):
    probe, length = short(name, by=1)
    found = []
    calls = {
        "generate": lambda: found.append(probe.generate(QUESTION, picture(), **CALL)),
        "score": lambda: probe.score(QUESTION, ["a", "b", "tiger"], picture()),
        "contrast": lambda: contrast(probe, QUESTION, image=picture(), answer="a tiger", against="blank"),
        "lens": lambda: lens(probe, QUESTION, image=picture(), answer="a tiger"),
        "several": lambda: list(
            probe.generate_many([{"question": QUESTION, "image": picture()}] * 2, batch_size=2, progress=False, **CALL)
        ),
        "branch": lambda: probe.branch(found[0], 1, 5, **CALL),
        "sample": lambda: probe.sample(QUESTION, picture(), n=3, max_new_tokens=2),
    }
    for what, call in calls.items():
        caught = told(call)
        assert len(caught) == 1, what
        assert f"The prompt has {length} tokens and the model's context {length - 1} " in str(caught[0].message), what
        assert caught[0].filename == __file__, what
    rows = forward(own(name), encode(own(name), chat(QUESTION, picture())))
    text = [row for row, kind in enumerate(found[0].prompt.kinds) if kind != "image" and row]
    expected = columns(rows[:-1], found[0].input_ids[1:])["logprobs"]
    assert np.abs(found[0].prompt.logprobs[text] - expected[found[0].prompt.positions[text] - 1]).max() < 1e-4


@pytest.mark.parametrize("name", FEW)
def test_a_prompt_that_fills_the_context_is_not(name, short):
    probe, _ = short(name, by=0)
    assert not told(lambda: probe.generate(QUESTION, picture(), **CALL))
    assert not told(lambda: probe.score(QUESTION, ["a", "b"], picture()))


def test_a_model_that_does_not_say_is_not_warned_of():
    for config in (SimpleNamespace(), SimpleNamespace(max_position_embeddings=None), BloomConfig()):
        assert context_length(config) is None
    assert context_length(LlamaConfig(max_position_embeddings=77)) == 77
