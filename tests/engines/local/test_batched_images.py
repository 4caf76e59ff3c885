"""Batches in which images come again: each is cut out of the batch's own tensors, and all are encoded in one run."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from common import GOLDEN, picture
from transformers.modeling_outputs import BaseModelOutputWithPooling

import vlmprobe
from vlmprobe import Request
from vlmprobe.engines.local import feature_cache
from vlmprobe.engines.local.image_features import Shares, cut, divided, joined, owned

TOWERS = ("vision_tower", "vision_model", "visual")
GREEDY = {"max_new_tokens": 3, "do_sample": False}
TOLERANCE = 1e-4
ORDER = (0, 1, 0, 2, 1, 3, 0)  # which image each request is about
SIZES = ((48, 40), (120, 60), (48, 40), (60, 130))  # of different numbers of tiles
FAMILIES = ("internvl", "qwen2_vl", "qwen3_vl", "llava_next", "idefics3", "mllama", "gemma3", "mistral3")
ORIGINAL = ("internvl2-qwen2", "minicpmv-2.6")


@contextlib.contextmanager
def tower_of(probe):
    """A list that gets, for each run of the vision tower, the rows of its first tensor: tiles, patches or images."""
    runs: list[int] = []
    names = dict(probe.engine.adapter.model.named_modules())
    tower = next(module for name, module in names.items() if name.rsplit(".")[-1] in TOWERS)

    def count(_, given, named):
        runs.append(len(next(value for value in (*given, *named.values()) if isinstance(value, torch.Tensor))))

    handle = tower.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield runs
    finally:
        handle.remove()


def images(several):
    """One of some pictures for each place of ORDER, or two."""
    pictures = [picture(seed, *size) for seed, size in enumerate(SIZES)]
    return [[pictures[place], pictures[3]] if several else pictures[place] for place in ORDER]


def asked(pictures):
    return [Request(f"Question {place}" + "?" * place, each) for place, each in enumerate(pictures)]


def assert_as_alone(probe, requests, results):
    for request, result in zip(requests, results, strict=True):
        alone = probe.generate(request.question, request.image, keep="logits", **GREEDY)
        assert np.array_equal(result.output.ids, alone.output.ids)
        assert np.abs(result.output.logits - alone.output.logits).max() < TOLERANCE
        assert np.nanmax(np.abs(result.prompt.logits - alone.prompt.logits)) < TOLERANCE


def together(probe, requests):
    return list(probe.generate_many(requests, batch_size=len(requests), keep="logits", **GREEDY))


@pytest.mark.parametrize("several", [False, True], ids=["one each", "two each"])
@pytest.mark.parametrize("name", FAMILIES)
def test_images_that_come_again_run_once_and_all_in_one_run(name, several, probe_of):
    probe = probe_of(name)
    pictures = images(several)
    with tower_of(probe) as distinct:
        together(probe, asked([pictures[ORDER.index(place)] for place in range(4)]))
    requests = asked(pictures)
    with tower_of(probe) as runs:
        results = together(probe, requests)
    assert runs == distinct, "as many rows as the four different ones have, in as many runs"
    assert {each.meta["image_features"] for each in results} == {"reused in part"}
    assert_as_alone(probe, requests, results)


@pytest.mark.parametrize("name", FAMILIES[:2])
def test_no_image_is_processed_a_second_time(name, probe_of, monkeypatch):
    probe = probe_of(name)
    encoded = []
    encode = type(probe.engine.adapter).encode
    monkeypatch.setattr(
        type(probe.engine.adapter), "encode", lambda self, each: encoded.append(len(each)) or encode(self, each)
    )
    together(probe, asked(images(False)))
    assert encoded == [len(ORDER)]


@pytest.mark.parametrize("name", ORIGINAL)
def test_text_between_images_that_come_again(name):
    pytest.importorskip("timm")
    pytest.importorskip("sentencepiece")
    probe = vlmprobe.load(GOLDEN / name, device="cpu", dtype="float32")
    one, two = picture(1), picture(2, 120, 60)
    requests = asked([one, None, two, [one, two], None, one, [one, two]])
    results = together(probe, requests)
    assert {each.meta["batch_size"] for each in results} == {7}
    assert {each.meta["image_features"] for each in results} == {"reused in part"}
    assert_as_alone(probe, requests, results)


def test_what_cannot_be_told_apart_runs_as_it_is_and_is_not_tried_again(checkpoint):
    """Its encoder returns the features of several layers in a form of its own."""
    probe = vlmprobe.load(checkpoint("granite4_vision"), device="cpu", dtype="float32")
    requests = asked(images(False))
    with tower_of(probe) as first:
        results = together(probe, requests)
    with tower_of(probe) as second:
        together(probe, requests)
    assert len(second) < len(first)
    assert {each.meta["image_features"] for each in results} == {"encoded"}
    assert_as_alone(probe, requests, results)


def test_slices_that_are_not_the_same_image_are_not_taken_for_it(probe_of, monkeypatch):
    """Were the counts wrong, the repeated image would be another in the batch's tensors: then all of it runs."""
    wrong = lambda arguments, shares: (parts := cut(arguments, shares)) and parts[::-1]  # noqa: E731
    monkeypatch.setattr(feature_cache, "cut", wrong)
    probe = probe_of("internvl")
    requests = asked(images(False))
    results = together(probe, requests)
    assert {each.meta["image_features"] for each in results} == {"encoded"}
    assert_as_alone(probe, requests, results)


