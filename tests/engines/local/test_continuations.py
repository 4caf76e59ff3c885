"""Next-token log-probabilities after many continuations are those of the model's own forward of each."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vlmprobe.engines.base import ReadsContinuations
from vlmprobe.engines.local import continuations
from vlmprobe.errors import NonFiniteLogitsError

PATHS = [(), (5,), (5, 6), (7,), (7, 8, 9), (5, 6, 10), (5,)]
IDS = [3, 11, 20, 4]


def plain(probe, conversation, ids):
    """Log-probabilities of :data:`IDS` by one forward of prompt and ids."""
    adapter = probe.engine.adapter
    inputs = adapter.encode([conversation]).inputs
    grown = adapter.extend(inputs, torch.tensor([ids])) if ids else inputs
    with torch.no_grad():
        return adapter.model(**grown).logits[0, -1].double().log_softmax(-1)[IDS].numpy()


def conversation_of(probe):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), dtype=np.uint8))
    return probe.conversation("Where?", image)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "internvl", "lfm2_vl"])
def test_rows_are_those_of_plain_forwards_whatever_was_asked_before(name, probe_of):
    probe = probe_of(name)
    conversation = conversation_of(probe)
    asked = probe.engine.continuations(conversation)
    assert isinstance(probe.engine, ReadsContinuations)
    for begin in [(), (12,), (12, 13, 14), (12, 15), (12, 13, 14)]:  # extended, and begun anew
        found = asked.logprobs(begin, PATHS, IDS)
        wanted = [plain(probe, conversation, [*begin, *path]) for path in PATHS]
        np.testing.assert_allclose(found, wanted, atol=1e-4)
        probe.generate("Something else?", max_new_tokens=1)  # in between


def test_a_cache_that_cannot_be_continued_gives_the_same_rows(probe_of, monkeypatch):
    probe = probe_of("llava")
    conversation = conversation_of(probe)
    wanted = probe.engine.continuations(conversation).logprobs((12,), PATHS, IDS)
    adapter = probe.engine.adapter
    for change in ({"prefix_reuse": False}, {"prefix_limit": 10}):
        monkeypatch.setattr(adapter, "capabilities", replace(type(adapter).capabilities, **change))
        found = probe.engine.continuations(conversation).logprobs((12,), PATHS, IDS)
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_prompt_that_cannot_be_shared_is_tried_and_encoded_once(probe_of, monkeypatch):
    probe, calls = probe_of("llava"), []
    adapter = probe.engine.adapter
    monkeypatch.setattr(adapter, "capabilities", replace(type(adapter).capabilities, prefix_reuse=False))
    real = continuations.prefill
    monkeypatch.setattr(continuations, "prefill", lambda *inputs: calls.append("prefill") or real(*inputs))
    asked = probe.engine.continuations(conversation_of(probe))
    encode = type(adapter).encode
    monkeypatch.setattr(type(adapter), "encode", lambda *given: calls.append("encode") or encode(*given))
    for begin in [(), (12,), (12, 13)]:
        asked.logprobs(begin, PATHS, IDS)
    assert calls == ["encode", "prefill"]


def test_logits_that_are_not_finite_are_an_error_that_names_the_path(probe_of):
    probe = probe_of("llava")
    asked = probe.engine.continuations(conversation_of(probe))
    logits = torch.zeros(len(PATHS), 30)
    logits[3] = torch.nan
    asked.head = SimpleNamespace(chunks=lambda states: [(slice(0, len(states)), logits)])
    with pytest.raises(NonFiniteLogitsError, match="the token after path 3"):
        asked.logprobs((), PATHS, IDS)
