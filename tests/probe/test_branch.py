"""Branches: the numbers after another choice are those of a run in which the answer was written that way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from common import QUESTION, picture
from counting import counting
from reference import chat, columns, encode, extended, forward

import vlmprobe
from vlmprobe.errors import CapabilityError, GenerationOptionError, MessageError, ResultError

FEW = ("llava", "qwen2_vl", "mllama", "gemma3", "internvl")
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


@pytest.mark.parametrize("name", FEW)
def test_numbers_are_those_of_a_forced_run(probe_of, own, name):
    probe, model, image = probe_of(name), own(name), picture()
    result = probe.generate(QUESTION, image, **OPTIONS)
    choice = int(result.output.top_ids[2, 1])
    branch = probe.branch(result, 2, choice, keep="logits", **OPTIONS)
    ids = branch.output.ids.tolist()
    assert ids[:3] == [*result.output.ids[:2].tolist(), choice]
    assert len(ids) == 9
    inputs = encode(model, chat(QUESTION, image))
    rows = forward(model, extended(model, inputs, ids))[len(result.input_ids) - 1 : -1]
    expected = columns(rows, np.array(ids))
    np.testing.assert_allclose(branch.output.logits, rows, atol=1e-4)
    np.testing.assert_allclose(branch.output.logprobs, expected["logprobs"], atol=1e-4)
    np.testing.assert_allclose(branch.output.entropy, expected["entropy"], atol=1e-4)
    assert branch.output.ranks.tolist() == expected["ranks"].tolist()
    assert ids[3:] == rows[3:].argmax(axis=1).tolist()  # greedy from there on
    np.testing.assert_allclose(branch.prompt.logprobs, result.prompt.logprobs, atol=1e-5)
    assert branch.meta["branch"] == {"position": 2, "tokens": [branch.output.tokens[2]]}
    assert branch.meta["question"] == QUESTION


def test_the_same_choice_is_the_same_answer(probe_of):
    probe = probe_of("qwen2_vl")
    result = probe.generate(QUESTION, picture(), **OPTIONS)
    again = probe.branch(result, 3, int(result.output.ids[3]), max_new_tokens=2, min_new_tokens=2, do_sample=False)
    assert again.output.ids.tolist() == result.output.ids.tolist()
    np.testing.assert_allclose(again.output.logprobs, result.output.logprobs, atol=1e-4)
    assert again.text == result.text


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_one_picture_and_one_prefill(probe_of, name):
    probe, image = probe_of(name), picture()
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as plain:
        result = probe.generate(QUESTION, image, **OPTIONS)
    with counting(adapter.model, adapter.layers) as count:
        probe.branch(result, 1, int(result.output.top_ids[1, 2]), **OPTIONS)
    assert count.pictures == plain.pictures
    assert count.prefills == 1
    # Its hooks are there from the beginning: a session does not reuse features across a new hook on their encoder.
    with counting(adapter.model, adapter.layers) as count, probe.session(image) as session:
        first = session.generate(QUESTION, **OPTIONS)
        assert count.pictures == plain.pictures
        count.pictures.clear(), count.positions.clear()
        session.branch(first, 1, int(first.output.top_ids[1, 2]), **OPTIONS)
        assert not count.pictures
        assert count.prefills == 1


def test_a_choice_by_its_text(probe_of):
    probe = probe_of("llava")
    result = probe.generate(QUESTION, picture(), **OPTIONS)
    names = result.output.top_tokens[1]
    place = next(place for place in range(1, len(names)) if names[place] and names.count(names[place]) == 1)
    by_text = probe.branch(result, 1, names[place], **OPTIONS)
    assert by_text.output.ids[1] == result.output.top_ids[1, place]
    first = probe.branch(result, 0, "a cat sits there", **OPTIONS)
    assert first.text.startswith("a cat sits there")
    assert first.output.ids[: -OPTIONS["max_new_tokens"]].tolist() == probe.engine.answer_ids(
        probe.conversation(QUESTION, picture()), "a cat sits there"
    )
    several = probe.branch(result, 1, result.output.top_ids[1, :3].tolist(), **OPTIONS)
    assert several.output.ids[1:4].tolist() == result.output.top_ids[1, :3].tolist()


def test_of_a_saved_result_and_of_chat_messages(probe_of, tmp_path):
    probe, image = probe_of("llava"), picture()
    result = probe.generate(QUESTION, image, **OPTIONS)
    loaded = vlmprobe.load_result(result.save(tmp_path / "answer"))
    choice = int(result.output.top_ids[0, 1])
    branch = probe.branch(result, 0, choice, **OPTIONS)
    np.testing.assert_array_equal(branch.output.logprobs, probe.branch(loaded, 0, choice, **OPTIONS).output.logprobs)
    messages = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": QUESTION}]},
    ]
    long = probe.generate(messages, **OPTIONS)
    with pytest.raises(MessageError, match="question= and image="):
        probe.branch(long, 0, choice, **OPTIONS)
    assert probe.branch(long, 0, choice, question=messages, **OPTIONS).output.ids[0] == choice


def test_sampling_from_a_branch(probe_of):
    probe = probe_of("internvl")
    result = probe.generate(QUESTION, picture(), **OPTIONS)
    options = {"max_new_tokens": 5, "do_sample": True, "temperature": 0.7, "seed": 2}
    one, two = (probe.branch(result, 1, int(result.output.top_ids[1, 1]), **options) for _ in range(2))
    assert one.output.ids.tolist() == two.output.ids.tolist()
    assert np.isnan(one.output.scores[:2]).all()
    assert not np.isnan(one.output.scores[2:]).any()


def test_a_picture_that_the_result_holds_only_reduced(probe_of):
    probe, large = probe_of("llava"), picture(width=700, height=600)
    result = probe.generate(QUESTION, large, **OPTIONS)
    choice = int(result.output.top_ids[1, 1])
    with pytest.raises(MessageError, match=r"only downscaled.*image="):
        probe.branch(result, 1, choice, **OPTIONS)
    branch = probe.branch(result, 1, choice, image=large, **OPTIONS)
    np.testing.assert_allclose(branch.output.logprobs[0], result.output.logprobs[0], atol=1e-5)
    with pytest.raises(MessageError, match=r"images of .*700, 600"):
        probe.branch(result, 1, choice, image=result.images[0], **OPTIONS)
    with probe.session(large) as session:
        assert session.branch(session.generate(QUESTION, **OPTIONS), 1, choice, **OPTIONS).output.ids[1] == choice


def test_errors_before_anything_runs(probe_of):
    probe, image = probe_of("llava"), picture()
    result = probe.generate(QUESTION, image, **OPTIONS)
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as count:
        for wrong in (6, -1, True, "1", 1.0):
            with pytest.raises(ResultError, match="from 0 to 5"):
                probe.branch(result, wrong, 5)
        for wrong in ("", [], None, [True], -3, 10**7, 1.5):
            with pytest.raises(MessageError, match=r"token|id"):
                probe.branch(result, 1, wrong)
        with pytest.raises(MessageError, match="their prompts differ"):
            probe.branch(result, 1, 5, question="What is this?", image=image)
        with pytest.raises(GenerationOptionError, match="max_new_token"):
            probe.branch(result, 1, 5, max_new_token=3)
    assert not count.positions


def test_an_engine_that_cannot_is_told(probe_of):
    probe = probe_of("llava")
    result = probe.generate(QUESTION, picture(), **OPTIONS)

    class Server:
        def check(self, conversations, options): ...

    with pytest.raises(CapabilityError, match="Server"):
        replace(probe, engine=Server()).branch(result, 1, 5)

    class Ignores(type(probe.engine)):
        def generate(self, conversations, options):
            return super().generate(conversations, replace(options, begin=()))

    with pytest.raises(CapabilityError, match="cannot begin"):
        replace(probe, engine=Ignores(probe.engine.adapter)).branch(result, 1, int(result.output.top_ids[1, 1]))
