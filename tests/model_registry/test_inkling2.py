"""Inkling 2 with a loop: its layers run several times, and each run is a layer to vlmprobe."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import vlmprobe
from vlmprobe.analysis.logit_lens import lens
from vlmprobe.inputs.messages import Conversation
from vlmprobe.testing import tiny

RED = Image.new("RGB", (48, 40), "red")
pytestmark = pytest.mark.skipif("inkling2_loop" not in tiny.names(), reason="transformers does not have it yet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.build("inkling2_loop", tmp_path_factory.mktemp("inkling2_loop"))


@pytest.fixture(scope="module")
def adapter(folder):
    return vlmprobe.load(folder, device="cpu", dtype="float32", check=False).engine.adapter


@pytest.fixture(scope="module")
def inputs(adapter):
    return adapter.encode([Conversation.build("What is this?", [RED])]).inputs


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_every_pass_leaves_what_transformers_records_of_it(adapter, inputs):
    kept = []
    handles = [layer.register_forward_hook(lambda *args: kept.append(args[-1])) for layer in adapter.layers[:-1]]
    recorded = adapter.model(**inputs, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    assert len(kept) == adapter.model.config.text_config.total_num_hidden_layers == 8
    # Recorded are what enters the first layer, then what each run of a layer leaves; what enters the head comes last.
    assert len(recorded) == 9
    assert all(torch.equal(*pair) for pair in zip(kept[:-1], recorded[1:-1], strict=True))


def test_a_hook_sees_its_pass_alone_and_goes_away(adapter, inputs):
    second, seen = adapter.layers[3], []
    handle = second.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["cache_offset"]), with_kwargs=True
    )
    adapter.model(**inputs)
    handle.remove()
    adapter.model(**inputs)
    assert seen == [3]


def test_what_a_hook_returns_replaces_the_output_of_its_pass(adapter, inputs):
    before, seen = adapter.model(**inputs).logits, []
    handles = [adapter.layers[2].register_forward_hook(lambda *_: seen.append("first"))]
    handles.append(adapter.layers[6].register_forward_hook(lambda _, __, states: states.flip(-1)))
    after = adapter.model(**inputs).logits
    for handle in handles:
        handle.remove()
    assert seen == ["first"]
    assert (after - before).abs().max() > 0.1
    assert torch.equal(adapter.model(**inputs).logits, before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_lens_has_a_layer_for_every_pass(folder, dtype):
    probe = vlmprobe.load(folder, device="cpu", dtype=dtype, check=False)
    assert list(lens(probe, "What is this?", RED, max_new_tokens=1).layers) == list(range(9))
