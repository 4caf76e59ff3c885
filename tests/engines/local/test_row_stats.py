"""Statistics of logits rows against scipy and float64 arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import columns

from vlmprobe.engines.local.row_stats import SPAN, RowStats, processed_logprobs, row_stats

ROWS, VOCABULARY = 40, 333


@pytest.fixture
def logits():
    return torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4


@pytest.fixture
def ids():
    return torch.randint(VOCABULARY, (ROWS,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_columns_in_float32_for_every_dtype(dtype, logits, ids):
    logits = logits.to(dtype)
    stats = row_stats(logits, ids, 7)
    wanted = columns(logits.double().numpy(), ids.numpy())
    for name in ("logprobs", "entropy", "logsumexp"):
        held = getattr(stats, name)
        assert held.dtype == torch.float32
        assert np.abs(held.numpy() - wanted[name]).max() < 1e-5, name
    assert stats.ranks.tolist() == wanted["ranks"].tolist()
    assert np.abs(stats.top_logprobs.numpy() - wanted["sorted"][:, :7]).max() < 1e-5
    named = logits.double().log_softmax(-1).gather(1, stats.top_ids)
    assert (named - stats.top_logprobs).abs().max() < 1e-5


def test_against_scipy(logits, ids):
    stats_module = pytest.importorskip("scipy.stats")
    special = pytest.importorskip("scipy.special")
    stats = row_stats(logits, ids, 3)
    assert np.allclose(
        stats.entropy, stats_module.entropy(special.softmax(logits.numpy(), axis=-1), axis=-1), atol=1e-5
    )
    assert np.allclose(stats.logsumexp, special.logsumexp(logits.numpy(), axis=-1), atol=1e-5)


def test_several_tokens_of_one_row(logits):
    of = torch.tensor([0, 0, 0, 3, 3, 39])
    ids = torch.tensor([5, 5, 300, 0, VOCABULARY, 7])
    stats, single = row_stats(logits, ids, 4, of), row_stats(logits[of], ids, 4)
    for name in RowStats.__dataclass_fields__:
        assert torch.equal(getattr(stats, name).nan_to_num(7), getattr(single, name).nan_to_num(7)), name


def test_ids_beyond_the_head_have_no_probability(logits):
    stats = row_stats(logits[:4], torch.tensor([VOCABULARY, -1, 10**9, 0]), 2)
    assert torch.isnan(stats.logprobs).tolist() == [True, True, True, False]
    assert stats.ranks[:3].tolist() == [-1, -1, -1]
    assert torch.isfinite(stats.entropy).all()


def test_logits_of_minus_infinity_have_probability_zero(logits, ids):
    logits[:, 10:300] = -torch.inf
    logits[0] = -torch.inf
    logits[0, 7] = 3.0
    stats = row_stats(logits, torch.full((ROWS,), 7), 5)
    wanted = torch.distributions.Categorical(logits=logits[:, [*range(10), *range(300, VOCABULARY)]]).entropy()
    assert (stats.entropy[1:] - wanted[1:]).abs().max() < 1e-5
    assert stats.entropy[0] == 0
    assert stats.logprobs[0] == 0
    assert stats.ranks[0] == 0
    assert stats.top_logprobs[0].tolist() == [0.0] + [-float("inf")] * 4
    assert row_stats(logits, torch.full((ROWS,), 20), 5).logprobs.tolist() == [-float("inf")] * ROWS


@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_large_logits_do_not_overflow(scale, ids):
    logits = torch.linspace(-1, 1, VOCABULARY).repeat(ROWS, 1) * scale
    stats = row_stats(logits, ids, 2)
    assert torch.isfinite(stats.logsumexp).all()
    assert torch.isfinite(stats.entropy).all()
    assert stats.entropy.abs().max() < 1e-4
    assert stats.logprobs.max() <= 0


def test_ties_share_a_rank():
    stats = row_stats(torch.tensor([[2.0, 2.0, 1.0, 2.0, 0.0]]).repeat(5, 1), torch.arange(5), 2)
    assert stats.ranks.tolist() == [0, 0, 3, 0, 4]


def test_more_alternatives_than_tokens():
    stats = row_stats(torch.randn(2, 5), torch.tensor([0, 1]), 100)
    assert stats.top_ids.shape == (2, 5)
    assert torch.allclose(stats.top_logprobs.exp().sum(-1), torch.ones(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_shows_in_its_logsumexp(bad, logits, ids):
    logits[3, 5] = bad
    assert torch.isfinite(row_stats(logits, ids, 2).logsumexp).tolist() == [row != 3 for row in range(ROWS)]


def test_the_input_is_not_changed(logits, ids):
    for each in (logits.float(), logits.bfloat16()):
        before = each.clone()
        row_stats(each, ids, 3)
        processed_logprobs(each, ids)
        assert torch.equal(each, before)


def test_joined_blocks_are_the_whole(logits, ids):
    whole = row_stats(logits, ids, 6)
    parts = [row_stats(logits[rows], ids[rows], 6) for rows in (slice(0, 1), slice(1, 23), slice(23, None))]
    for name in RowStats.__dataclass_fields__:
        assert torch.equal(getattr(RowStats.join(parts), name), getattr(whole, name))
        assert torch.equal(getattr(whole.rows(slice(2, 5)), name), getattr(whole, name)[2:5])


def test_blocks_written_into_columns_of_the_whole(logits, ids):
    whole = row_stats(logits, ids, 6)
    found = RowStats.empty(len(ids), 6, logits.device)
    for start, stop in ((23, ROWS), (0, 1), (1, 23)):
        found.put(start, row_stats(logits[start:stop], ids[start:stop], 6))
    for name in RowStats.__dataclass_fields__:
        assert torch.equal(getattr(found, name), getattr(whole, name)), name


@pytest.mark.parametrize("vocabulary", [40 * SPAN, 40 * SPAN + 1, 41 * SPAN - 1])
@pytest.mark.parametrize("top", [1, 2, 9])
def test_the_most_likely_of_a_large_vocabulary(vocabulary, top):
    drawn = torch.Generator().manual_seed(2)
    logits = torch.randn(12, vocabulary, generator=drawn)
    logits[1] = logits[1].round()  # ties
    logits[2, 5:] = -torch.inf
    logits[3] = logits[3].sort().values  # the greatest lie in one span, or beyond the last
    logits[4] = logits[4].sort(descending=True).values
    logits[5] = 0.25
    logits[6, -1] = logits[7, 0] = 60.0
    ids = torch.randint(vocabulary, (12,), generator=drawn)
    stats = row_stats(logits, ids, top)
    wanted = logits.double().log_softmax(-1)
    assert (stats.top_logprobs.double() - wanted.topk(top).values).nan_to_num(0, 0, 0).abs().max() < 1e-5
    assert torch.equal(logits.gather(1, stats.top_ids), logits.topk(top).values)
    assert all(len(set(row)) == top for row in stats.top_ids.tolist())
    assert stats.ranks.tolist() == (logits > logits.gather(1, ids[:, None])).sum(-1).tolist()


def test_a_large_vocabulary_costs_no_digits():
    """Softmax's own sum is off by 1e-5 over 150,000 words."""
    logits = torch.randn(4, 151_656, generator=torch.Generator().manual_seed(3)) * 3
    stats = row_stats(logits, torch.arange(4), 5)
    wanted = columns(logits.double().numpy(), np.arange(4))
    assert np.abs(stats.logsumexp.numpy() - wanted["logsumexp"]).max() < 4e-6
    assert np.abs(stats.entropy.numpy() - wanted["entropy"]).max() < 4e-6


def test_processed_logprobs_over_what_the_filters_left(logits, ids):
    kept = logits.topk(5, dim=-1).indices
    scores = torch.full_like(logits, -torch.inf).scatter(1, kept, (logits / 0.5).gather(1, kept))
    chosen = kept[:, 2]
    wanted = scores.gather(1, chosen[:, None])[:, 0] - scores.gather(1, kept).logsumexp(-1)
    assert (processed_logprobs(scores, chosen) - wanted).abs().max() < 1e-5
