"""Logits processors of one's own, and visual contrastive decoding against a loop of plain forwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from common import QUESTION, picture
from counting import counting
from reference import chat, encode, extended, forward
from transformers import LogitsProcessor, SuppressTokensLogitsProcessor

from vlmprobe.analysis import image_variants
from vlmprobe.analysis.decoding import ImageContrast
from vlmprobe.engines.base import Options
from vlmprobe.errors import CapabilityError, GenerationOptionError

FEW = ("llava", "qwen2_vl", "qwen3_vl", "mllama", "gemma3", "internvl", "paligemma")
OPTIONS = {"max_new_tokens": 6, "do_sample": False}


def contrasted(own, ids: list[int], alpha: float, beta: float, real, other) -> torch.Tensor:
    """One step of the paper's equations 3 and 4, in float64, from two forwards over prompt and answer."""
    rows = []
    for image in (real, other):
        inputs = encode(own, chat(QUESTION, *([] if image is None else [image])))
        inputs = extended(own, inputs, ids) if ids else inputs
        rows.append(torch.from_numpy(forward(own, inputs)[-1]).double())
    probabilities = torch.softmax(rows[0], dim=-1)
    mixed = (1 + alpha) * rows[0] - alpha * rows[1]
    return torch.where(probabilities >= beta * probabilities.max(), mixed, -torch.inf)


@pytest.mark.parametrize("name", FEW)
def test_contrastive_decoding_is_the_papers(probe_of, own, name):
    probe, model, image = probe_of(name), own(name), picture()
    other = image_variants.diffused(image, 700, seed=3)
    strategy = ImageContrast(probe, QUESTION, image, alpha=1.5, beta=0.2, step=700, seed=3)
    result = probe.generate(QUESTION, image, logits_processor=[strategy], keep="logits", **OPTIONS)
    ids: list[int] = []
    for step, (token, score) in enumerate(zip(result.output.ids, result.output.scores, strict=True)):
        row = contrasted(model, ids, 1.5, 0.2, image, other)
        assert int(row.argmax()) == token, step
        assert score == pytest.approx(float(torch.log_softmax(row, dim=-1)[token]), abs=1e-3)
        ids.append(int(token))
    plain = probe.generate(QUESTION, image, **OPTIONS)
    raw = probe.engine.score_ids([probe_conversation(image)], ids, Options())[0]
    np.testing.assert_allclose(result.output.logprobs, raw.logprobs, atol=1e-4)  # raw numbers stay raw
    again = probe.generate(QUESTION, image, **OPTIONS)
    np.testing.assert_array_equal(plain.output.logprobs, again.output.logprobs)  # and the model is as before


def probe_conversation(image):
    from vlmprobe.inputs.messages import Conversation

    return Conversation.build(QUESTION, image)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama"])
def test_without_a_picture_positions_are_those_of_the_other_prompt(probe_of, own, name):
    """The contrast prompt is shorter, so a model that keeps rope deltas must not mix up the two."""
    probe, model, image = probe_of(name), own(name), picture()
    strategy = ImageContrast(probe, QUESTION, image, against="none", alpha=1.0, beta=0.05)
    result = probe.generate(QUESTION, image, logits_processor=[strategy], **OPTIONS)
    ids: list[int] = []
    for token in result.output.ids:
        assert int(contrasted(model, ids, 1.0, 0.05, image, None).argmax()) == token
        ids.append(int(token))


def test_it_serves_several_answers_and_branches(probe_of):
    probe, image = probe_of("qwen2_vl"), picture()
    strategy = ImageContrast(probe, QUESTION, image, alpha=2.0)
    first = probe.generate(QUESTION, image, logits_processor=[strategy], **OPTIONS)
    second = probe.generate(QUESTION, image, logits_processor=[strategy], **OPTIONS)
    np.testing.assert_array_equal(first.output.ids, second.output.ids)
    np.testing.assert_allclose(first.output.scores, second.output.scores, atol=1e-5)
    from vlmprobe.engines.base import Options

    begin = tuple(first.output.ids[:2].tolist())
    fresh = ImageContrast(probe, QUESTION, image, alpha=2.0)
    options = Options(processors=(fresh,), begin=begin, generation={**OPTIONS, "max_new_tokens": 4})
    branch = probe.engine.generate([probe_conversation(image)], options)[0]
    np.testing.assert_array_equal(branch.output.ids, first.output.ids)
    np.testing.assert_allclose(branch.output.scores[2:], first.output.scores[2:], atol=1e-4)
    assert np.isnan(branch.output.scores[:2]).all()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_one_picture_and_one_prefill_more(probe_of, name):
    probe, image = probe_of(name), picture()
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as plain:
        probe.generate(QUESTION, image, **OPTIONS)
    strategy = ImageContrast(probe, QUESTION, image)
    with counting(adapter.model, adapter.layers) as count:
        result = probe.generate(QUESTION, image, logits_processor=[strategy], **OPTIONS)
    assert sum(count.pictures) == 2 * sum(plain.pictures)
    assert count.prefills == 2
    assert len(count.positions) == 2 * len(result.output)


