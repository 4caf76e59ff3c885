"""What a family does not support, or puts elsewhere, is told; RoPE that changes with length changes no number."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from common import GOLDEN, QUESTION, picture
from transformers import LlamaConfig, Phi3Config

import vlmprobe
from vlmprobe.adapter.rope import may_continue, rope_switch
from vlmprobe.engines.local.second_prompt import SecondPrompt
from vlmprobe.errors import CapabilityError, VlmprobeWarning
from vlmprobe.inputs.messages import Conversation
from vlmprobe.probe import Request

ONE = {"max_new_tokens": 1, "do_sample": False}
CANDIDATES = ["no", "a tiger in the grass, and nothing else that one could see"]
WORD = "house "


def chat(*parts, system=None):
    content = [{"type": "text", "text": each} if isinstance(each, str) else {"type": "image"} for each in parts]
    before = [{"role": "system", "content": system}] if system else []
    return [*before, {"role": "user", "content": content}]


# Images first


@pytest.mark.parametrize(("name", "moved"), [("llava", True), ("git", True), ("qwen2_vl", False), ("internvl", False)])
def test_meta_says_that_images_were_put_first(name, moved, probe_of, checkpoint):
    from vlmprobe.testing import tiny

    if name not in tiny.names():
        pytest.skip(f"the installed packages cannot build {name}")
    probe = probe_of(name)
    asked = [chat(QUESTION, 0), chat(0, QUESTION)]
    results = [probe.generate(each, picture(), **ONE) for each in asked]
    assert results[0].meta.get("images_first") == (True if moved else None)
    assert "images_first" not in results[1].meta
    assert np.array_equal(results[0].input_ids, results[1].input_ids) is moved


# A system message


def test_a_template_that_drops_a_system_message_is_refused_before_anything_runs(checkpoint):
    probe = vlmprobe.load(checkpoint("llava"), device="cpu")
    assert probe.generate(chat(QUESTION, system="Be terse."), **ONE).text is not None
    kept = probe.processor.chat_template
    probe.processor.chat_template = kept.replace(
        "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
    )
    assert probe.processor.chat_template != kept
    probe.engine.adapter.encode = None  # nothing is encoded
    with pytest.raises(CapabilityError, match="native takes no system message: put the instruction"):
        probe.generate(chat(QUESTION, system="Be terse."), **ONE)
    with pytest.raises(CapabilityError, match="takes no system message"):
        probe.score(chat(QUESTION, system="Be terse."), ["yes"])


def test_families_without_a_system_message():
    assert not vlmprobe.load(GOLDEN / "minicpmv-2.0", device="cpu").engine.adapter.capabilities.system
    assert vlmprobe.load(GOLDEN / "minicpmv-2.6", device="cpu").engine.adapter.capabilities.system


# Where RoPE factors change


def test_the_length_where_rope_changes():
    factors = {"short_factor": [1.0] * 32, "long_factor": [2.0] * 32, "rope_theta": 1e4}
    long = {"rope_type": "longrope", "factor": 8.0, **factors}
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    small = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1}
    lengths = {"original_max_position_embeddings": 512, "max_position_embeddings": 4096, "pad_token_id": 0}
    assert rope_switch(Phi3Config(rope_parameters=long, **lengths, **small)) == 512
    assert rope_switch(LlamaConfig(rope_parameters=dynamic, max_position_embeddings=77, **small)) == 77
    assert rope_switch(LlamaConfig(**small)) is None
    assert rope_switch(None) is None


@pytest.fixture(scope="module")
def long_rope():
    """A probe of a tiny Phi-3 in original format whose RoPE factors change beyond 80 positions."""
    probe = vlmprobe.load(GOLDEN / "internvl2-phi3-long", device="cpu", dtype="float32")
    assert probe.engine.adapter.capabilities.prefix_limit == 80
    return probe


def question_of(probe, length: int) -> str:
    """A question whose prompt has at most so many positions, and nearly as many."""
    adapter = probe.engine.adapter
    count = next(
        count
        for count in range(200)
        if len(adapter.encode([Conversation.build(WORD * (count + 2) + "?")]).prompts[0].ids) > length
    )
    return WORD * (count + 1) + "?"


def whole(probe, question: str, candidate: str) -> np.ndarray:
    """Log-probabilities of a candidate's tokens in one forward of prompt and candidate, by the model itself."""
    adapter = probe.engine.adapter
    encoding = adapter.encode([Conversation.build(question)])
    found = adapter.continuation(encoding.prompts[0], candidate)
    ids = list(found.ids)
    inputs = adapter.extend(encoding.inputs, torch.tensor([ids]), len(encoding.prompts[0].ids) - found.shared)
    with torch.no_grad():
        logits = adapter.model(**inputs, use_cache=False).logits[0, -len(ids) - 1 : -1]
    return torch.log_softmax(logits.double(), -1)[torch.arange(len(ids)), torch.tensor(ids)].numpy()