def test_a_session_remembers_what_a_batch_encoded(probe_of):
    probe = probe_of("internvl")
    pictures = images(False)
    with probe.session() as session, tower_of(probe) as runs:
        together(session, asked(pictures))
        assert len(runs) == 1
        results = together(session, asked(pictures))
        assert len(runs) == 1
        assert {each.meta["image_features"] for each in results} == {"reused"}
        for entry in session.engine.memory._entries:
            held = entry.output.pooler_output
            assert held.untyped_storage().nbytes() == held.nelement() * held.element_size(), "not a view of the batch"


# -- where the parts of a batch are ----------------------------------------------------------------


def test_rows_are_images_conversations_grids_or_a_fixed_number_of_positions():
    shares = Shares(images=[1, 2, 1], positions=[16, 48, 32])
    assert shares.sizes(4) == [1, 2, 1], "images"
    assert shares.sizes(3) == [1, 1, 1], "conversations"
    assert shares.sizes(6) == [1, 3, 2], "tiles of 16 positions"
    assert shares.sizes(384) == [64, 192, 128], "patches"
    assert shares.sizes(7) is None
    assert shares.sizes(7, [[1, 4, 2]]) == [1, 4, 2]
    assert Shares([1, 1, 1], [0, 0, 0]).sizes(6) is None


def test_arguments_are_cut_by_their_grids():
    grids = torch.tensor([[1, 2, 2], [1, 2, 4], [1, 4, 4]])
    rows = torch.arange(28.0).unsqueeze(1)
    parts = cut({"pixel_values": rows, "image_grid_thw": grids, "flag": True}, Shares([1, 2], [3, 5]))
    assert [each["pixel_values"].flatten().tolist() for each in parts] == [list(range(4)), list(range(4, 28))]
    assert [each["image_grid_thw"].tolist() for each in parts] == [grids[:1].tolist(), grids[1:].tolist()]
    assert all(each["flag"] is True for each in parts)


@pytest.mark.parametrize(
    "arguments",
    [
        {"pixel_values": torch.zeros(5, 3)},
        {"pixel_values": torch.zeros(2, 3), "scale": torch.tensor(1.0)},
        {"pixel_values": torch.zeros(2, 3), "grids": [(1, 2), (3, 4)]},
        {"pixel_values": torch.zeros(2, 3), "patches": [3, 4]},
        {"layer": -2},
    ],
    ids=["no count", "a scalar", "a list of grids", "a list of counts", "no tensor"],
)
def test_arguments_that_are_not_understood_are_not_cut(arguments):
    assert cut(arguments, Shares([1, 1], [7, 9])) is None


def test_features_are_divided_and_joined_to_the_same():
    shares = Shares([1, 2], [4, 8])
    rows = torch.arange(24.0).reshape(12, 2)
    output = BaseModelOutputWithPooling(last_hidden_state=rows, pooler_output=(rows[:4], rows[4:6], rows[6:]))
    output.deepstack_features = [rows + 1, rows + 2]
    parts = divided(output, shares)
    assert [len(each.pooler_output) for each in parts] == [1, 2]
    assert [len(each.deepstack_features) for each in parts] == [2, 2]
    back = joined([owned(each) for each in parts])
    assert torch.equal(back.last_hidden_state, rows)
    assert all(map(torch.equal, back.pooler_output, output.pooler_output))
    assert all(map(torch.equal, back.deepstack_features, output.deepstack_features))
    assert divided((rows,), shares) is None