def test_a_model_whose_cache_cannot_be_continued(probe_of, monkeypatch):
    from dataclasses import replace

    probe, image = probe_of("llava"), picture()
    expected = probe.generate(QUESTION, image, logits_processor=[ImageContrast(probe, QUESTION, image)], **OPTIONS)
    adapter = probe.engine.adapter
    monkeypatch.setattr(adapter, "capabilities", replace(adapter.capabilities, prefix_reuse=False), raising=False)
    again = probe.generate(QUESTION, image, logits_processor=[ImageContrast(probe, QUESTION, image)], **OPTIONS)
    np.testing.assert_array_equal(again.output.ids, expected.output.ids)
    np.testing.assert_allclose(again.output.scores, expected.output.scores, atol=1e-4)


def test_no_contrast_is_the_plain_answer(probe_of):
    probe, image = probe_of("internvl"), picture()
    plain = probe.generate(QUESTION, image, **OPTIONS)
    strategy = ImageContrast(probe, QUESTION, image, alpha=0.0, beta=1e-6)
    result = probe.generate(QUESTION, image, logits_processor=[strategy], **OPTIONS)
    np.testing.assert_array_equal(result.output.ids, plain.output.ids)
    assert result.meta["logits_processor"] == ["ImageContrast"]


def test_sampling_and_streaming_with_a_strategy(probe_of):
    probe, image = probe_of("llava"), picture()
    options = {"max_new_tokens": 6, "do_sample": True, "temperature": 0.8, "seed": 4}
    made = [
        probe.generate(QUESTION, image, logits_processor=[ImageContrast(probe, QUESTION, image)], **options),
        probe.stream(QUESTION, image, logits_processor=[ImageContrast(probe, QUESTION, image)], **options).result,
    ]
    np.testing.assert_array_equal(made[0].output.ids, made[1].output.ids)
    np.testing.assert_array_equal(made[0].output.scores, made[1].output.scores)


def test_a_processor_of_ones_own_is_applied_and_raw_numbers_stay(probe_of):
    probe, image = probe_of("gemma3"), picture()
    plain = probe.generate(QUESTION, image, keep="logits", **OPTIONS)
    first = int(plain.output.ids[0])
    banned = SuppressTokensLogitsProcessor([first], device="cpu")
    result = probe.generate(QUESTION, image, keep="logits", logits_processor=[banned], **OPTIONS)
    assert result.output.ids[0] == plain.output.top_ids[0, 1]
    np.testing.assert_allclose(result.output.logits[0], plain.output.logits[0], atol=1e-5)
    assert result.output.ranks[0] == 1
    without = plain.output.logits[0].astype(np.float64)
    without[first] = -np.inf
    expected = without[result.output.ids[0]] - np.logaddexp.reduce(without)
    assert result.output.scores[0] == pytest.approx(expected, abs=1e-5)
    assert plain.output.scores is None


def test_a_processor_may_run_the_model(probe_of):
    """Whatever it asks of the model enters neither the rows nor the states of the answer."""
    probe, image = probe_of("llava"), picture()

    class Asks(LogitsProcessor):
        def __call__(self, input_ids, scores):
            probe.score("Is it a cat?", ["yes", "no"], picture(2))
            return scores

    keep = {"logits", "hidden"}
    for beams in (1, 2):
        options = {**OPTIONS, "num_beams": beams}
        plain = probe.generate(QUESTION, image, keep=keep, **options)
        asked = probe.generate(QUESTION, image, keep=keep, logits_processor=[Asks()], **options)
        for table in ("prompt", "output"):
            for column in ("ids", "logits", "hidden", "logprobs"):
                np.testing.assert_array_equal(
                    getattr(getattr(asked, table), column), getattr(getattr(plain, table), column), err_msg=column
                )


def test_processors_run_alone_in_generate_many(probe_of):
    probe = probe_of("llava")
    lengths = []

    class Counts(LogitsProcessor):
        def __call__(self, input_ids, scores):
            lengths.append(tuple(input_ids.shape))
            return scores

    questions = ["Hi?", "What animal is this? Describe it."]
    options = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
    found = list(probe.generate_many(questions, logits_processor=[Counts()], progress=False, **options))
    assert {batch for batch, _ in lengths} == {1}
    assert lengths[0][1] == len(found[0].input_ids), "no padding reaches the processor"


def test_errors(probe_of):
    probe, image = probe_of("llava"), picture()
    for wrong in (3, "no", [1], [None]):
        with pytest.raises(GenerationOptionError, match="LogitsProcessor"):
            probe.generate(QUESTION, image, logits_processor=wrong)
    with pytest.raises(GenerationOptionError, match="alpha"):
        ImageContrast(probe, QUESTION, image, alpha=-1)
    with pytest.raises(GenerationOptionError, match="beta"):
        ImageContrast(probe, QUESTION, image, beta=0)
    with pytest.raises(CapabilityError, match="no image"):
        ImageContrast(probe, QUESTION)
    strategy = ImageContrast(probe, QUESTION, image)
    with pytest.raises(CapabilityError, match="another question"):
        probe.generate("What is this?", image, logits_processor=[strategy], **OPTIONS)
    with pytest.raises(CapabilityError, match="without beams"):
        probe.generate(QUESTION, image, logits_processor=[strategy], num_beams=2, **OPTIONS)
