"""What a call costs, by counting: runs of the vision tower, positions of the decoder, rows of the head."""

from __future__ import annotations

import contextlib
from itertools import islice

import numpy as np
import pytest
import torch
from common import GOLDEN, QUESTION, picture
from transformers.modeling_outputs import BaseModelOutput

import vlmprobe
from vlmprobe import Request
from vlmprobe.engines import batching
from vlmprobe.engines.local import shared_prefix
from vlmprobe.engines.local.image_features import bytes_of, copied, joined
from vlmprobe.errors import CapabilityError, GenerationOptionError
from vlmprobe.testing import check_adapter

TOWERS = ("vision_tower", "vision_model", "visual")
SOME = ["internvl", "qwen2_vl", "qwen3_vl", "mllama", "gemma3", "llava_next", "idefics3", "paligemma", "minicpmv4_6"]
LINEAR = ["qwen3_5", "minicpmv4_6", "lfm2_vl"]
ORIGINAL = ["internvl2-qwen2", "minicpmv-2.0", "minicpmv-2.6", "omnilmm"]
GREEDY = {"max_new_tokens": 3, "do_sample": False}
TOLERANCE = 1e-4
LOOSER = {"minicpmv4_6": 1e-3}  # linear attention in float32 whatever the dtype, see test_many


class Counted:
    """Counts what the parts of a model do while it is open."""

    def __init__(self, probe):
        self.adapter = probe.engine.adapter
        self.tower = 0  # runs
        self.pictures = 0  # rows of its first tensor: tiles, or patches where the tower takes them in one row
        self.positions = 0  # of the decoder
        self.rows = 0  # of the head

    def __enter__(self):
        model = self.adapter.model
        tower = next(module for name, module in model.named_modules() if name.rsplit(".")[-1] in TOWERS)
        self.handles = [
            tower.register_forward_pre_hook(self._tower, with_kwargs=True),
            self.adapter.backbone.register_forward_hook(self._backbone),
            self.adapter.head.register_forward_pre_hook(self._head),
        ]
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _tower(self, _, given, named):
        self.tower += 1
        first = next(value for value in (*given, *named.values()) if isinstance(value, torch.Tensor))
        self.pictures += len(first)

    def _backbone(self, _, __, output):
        hidden = output[0] if isinstance(output, tuple) else output.last_hidden_state
        self.positions += hidden.shape[0] * hidden.shape[1]

    def _head(self, _, given):
        self.rows += given[0].numel() // given[0].shape[-1]


def load(name, checkpoint):
    """A probe of its own, with nothing of other tests about it."""
    if name in ORIGINAL:
        pytest.importorskip("timm")
        pytest.importorskip("sentencepiece")
        return vlmprobe.load(GOLDEN / name, device="cpu", dtype="float32")
    return vlmprobe.load(checkpoint(name), device="cpu", dtype="float32")


def built(name):
    from vlmprobe.testing import tiny

    if name not in tiny.names():
        pytest.skip("the installed transformers has no such architecture")
    return name


def assert_identical(one, other):
    for table, wanted in ((one.prompt, other.prompt), (one.output, other.output)):
        for column in ("ids", "logprobs", "entropy", "ranks", "logsumexp", "top_ids", "top_logprobs", "logits"):
            held, expected = getattr(table, column), getattr(wanted, column)
            assert (held is None) == (expected is None)
            assert held is None or np.array_equal(held, expected, equal_nan=held.dtype.kind == "f"), column


# One answer


@pytest.mark.parametrize("name", ["internvl", "qwen2_vl", "gemma3", "mllama", "idefics3", "qwen3_5", *ORIGINAL])
def test_generate_runs_each_part_once_and_the_head_on_wanted_rows_only(name, checkpoint):
    probe = load(name if name in ORIGINAL else built(name), checkpoint)
    with Counted(probe) as count:
        result = probe.generate(QUESTION, image=picture(), max_new_tokens=5, do_sample=False)
    assert count.tower == 1
    assert count.positions == len(result.input_ids) + len(result.output) - 1
    assert count.rows == int(result.prompt.scored.sum()) + len(result.output)
    with Counted(probe) as count:
        result = probe.generate(QUESTION, image=picture(), max_new_tokens=5, do_sample=False, prompt=False)
    assert count.rows == len(result.output)