@pytest.mark.parametrize(
    ("length", "told"), [(60, "shared"), (80, "shared, but for 1 that end beyond 80 positions"), (100, "shared")]
)
def test_candidates_around_the_switch_are_those_of_a_whole_forward(length, told, long_rope):
    question = question_of(long_rope, length)
    scores = long_rope.score(question, CANDIDATES)
    assert scores.meta["prefix"].startswith(told)
    for table, candidate in zip(scores.tables, CANDIDATES, strict=True):
        np.testing.assert_allclose(table.logprobs, whole(long_rope, question, candidate), atol=2e-5)


def test_continuing_across_the_switch_would_have_been_wrong(long_rope, monkeypatch):
    """So that the test above can fail."""
    from vlmprobe.engines.local import candidate_states

    question = question_of(long_rope, 80)
    monkeypatch.setattr(candidate_states, "may_continue", lambda *_: True)
    table = long_rope.score(question, CANDIDATES).tables[1]
    assert np.abs(table.logprobs - whole(long_rope, question, CANDIDATES[1])).max() > 1e-3


def test_a_second_prompt_that_is_fed_across_the_switch(long_rope):
    adapter = long_rope.engine.adapter
    question = question_of(long_rope, 80)
    conversation = Conversation.build(question)
    encoding = adapter.encode([conversation])
    ids = list(adapter.continuation(encoding.prompts[0], CANDIDATES[1]).ids)
    second = SecondPrompt(adapter, conversation)
    for count in range(len(ids)):
        row = torch.log_softmax(second.logits(ids[:count]).double(), -1)[ids[count]]
        # Each row by itself: what comes later would change the factors of the whole forward.
        inputs = adapter.extend(encoding.inputs, torch.tensor([ids[:count]])) if count else encoding.inputs
        with torch.no_grad():
            own = torch.log_softmax(adapter.model(**inputs, use_cache=False).logits[0, -1].double(), -1)[ids[count]]
        assert abs(row - own) < 2e-5, count


def test_an_answer_that_crosses_the_switch_is_told(long_rope):
    """Its rows up to the switch are those of a forward; beyond, the model's own decoding differs."""
    adapter = long_rope.engine.adapter
    question = question_of(long_rope, 80)
    encoding = adapter.encode([Conversation.build(question)])
    room = 80 - len(encoding.prompts[0].ids)
    call = {"do_sample": False, "keep": "logits"}
    inside = long_rope.generate(question, max_new_tokens=room + 1, min_new_tokens=room + 1, **call)
    assert "rope_switch" not in inside.meta
    with pytest.warns(VlmprobeWarning, match="goes beyond 80 positions, where the model's RoPE factors change"):
        across = long_rope.generate(question, max_new_tokens=room + 3, min_new_tokens=room + 3, **call)
    assert across.meta["rope_switch"] == 80
    for step in range(room + 3):
        inputs = adapter.extend(encoding.inputs, torch.tensor([across.output.ids[:step].tolist()])) if step else None
        with torch.no_grad():
            own = adapter.model(**(inputs or encoding.inputs), use_cache=False).logits[0, -1]
        gap = np.abs(across.output.logits[step] - own.numpy()).max()
        assert gap < 1e-4 if step <= room else gap > 1e-2


def test_factors_of_each_length_of_their_own(checkpoint):
    """Dynamic RoPE: beyond the limit no length has those of another, but one token more has no cache to continue."""
    probe = vlmprobe.load(checkpoint("llava"), device="cpu")
    adapter = probe.engine.adapter
    adapter.capabilities = dataclasses.replace(adapter.capabilities, prefix_limit=50)
    text = probe.model.config.text_config
    text.rope_parameters = {**text.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
    told = [may_continue(adapter, *lengths) for lengths in ((40, 50), (40, 51), (60, 61), (60, 60))]
    assert told == [True, False, False, True]
    text.rope_parameters = {**text.rope_parameters, "rope_type": "longrope"}
    told = [may_continue(adapter, *lengths) for lengths in ((40, 50), (40, 51), (60, 61), (60, 60))]
    assert told == [True, False, True, True]


def test_prompts_on_both_sides_share_no_batch(long_rope):
    adapter = long_rope.engine.adapter
    kept = adapter.capabilities
    texts = [question_of(long_rope, length) for length in (60, 100)]
    alone = [long_rope.generate(each, **ONE) for each in texts]
    try:
        adapter.capabilities = dataclasses.replace(kept, batching=True)
        conversations = [Conversation.build(each) for each in texts]
        with pytest.raises(CapabilityError, match=r"cannot share a batch, since RoPE factors change beyond 80"):
            long_rope.engine.generate(conversations, options())
        together = list(long_rope.generate_many([Request(each) for each in texts], batch_size=2, progress=False, **ONE))
    finally:
        adapter.capabilities = kept
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.prompt.logprobs, other.prompt.logprobs)


def options():
    from vlmprobe.engines.base import Options

    return Options(alternatives=1, generation=ONE)
