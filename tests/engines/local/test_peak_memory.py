"""A default call never holds the logits of all positions: every tensor that is made is looked at."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import numpy as np
import pytest
import torch
from common import QUESTION, picture
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from vlmprobe.engines.local import capture, row_stats

ROWS = 3  # the most rows of logits at a time: one step of one request, and what a processor makes of it
NEW = 12


class Rows(TorchDispatchMode):
    """Follows every tensor whose last dimension is the vocabulary: the largest one, and how many rows live at once."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.vocabulary = model.get_output_embeddings().weight.shape[0]
        self.weights = {each.untyped_storage()._cdata for each in model.parameters()}
        self.largest = self.most = self.living = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_iter(made):
            if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.shape[-1] == self.vocabulary:
                self._follow(tensor)
        return made

    def _follow(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.weights:
            return
        self.largest = max(self.largest, tensor.numel() // self.vocabulary)
        if key in self.known:
            return
        self.known.add(key)
        held = storage.nbytes() // (self.vocabulary * tensor.element_size())
        self.living += held
        self.most = max(self.most, self.living)
        weakref.finalize(storage, self._gone, key, held)

    def _gone(self, key: int, held: int) -> None:
        self.known.discard(key)
        self.living -= held


@pytest.fixture
def long_prompt():
    return QUESTION * 12


def watched(probe):
    return Rows(probe.engine.adapter.model)


@pytest.fixture
def small_chunks(monkeypatch, probe_of):
    """Chunks of a few rows, as a vocabulary of a real size would give."""

    row = 4 * watched(probe_of("internvl")).vocabulary
    monkeypatch.setattr(capture, "CHUNK_BYTES", 2 * row)
    monkeypatch.setattr(row_stats, "BLOCK_BYTES", dict.fromkeys((True, False), 2 * row))


@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"do_sample": True, "seed": 0, "temperature": 0.7, "top_k": 9}]
)
def test_a_default_call_holds_a_few_rows_of_logits(options, probe_of, long_prompt, small_chunks):
    probe = probe_of("internvl")
    with watched(probe) as rows:
        result = probe.generate(long_prompt, image=picture(), max_new_tokens=NEW, **options)
    assert len(result.prompt) > 100
    assert len(result.output) == NEW
    assert 1 <= rows.largest <= ROWS


def test_the_observer_sees_what_a_naive_call_would_hold(probe_of, long_prompt, own):
    from reference import chat, encode, generate

    inputs = encode(own("internvl"), chat(long_prompt, picture()))
    with Rows(own("internvl").model) as rows, torch.no_grad():
        own("internvl").model(**inputs)
    assert rows.largest == inputs["input_ids"].shape[1]
    with Rows(own("internvl").model) as rows:
        generate(own("internvl"), inputs, max_new_tokens=NEW, do_sample=False)
    assert rows.most >= NEW


def test_memory_does_not_grow_with_the_answer(probe_of):
    probe = probe_of("internvl")
    most = []
    for new in (4, 24):
        with watched(probe) as rows:
            probe.generate("Hi", max_new_tokens=new, do_sample=True, seed=0, prompt=False)
        most.append(rows.most)
    assert most[0] == most[1]


@pytest.mark.parametrize("steps", [1, capture.STEPS + 1, 5 * capture.STEPS + 3])
def test_the_numbers_of_many_steps_are_few_tensors(steps):
    """A tensor of one number takes hundreds of bytes: kept apart, the numbers of a step took 5 KB instead of 200 B."""
    rows = torch.randn(steps, 2, 50, generator=torch.Generator().manual_seed(0))
    tokens = torch.arange(2 * steps).reshape(steps, 2) % 50
    recorded = capture.Steps(3, keep=None)
    before = tensors()
    for row, drawn in zip(rows, tokens, strict=True):
        recorded._before(torch.zeros(2, 1, dtype=torch.long), row)
        recorded.finish(drawn)
    assert tensors() - before <= 6 * (capture.STEPS + steps // capture.STEPS) + 2
    assert recorded.count == steps
    wanted = row_stats.row_stats(rows.flatten(0, 1), tokens.flatten(), 3)
    for name, values in recorded.columns().items():
        assert np.allclose(values.flatten(0, 1), getattr(wanted, name), atol=1e-6), name
    assert recorded.columns() == {}


def tensors():
    return sum(type(each) is torch.Tensor for each in gc.get_objects())


def test_beams_hold_the_rows_of_their_beams(probe_of, long_prompt, small_chunks):
    probe = probe_of("internvl")
    with watched(probe) as rows:
        probe.generate(long_prompt, image=picture(), max_new_tokens=NEW, num_beams=3, do_sample=False)
    assert rows.largest <= 3


def test_scores_hold_a_few_rows_of_logits(probe_of, long_prompt, small_chunks):
    probe = probe_of("internvl")
    candidates = [f"{number} people in the picture" for number in range(30)]
    with watched(probe) as rows:
        scores = probe.score(long_prompt, candidates, image=picture())
    assert sum(len(table) for table in scores.tables) > 150
    assert rows.largest <= 4


def test_a_chunk_of_rows_goes_before_the_next_is_computed(probe_of, long_prompt, small_chunks, monkeypatch):
    chunks: list[weakref.ref[torch.UntypedStorage]] = []
    computed = capture.Head.__call__

    def followed(head, hidden):
        assert all(each() is None for each in chunks)
        logits = computed(head, hidden)
        chunks.append(weakref.ref(logits.untyped_storage()))
        return logits

    monkeypatch.setattr(capture.Head, "__call__", followed)
    probe_of("internvl").generate(long_prompt, image=picture(), max_new_tokens=1, do_sample=False)
    assert len(chunks) > 10


def test_a_token_takes_half_a_kilobyte(probe_of, monkeypatch):
    """The strings of ten alternatives took 1.8 KB a token; they are made of their ids when they are read."""
    probe = probe_of("internvl")
    monkeypatch.setattr(probe.engine.detokenizer, "alone", lambda each: f" word {each}")  # as if no text came twice
    held = []
    for new in (8, 136):
        probe.generate("Hi", max_new_tokens=new, do_sample=True, seed=1, min_new_tokens=new)  # what is made only once
        gc.collect()
        tracemalloc.start()
        result = probe.generate("Hi", max_new_tokens=new, do_sample=True, seed=1, min_new_tokens=new, alternatives=10)
        gc.collect()
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        assert result.output.top_ids.shape == (new, 10)
    assert (held[1] - held[0]) / 128 < 500


def test_results_hold_columns_only(probe_of):
    result = probe_of("internvl").generate(QUESTION, image=picture(), max_new_tokens=4, do_sample=False)
    for table in (result.prompt, result.output):
        for name in ("ids", "logprobs", "entropy", "ranks", "logsumexp", "top_ids", "top_logprobs", "offsets"):
            column = getattr(table, name)
            base = column
            while getattr(base, "base", None) is not None:
                base = base.base
            assert base.nbytes <= 80 * len(table), name
