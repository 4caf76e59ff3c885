"""Candidates that are scored on the prefill of an answer: the numbers are those of two calls."""

from __future__ import annotations

import numpy as np
import pytest
from common import picture
from layer_runs import counted

from vlmprobe.engines.local import engine, resumed
from vlmprobe.probe.request import options_of

QUESTIONS = ["Is there a cat?", "What number is shown in this picture, and in which colour?", "Is it red?", "Who?"]
CANDIDATES = ["yes", "no", "red nine 9"]
FEW = {"max_new_tokens": 4, "min_new_tokens": 3, "do_sample": False}


def asked(probe, images, candidates=(CANDIDATES, (), CANDIDATES, ["yes"])):
    pairs = zip(QUESTIONS, images, candidates, strict=True)
    return [(probe.conversation(question, image), said) for question, image, said in pairs]


def options(**more):
    return options_of("stats", None, None, None, FEW | more)


@pytest.fixture
def used(monkeypatch):
    """For each batch, whether its candidates were scored on the prefill of the answers."""
    found, whole = [], engine.states_after_answers

    def noted(*arguments):
        asked = whole(*arguments)
        found.append(asked is not None)
        return asked

    monkeypatch.setattr(engine, "states_after_answers", noted)
    return found


# In gemma3 and lfm2_vl a cache cannot be cut back; hy_v4_vl keeps more than keys and values.
@pytest.mark.parametrize("name", ["internvl", "qwen3_vl", "llava", "mllama", "hy_v4_vl", "gemma3", "lfm2_vl", "git"])
def test_both_are_those_of_two_calls(name, probe_of, used, monkeypatch):
    monkeypatch.setattr(resumed, "SHARE", 0.01)
    probe = probe_of(name)
    batching = probe.engine.adapter.capabilities.batching
    for images in ([picture(seed) for seed in (3, 4, 5, 6)], [picture(9)] * 4):  # the second share their beginning
        requests = asked(probe, images)
        batches = [requests] if batching else [[each] for each in requests]
        found = [pair for batch in batches for pair in probe.engine.answer_and_score(batch, options())]
        for (result, scores), (conversation, said) in zip(found, requests, strict=True):
            due = probe.engine.generate([conversation], options())[0]
            np.testing.assert_array_equal(result.output.ids, due.output.ids)
            np.testing.assert_allclose(result.output.logprobs, due.output.logprobs, atol=1e-4)
            if not said:
                assert scores is None
                continue
            own = probe.engine.score(conversation, said, options())
            np.testing.assert_allclose(scores.logprobs, own.logprobs, atol=1e-4)
            assert scores.candidates == list(said)
            assert scores.tables[-1].tokens == own.tables[-1].tokens
    assert any(used) is (name not in ("gemma3", "lfm2_vl"))


def test_the_prompt_runs_once(probe_of, monkeypatch):
    probe = probe_of("internvl")
    requests = [(probe.conversation("Is there a cat?", picture(3)), ["yes", "no"])]
    runs = counted(probe, monkeypatch)
    ((result, scores),) = probe.engine.answer_and_score(requests, options())
    prompt = len(result.input_ids)
    assert runs[0] == (1, prompt)
    assert sum(length for _, length in runs[1:]) < prompt / 2
    assert scores.meta["prefix"] == "shared"


def test_beams_are_scored_by_a_prefill_of_their_own(probe_of, used):
    probe = probe_of("internvl")
    requests = asked(probe, [picture(seed) for seed in (3, 4, 5, 6)])
    found = probe.engine.answer_and_score(requests, options(num_beams=2))
    assert used == [False]
    own = probe.engine.score(*requests[0], options())
    np.testing.assert_allclose(found[0][1].logprobs, own.logprobs, atol=1e-4)


def test_a_candidate_that_merges_with_the_prompt(probe_of, used):
    probe = probe_of("internvl")
    chat = [
        {"role": "user", "content": "Complete it."},
        {"role": "assistant", "content": "a tig"},
    ]
    conversation = probe.conversation(chat)
    ((_, scores),) = probe.engine.answer_and_score([(conversation, ["er", " in", "yes"])], options())
    own = probe.engine.score(conversation, ["er", " in", "yes"], options())
    np.testing.assert_allclose(scores.logprobs, own.logprobs, atol=1e-4)
    assert scores.boundaries == own.boundaries