# Candidates


@pytest.mark.parametrize(
    "name", ["internvl", "qwen2_vl", "mllama", "gemma3", "idefics3", "qwen3_5", "lfm2_vl", *ORIGINAL]
)
def test_candidates_cost_their_own_tokens_and_nothing_else(name, checkpoint):
    probe = load(name if name in ORIGINAL else built(name), checkpoint)
    texts = ["yes", "no", "yes it is", "yes it was", "?"]
    with Counted(probe) as count:
        scores = probe.score(QUESTION, texts, image=picture())
    assert scores.meta["prefix"] == "shared"
    assert scores.boundaries == [None] * len(texts)
    prompt = int(scores.tables[0].positions[0])
    paths = [tuple(table.ids[:-1].tolist()) for table in scores.tables]  # no forward is needed for a last token
    begun = {path[:stop] for path in paths for stop in range(len(path) + 1)}
    leaves = [path for path in set(paths) if path and not any(o != path and o[: len(path)] == path for o in paths)]
    assert count.tower == 1
    assert count.positions == prompt + sum(len(path) for path in leaves)
    assert count.rows == 1 + len(begun), "one row in the prefill's own step, and one for each distribution"


@pytest.mark.parametrize("name", LINEAR)
def test_candidates_after_a_recurrent_state_equal_the_full_forward(name, probe_of):
    """A recurrent state is continued token by token for all candidates at once, from a copy each."""
    probe = probe_of(built(name))
    texts = ["yes", "no, a tiger in the grass", "a tiger", "a tiger in the grass", "老虎和猫 🐯"]
    shared = probe.score(QUESTION, texts, image=picture())
    assert shared.meta["prefix"] == "shared"
    before = probe.engine.adapter.capabilities
    try:
        probe.engine.adapter.capabilities = type(before)(**{**vars(before), "prefix_reuse": False})
        full = probe.score(QUESTION, texts, image=picture())
    finally:
        probe.engine.adapter.capabilities = before
    assert "cannot be continued" in full.meta["prefix"]
    for one, other in zip(shared.tables, full.tables, strict=True):
        assert np.abs(one.logprobs - other.logprobs).max() < LOOSER.get(name, TOLERANCE)


def test_many_candidates_run_in_batches_that_bound_the_cache(probe_of, monkeypatch):
    probe = probe_of("internvl")
    texts = [f"{number} people" for number in range(40)]
    whole = probe.score(QUESTION, texts, image=picture())
    sizes = []
    forward = shared_prefix.SharedPrefix._forward

    def seen(self, inputs, ids, cache, deltas):
        sizes.append(len(ids))
        assert shared_prefix._cache_bytes(cache) <= max(
            shared_prefix.CACHE_BYTES, shared_prefix._cache_bytes(self.cache)
        )
        return forward(self, inputs, ids, cache, deltas)

    monkeypatch.setattr(shared_prefix.SharedPrefix, "_forward", seen)
    probe.score(QUESTION, texts, image=picture())
    one = max(sizes)
    prompt_bytes = None

    def measured(cache):
        nonlocal prompt_bytes
        prompt_bytes = prompt_bytes or size_of(cache)
        return size_of(cache)

    size_of = shared_prefix._cache_bytes
    monkeypatch.setattr(shared_prefix, "_cache_bytes", measured)
    probe.score(QUESTION, texts, image=picture())
    monkeypatch.setattr(shared_prefix, "CACHE_BYTES", 4 * prompt_bytes)
    sizes.clear()
    small = probe.score(QUESTION, texts, image=picture())
    assert max(sizes) == 4 < one
    assert np.abs(small.logprobs - whole.logprobs).max() < TOLERANCE


