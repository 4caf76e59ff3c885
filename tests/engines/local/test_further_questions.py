"""Questions about one image: the processor runs for the first, and the encodings are those of each alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from common import picture

import vlmprobe
from vlmprobe.engines.local.further_questions import ONLY_IDS, encode_each, encode_groups
from vlmprobe.errors import MessageError

QUESTIONS = ["Is there a cat?", "红色吗？", "Which number is it,\n and <which> colour?", "  Who", "Is there a cat?"]
FAMILIES = ["qwen3_vl", "internvl", "llava", "gemma3", "mllama", "idefics3", "mistral3", "ovis2", "ernie4_5_vl_moe"]


@pytest.fixture
def loaded(checkpoint):
    """A probe of its own, for what is remembered by adapter."""
    return lambda name: vlmprobe.load(checkpoint(name), device="cpu", dtype="float32")


def conversations(probe, questions, image):
    return [probe.conversation(each, image) for each in questions]


def assert_equal(one, other):
    assert one.prompts[0].text == other.prompts[0].text
    assert np.array_equal(one.prompts[0].ids, other.prompts[0].ids)
    assert one.prompts[0].spans == other.prompts[0].spans
    assert one.inputs.keys() == other.inputs.keys()
    for name, value in one.inputs.items():
        assert torch.equal(value, other.inputs[name]), name
        assert value.dtype == other.inputs[name].dtype, name


def runs_of(adapter, monkeypatch):
    """The conversations of each run of the processor."""
    found, whole = [], adapter.process
    monkeypatch.setattr(adapter, "process", lambda several: found.append(len(several)) or whole(several))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_encodings_are_those_of_each_alone(loaded, name):
    probe = loaded(name)
    adapter = probe.engine.adapter
    for image in (picture(), picture(3)):  # about the first it is tried out
        asked = conversations(probe, QUESTIONS, image)
        for mine, each in zip(encode_each(adapter, asked), asked, strict=True):
            assert_equal(mine, adapter.encode([each]))


def test_the_processor_runs_once(loaded, monkeypatch):
    probe = loaded("qwen3_vl")
    adapter = probe.engine.adapter
    runs = runs_of(adapter, monkeypatch)
    encode_each(adapter, conversations(probe, QUESTIONS, picture()))
    assert runs == [1] * len(QUESTIONS), "to compare"
    runs.clear()
    encode_each(adapter, conversations(probe, QUESTIONS, picture(3)))
    assert runs == [1]


def test_a_question_that_a_processor_may_read_is_given_to_it(loaded, monkeypatch):
    probe = loaded("qwen3_vl")
    adapter = probe.engine.adapter
    encode_each(adapter, conversations(probe, QUESTIONS, picture()))
    asked = conversations(probe, [*QUESTIONS, "Is <|endoftext|> there?"], picture())
    runs = runs_of(adapter, monkeypatch)
    found = encode_each(adapter, asked)
    assert runs == [1, 1]
    assert_equal(found[-1], adapter.encode(asked[-1:]))


def test_a_question_with_a_placeholder_is_refused(loaded):
    probe = loaded("qwen3_vl")
    adapter = probe.engine.adapter
    encode_each(adapter, conversations(probe, QUESTIONS, picture()))
    with pytest.raises(MessageError, match="image_pad"):
        encode_each(adapter, conversations(probe, ["Who?", "Is <|image_pad|> there?"], picture()))


def test_raw_prompts_of_which_some_say_where_the_image_is(loaded):
    probe = loaded("llava")
    adapter = probe.engine.adapter
    encode_each(adapter, conversations(probe, QUESTIONS, picture()))
    texts = ["Who?", "What is it?", "yes <image>. Who?", "<image>Who is it?", "Who is <image?"]
    for order in (texts, texts[::-1], texts[2:] + texts[:2]):
        asked = [probe.conversation(each, picture(), raw_prompt=True) for each in order]
        for mine, each in zip(encode_each(adapter, asked), asked, strict=True):
            assert_equal(mine, adapter.encode([each]))


def test_a_processor_that_encodes_images_with_the_question(loaded, monkeypatch):
    probe = loaded("qwen3_vl")
    adapter = probe.engine.adapter
    whole = adapter.process

    def process(several):
        made = whole(several)
        return {**made, "pixel_values": made["pixel_values"] + made["input_ids"].sum() % 7}

    monkeypatch.setattr(adapter, "process", process)
    asked = conversations(probe, QUESTIONS, picture())
    for _ in range(2):
        for mine, each in zip(encode_each(adapter, asked), asked, strict=True):
            assert_equal(mine, adapter.encode([each]))
    assert ONLY_IDS[adapter] is False


def test_equal_questions_prove_nothing(loaded):
    probe = loaded("qwen3_vl")
    encode_each(probe.engine.adapter, conversations(probe, ["Who?", "Who?"], picture()))
    assert probe.engine.adapter not in ONLY_IDS


def test_groups_about_several_images(loaded):
    probe = loaded("internvl")
    adapter = probe.engine.adapter
    groups = [conversations(probe, QUESTIONS, picture(3)), conversations(probe, ["What is it?", "Who?"], picture())]
    assert encode_groups(adapter, groups) is None, "not tried yet"
    for group in groups:
        encode_each(adapter, group)
    aside, found = encode_groups(adapter, groups)
    assert torch.equal(aside["pixel_values"], adapter.encode([group[0] for group in groups]).inputs["pixel_values"])
    for mine, group in zip(found, groups, strict=True):
        for encoding, each in zip(mine, group, strict=True):
            due = adapter.encode([each])
            assert np.array_equal(encoding.prompts[0].ids, due.prompts[0].ids)
            assert torch.equal(encoding.inputs["attention_mask"], due.inputs["attention_mask"])
