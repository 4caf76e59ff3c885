"""``save_pretrained`` of model and tokenizer writes the original format again, and ``vlmprobe.load`` reads it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from common import GOLDEN
from safetensors.torch import load_file

import vlmprobe
from vlmprobe.inputs.messages import Conversation

# One of each layout of weights, configuration and tokenizer; the others with make test-all.
SOME = ("internvl2-internlm2", "internvl2-phi3", "internvl3-5-qwen3-moe", "minicpmv-2.0", "minicpmv-2.6", "omnilmm")
CASES = [
    name if name in SOME else pytest.param(name, marks=pytest.mark.long)
    for name in sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))
]


def weights(folder):
    return {name: each for file in folder.glob("model*.safetensors") for name, each in load_file(file).items()}


def conversations(case):
    told = json.loads((GOLDEN / case / "golden.json").read_text(encoding="utf-8"))
    for scenario in told.get("scenarios", told).values():
        messages = scenario["messages"]
        for part in (part for message in messages for part in message["content"] if part["type"] == "image"):
            part["path"] = str(GOLDEN / case / part["path"])
        yield Conversation.build(messages)


def loaded(folder):
    return vlmprobe.load(folder, dtype="float32", check=False)


def saved(probe, folder):
    probe.model.save_pretrained(folder)
    probe.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_saved_is_the_original_format_again(case, tmp_path):
    first = loaded(GOLDEN / case)
    before, after = weights(GOLDEN / case), weights(saved(first, tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = loaded(tmp_path)
    assert again.meta["adapter"] == first.meta["adapter"]
    ours, theirs = first.engine.adapter, again.engine.adapter
    assert ours.end_ids == theirs.end_ids
    for conversation in conversations(case):
        one, other = ours.encode([conversation]), theirs.encode([conversation])
        assert np.array_equal(one.prompts[0].ids, other.prompts[0].ids)
        with torch.no_grad():
            assert torch.equal(ours.model(**one.inputs).logits, theirs.model(**other.inputs).logits)


@pytest.mark.parametrize("case", ["internvl2-internlm2", "minicpmv-2.0"])
def test_a_token_that_was_added_is_saved(case, tmp_path):
    first = loaded(GOLDEN / case)
    first.tokenizer.add_tokens(["<vlmprobe_new>"])
    rows = len(first.tokenizer)
    first.model.resize_token_embeddings(rows)
    again = loaded(saved(first, tmp_path))
    assert again.tokenizer.convert_tokens_to_ids("<vlmprobe_new>") == rows - 1
    assert again.model.get_output_embeddings().weight.shape[0] == rows
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config.get("llm_config", config)["vocab_size"] == rows
    one, other = (each.generate("Hello <vlmprobe_new>", max_new_tokens=3) for each in (first, again))
    assert rows - 1 in one.prompt.ids
    assert np.array_equal(one.output.ids, other.output.ids)
    assert np.array_equal(one.logprobs, other.logprobs)