@pytest.mark.parametrize("name", ["internvl", "mllama"])
def test_candidates_that_run_in_full_encode_the_image_once(name, checkpoint):
    probe = load(name, checkpoint)
    adapter = probe.engine.adapter
    adapter.capabilities = type(adapter.capabilities)(prefix_reuse=False)
    with Counted(probe) as count:
        scores = probe.score(QUESTION, ["yes", "no", "maybe"], image=picture())
    assert "cannot be continued" in scores.meta["prefix"]
    assert count.tower == 1
    assert scores.meta["image_features"] == "reused in part"


# Sessions


@pytest.mark.parametrize("name", [*SOME, *ORIGINAL])
def test_a_session_encodes_a_picture_once_and_changes_no_number(name, checkpoint):
    probe = load(built(name) if name not in ORIGINAL else name, checkpoint)
    questions = [QUESTION, "Hi", "Is there a cat?"]
    plain = [probe.generate(each, image=picture(), keep="logits", **GREEDY) for each in questions]
    scored = probe.score("Is there a cat?", ["yes", "no"], image=picture())
    with Counted(probe) as count, probe.session(picture(), prefix_cache_gb=0) as session:
        results = [session.generate(each, keep="logits", **GREEDY) for each in questions]
        again = session.generate(questions[0], keep="logits", **GREEDY)
        scores = session.score("Is there a cat?", ["yes", "no"])
    per_call = max(1, count.tower)
    assert per_call == runs_of_one_call(probe), "the tower ran for the first question only"
    for result, wanted in zip([*results, again], [*plain, plain[0]], strict=True):
        assert_identical(result, wanted)
        assert len(result.images) == 1
    assert np.array_equal(scores.logprobs, scored.logprobs)
    assert [each.meta["image_features"] for each in results] == ["encoded", "reused", "reused"]
    assert scores.meta["image_features"] == "reused"


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ORIGINAL]


@pytest.mark.parametrize("name", ["internvl", "qwen2_vl", "mllama", "gemma3", *LONG])
def test_the_conformance_suite_passes_with_reuse_on(name, checkpoint):
    """C1 to C24, batches, threads and candidates among them, where features may be found in memory at every call."""
    session = load(name if name in ORIGINAL else built(name), checkpoint).session()
    report = check_adapter(session)
    assert len(report.results) == 24
    assert report.failures == (), report
    assert session.engine.memory._entries, "no picture was remembered"


def runs_of_one_call(probe):
    with Counted(probe) as count:
        probe.generate("Hi", image=picture(), **GREEDY)
    return count.tower


def test_eight_questions_on_one_image_over_eight_calls(probe_of):
    probe = probe_of("internvl")
    with Counted(probe) as count:
        session = probe.session(picture())
        for number in range(8):
            session.generate(f"Question {number}?", **GREEDY)
    assert count.tower == 1


def test_a_session_tells_pictures_apart(probe_of):
    probe = probe_of("internvl")
    session = probe.session(picture(1), prefix_cache_gb=0)  # so that only features are remembered
    for seed in (1, 2, 1, 3, 2):
        result = session.generate(QUESTION, image=picture(seed), keep="logits", **GREEDY)
        assert_identical(result, probe.generate(QUESTION, image=picture(seed), keep="logits", **GREEDY))


def test_options_of_a_picture_make_it_another_one(probe_of):
    probe = probe_of("qwen2_vl")

    def asked(of, **options):
        part = {"type": "image", "image": picture(1, 120, 90), **options}
        return of.generate([{"role": "user", "content": [part, {"type": "text", "text": "Hi"}]}], **GREEDY)

    session = probe.session()
    limits = ({}, {"resized_height": 64, "resized_width": 64}, {})
    assert [asked(session, **each).meta["image_features"] for each in limits] == ["encoded", "encoded", "reused"]
    for each in limits:
        assert np.array_equal(asked(session, **each).input_ids, asked(probe, **each).input_ids)


def test_what_a_session_asks_about(probe_of):
    session = probe_of("internvl").session([picture(1), picture(2)])
    assert len(session.generate("Compare them.", **GREEDY).images) == 2
    bare = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]}]
    assert len(session.generate(bare, **GREEDY).images) == 2
    other = [{"role": "user", "content": [{"type": "image", "image": picture(3)}, {"type": "text", "text": "Hi"}]}]
    assert len(session.generate(other, **GREEDY).images) == 1
    assert len(session.generate("Hi", image=picture(4), **GREEDY).images) == 1
    assert [len(each.images) for each in session.generate_many(["a", Request("b", picture(3))], **GREEDY)] == [2, 1]
    assert session.generate("Again.", **GREEDY).meta["image_features"] == "reused"


def test_a_session_holds_the_pictures_met_last(probe_of):
    session = probe_of("internvl").session(images=2, prefix_cache_gb=0)
    told = [session.generate("Hi", image=picture(seed), **GREEDY).meta["image_features"] for seed in (1, 2, 1, 3, 1, 2)]
    assert told == ["encoded", "encoded", "reused", "encoded", "reused", "encoded"]
    session.forget()
    assert session.generate("Hi", image=picture(1), **GREEDY).meta["image_features"] == "encoded"


def test_a_session_is_bounded_in_bytes(probe_of):
    session = probe_of("internvl").session(images=8, prefix_cache_gb=0)
    session.engine.memory.limit = 1
    for seed in (1, 2):
        session.generate("Hi", image=picture(seed), **GREEDY)
    assert session.generate("Hi", image=picture(2), **GREEDY).meta["image_features"] == "reused", "the last one stays"
    assert session.generate("Hi", image=picture(1), **GREEDY).meta["image_features"] == "encoded"


@pytest.mark.parametrize("images", [0, -1, 1.5, True, "many"])
def test_impossible_sizes_of_a_session(images, probe_of):
    with pytest.raises(GenerationOptionError, match="images"):
        probe_of("internvl").session(picture(), images=images)


def test_a_session_leaves_nothing_on_the_model(checkpoint):
    probe = load("internvl", checkpoint)
    backbone = probe.engine.adapter.backbone
    before = dict(backbone.__dict__)
    session = probe.session(picture(), prefix_cache_gb=0)
    session.generate("Hi", **GREEDY)
    assert backbone.__dict__.keys() == before.keys()

    def broken(*_):
        raise KeyboardInterrupt

    handle = backbone.language_model.register_forward_hook(broken)
    with pytest.raises(KeyboardInterrupt):
        session.generate("Hi", **GREEDY)
    handle.remove()
    assert backbone.__dict__.keys() == before.keys()
    assert_identical(session.generate("Hi", **GREEDY), probe.generate("Hi", image=picture(), **GREEDY))


def test_a_session_of_a_family_without_a_named_encoder_says_so(checkpoint, monkeypatch):
    probe = load("internvl", checkpoint)
    monkeypatch.setattr(type(probe.engine.adapter), "image_encoder", None)
    session = probe.session(picture(), prefix_cache_gb=0)
    with Counted(probe) as count:
        results = [session.generate("Hi", **GREEDY) for _ in range(2)]
    assert count.tower == 2
    assert all("names no method" in each.meta["image_features"] for each in results)


def test_features_beside_the_fields_of_their_output_are_remembered():
    """Some models set ``pooler_output`` on an output whose class has no such field."""
    output = BaseModelOutput(last_hidden_state=torch.ones(1, 2, 3), hidden_states=(torch.ones(1),))
    output.pooler_output = torch.arange(6.0).reshape(2, 3)

    copy, both = copied(output), joined([output, output])

    assert torch.equal(copy.pooler_output, output.pooler_output)
    assert torch.equal(both.pooler_output, torch.cat([output.pooler_output] * 2))
    assert torch.equal(both.last_hidden_state, torch.ones(2, 2, 3))
    assert copy.hidden_states is None
    assert bytes_of(output) == 4 * (6 + 6 + 1)


def test_a_batch_of_new_and_remembered_images(checkpoint):
    """The output of an image just encoded has the hidden states of its tower, a remembered one does not: KeyError."""
    probe = load("internvl", checkpoint)
    probe.engine.adapter.model.config.vision_feature_layer = -2  # an earlier layer: the tower returns its hidden states
    old, new = picture(1), picture(2)
    session = probe.session()
    session.generate("Hi", image=old, **GREEDY)
    results = list(session.generate_many([Request("Hi", each) for each in (new, old, new)], batch_size=3, **GREEDY))
    for result, image in zip(results, (new, old, new), strict=True):
        alone = probe.generate("Hi", image=image, **GREEDY)
        np.testing.assert_allclose(result.output.logprobs, alone.output.logprobs, atol=TOLERANCE)


def test_an_engine_without_memory_has_no_sessions(probe_of):
    class Served:
        pass

    with pytest.raises(CapabilityError, match="image features cached"):
        vlmprobe.Probe(Served(), {}).session(picture())


# Many requests


@pytest.mark.parametrize(
    "name", ["internvl", "qwen2_vl", "qwen3_vl", "gemma3", "mllama", *ORIGINAL[:1], "minicpmv-2.6"]
)
def test_a_picture_that_requests_share_is_encoded_once(name, checkpoint):
    probe = load(name, checkpoint)
    with Counted(probe) as count:
        for seed in (1, 2):
            probe.generate("Hi", image=picture(seed), **GREEDY)
    once = count.pictures
    requests = [Request(f"Question {place}" + "?" * place, picture(1 + place % 2)) for place in range(6)]
    with Counted(probe) as count:
        results = list(probe.generate_many(requests, keep="logits", batch_size=6, **GREEDY))
    assert results[0].meta["batch_size"] == 6
    assert count.pictures == once, "each of the two pictures once"
    for request, result in zip(requests, results, strict=True):
        alone = probe.generate(request.question, request.image, keep="logits", **GREEDY)
        assert np.abs(result.output.logits - alone.output.logits).max() < TOLERANCE
        assert np.nanmax(np.abs(result.prompt.logits - alone.prompt.logits)) < TOLERANCE


@pytest.mark.parametrize("name", [*ORIGINAL, "internvl"])
@pytest.mark.parametrize("batch_size", ["auto", 8])
def test_requests_with_and_without_pictures_share_a_batch_where_the_family_can(name, batch_size, checkpoint):
    """The original formats lay out their batches themselves; processors of transformers want images in all or none."""
    probe = load(name, checkpoint)
    several = probe.engine.adapter.capabilities.several_images
    images = [None, picture(1), [picture(2), picture(3, 80, 30)] if several else picture(2), None, picture(4)]
    requests = [Request("Hi there" + "?" * place, image) for place, image in enumerate(images)]
    results = list(probe.generate_many(requests, keep="stats", batch_size=batch_size, **GREEDY))
    together = {result.meta["batch_size"] for result in results}
    assert (together == {5}) is (name in ORIGINAL)
    for request, result in zip(requests, results, strict=True):
        alone = probe.generate(request.question, request.image, **GREEDY)
        assert np.array_equal(result.input_ids, alone.input_ids)
        for one, other in ((result.prompt, alone.prompt), (result.output, alone.output)):
            assert np.array_equal(one.ids, other.ids)
            assert np.nanmax(np.abs(one.logprobs - other.logprobs)) < TOLERANCE


def test_requests_are_grouped_by_length_and_come_back_in_order(probe_of, monkeypatch):
    probe = probe_of("internvl")
    batches = []
    generate = type(probe.engine).generate

    def seen(self, conversations, options, *more):
        batches.append([(len(each.images), len(each.question)) for each in conversations])
        return generate(self, conversations, options, *more)

    monkeypatch.setattr(type(probe.engine), "generate", seen)
    requests = [
        Request("word " * (1 + 25 * (place % 3)), picture(place) if place % 2 else None, id=place)
        for place in range(36)
    ]
    results = list(probe.generate_many(requests, **GREEDY))
    assert [each.meta["id"] for each in results] == list(range(36))
    assert [each.images != () for each in results] == [bool(place % 2) for place in range(36)]
    lengths = [max(length for _, length in batch) for batch in batches]
    assert lengths == sorted(lengths, reverse=True), "the longest first"
    for batch in batches:
        assert len({images for images, _ in batch}) == 1
        assert max(length for _, length in batch) <= 2 * min(length for _, length in batch) + 4 * batching.SLACK


def test_an_endless_list_of_requests_is_read_a_window_at_a_time(probe_of):
    read = []

    def endless():
        while True:
            read.append(None)
            yield Request("Hi", id=len(read))

    results = probe_of("internvl").generate_many(endless(), max_new_tokens=1, do_sample=False)
    assert [each.meta["id"] for each in islice(results, 3)] == [1, 2, 3]
    assert len(read) == batching.WINDOW
    results.close()


def test_large_pictures_make_the_window_smaller(probe_of, monkeypatch):
    monkeypatch.setattr(batching, "WINDOW_BYTES", 3 * 3 * 48 * 40)
    read = []

    def requests():
        for seed in range(20):
            read.append(seed)
            yield Request("Hi", picture(seed), id=seed)

    results = probe_of("internvl").generate_many(requests(), max_new_tokens=1, do_sample=False)
    next(results)
    assert len(read) == 4
    assert [each.meta["id"] for each in results] == list(range(1, 20))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: not enough memory: you tried to ..."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
    ids=["device", "python", "cpu", "older cpu"],
)
@pytest.mark.parametrize("batch_size", ["auto", 12])
def test_where_memory_ends_the_batch_is_halved_and_nothing_is_lost(error, batch_size, probe_of, monkeypatch):
    probe = probe_of("internvl")
    sizes = []
    generate = type(probe.engine).generate

    def short_of_memory(self, conversations, options, *more):
        sizes.append(len(conversations))
        if len(conversations) > 3:
            raise error
        return generate(self, conversations, options, *more)

    requests = [Request("Hi" + "?" * place, id=place) for place in range(14)]
    wanted = [probe.generate(each.question, **GREEDY) for each in requests]
    monkeypatch.setattr(type(probe.engine), "generate", short_of_memory)
    results = list(probe.generate_many(requests, batch_size=batch_size, **GREEDY))
    assert [each.meta["id"] for each in results] == list(range(14))
    for result, other in zip(results, wanted, strict=True):
        assert np.abs(result.output.logprobs - other.output.logprobs).max() < TOLERANCE
    small = [size for size in sizes if size <= 3]
    assert sum(small) == 14
    assert len(sizes) - len(small) <= 2, "once too large, a size is not tried again"


def test_one_request_that_does_not_fit_is_an_error(probe_of, monkeypatch):
    def full(*_):
        raise MemoryError("one request is too much")

    probe = probe_of("internvl")
    monkeypatch.setattr(type(probe.engine), "generate", full)
    with pytest.raises(MemoryError, match="one request"):
        list(probe.generate_many(["Hi", "Yes"], **GREEDY))


def test_other_errors_halve_nothing(probe_of, monkeypatch):
    sizes = []

    def broken(_, conversations, *__):
        sizes.append(len(conversations))
        raise RuntimeError("shapes do not match")

    probe = probe_of("internvl")
    monkeypatch.setattr(type(probe.engine), "generate", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        list(probe.generate_many(["Hi", "Yes"], **GREEDY))
    assert sizes == [2, 1], "the second run is of one request alone, to name it"


def test_the_bar_tells_tokens_per_second(probe_of, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if a person watched
    monkeypatch.setenv("COLUMNS", "120")
    list(probe_of("internvl").generate_many(["Hi", "Yes"], progress=True, **GREEDY))
    assert "tokens/s" in capsys.readouterr().err
    with contextlib.closing(probe_of("internvl").generate_many(["Hi", "Yes"], progress=False, **GREEDY)) as results:
        next(results)
    assert capsys.readouterr().err == ""
