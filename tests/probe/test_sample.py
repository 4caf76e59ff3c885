"""Sampled answers: agreement and entropies against formulas written out, and what lm-polygraph reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from analysis_cases import random_result
from common import picture

from vlmprobe.analysis import lm_polygraph
from vlmprobe.errors import GenerationOptionError, ResultError
from vlmprobe.probe.sample import Samples, group

TEXTS = ["a cat", "a cat", "A Cat.", "a dog", "two dogs", "a dog"]
SEEDS = [1, 1, 2, 3, 4, 3]  # equal seeds are equal tokens


@pytest.fixture
def samples():
    return Samples(tuple(random_result(seed, text=text, count=4) for seed, text in zip(SEEDS, TEXTS, strict=True)))


def logprob(seed):
    return float(random_result(seed, count=4).output.logprobs.sum(dtype=np.float64))


def test_agreement_and_groups(samples):
    assert samples.groups().tolist() == [0, 0, 1, 2, 3, 2]
    assert samples.agreement() == pytest.approx(2 / 6)
    kinds = samples.groups(lambda text: "cat" in text.casefold())
    assert kinds.tolist() == [0, 0, 0, 1, 1, 1]
    assert samples.agreement(kinds) == pytest.approx(0.5)
    assert samples.agreement(["x", "x", "x", "x", "y", "y"]) == pytest.approx(4 / 6)
    best = samples.most_common(np.array([0, 0, 0, 1, 1, 1]))
    assert best.output.logprob == max(logprob(seed) for seed in SEEDS)
    with pytest.raises(ResultError, match="one label for each of the 6"):
        samples.agreement([0, 1])


def test_comparison_joins_the_first_match_and_asks_no_more_than_needed():
    asked = []

    def same(first, second):
        asked.append((first, second))
        return first[0] == second[0]

    assert group(["ab", "cd", "ax", "ce", "z"], same=same).tolist() == [0, 1, 0, 1, 2]
    assert asked == [("ab", "cd"), ("ab", "ax"), ("ab", "ce"), ("cd", "ce"), ("ab", "z"), ("cd", "z")]
    with pytest.raises(ResultError, match="not both"):
        group(["a"], str.strip, same=same)


def test_predictive_entropy_is_the_mean_surprisal(samples):
    surprisals = np.array([-logprob(seed) for seed in SEEDS])
    assert samples.predictive_entropy() == pytest.approx(surprisals.mean())
    assert samples.standard_error() == pytest.approx(surprisals.std(ddof=1) / np.sqrt(6))
    assert samples.predictive_entropy(normalised=True) == pytest.approx(surprisals.mean() / 4)


def test_semantic_entropy_by_hand(samples):
    labels = [0, 0, 0, 1, 1, 1]
    cats = np.exp(logprob(1)) + np.exp(logprob(2))  # the answer drawn twice is one answer
    dogs = np.exp(logprob(3)) + np.exp(logprob(4))
    share = cats / (cats + dogs)
    wanted = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert samples.semantic_entropy(labels) == pytest.approx(wanted, rel=1e-6)
    assert samples.semantic_entropy(labels, estimator="kuhn") == pytest.approx(-np.log([cats, dogs]).mean(), rel=1e-6)
    assert samples.semantic_entropy(labels, estimator="discrete") == pytest.approx(np.log(2))
    assert samples.mass() == pytest.approx(cats + dogs, rel=1e-6)
    per_token = np.array([np.exp(logprob(seed) / 4) for seed in (1, 2, 3, 4)])
    share = per_token[:2].sum() / per_token.sum()
    wanted = -(share * np.log(share) + (1 - share) * np.log(1 - share))
    assert samples.semantic_entropy(labels, normalised=True) == pytest.approx(wanted, rel=1e-6)
    assert samples.semantic_entropy([0] * 6) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ResultError, match="estimator must be"):
        samples.semantic_entropy(labels, estimator="mean")


def test_the_estimate_meets_the_entropy_it_estimates(probe_of):
    """Of one drawn token the entropy is known exactly: that of its row."""
    probe = probe_of("qwen2_vl")
    drawn = probe.sample("Describe.", picture(), n=60, max_new_tokens=1)
    row = drawn.results[0].output.entropy[0]
    assert abs(drawn.predictive_entropy() - row) < 4 * max(drawn.standard_error(), 1e-3)


def test_samples_are_those_of_their_seeds_and_pure(probe_of):
    probe = probe_of("qwen2_vl")
    drawn = probe.sample("Describe.", picture(), n=3, seed=5, max_new_tokens=4)
    assert drawn.pure
    assert [each.meta["seed"] for each in drawn] == [5, 6, 7]
    alone = probe.generate(
        "Describe.", picture(), seed=6, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=4
    )
    np.testing.assert_array_equal(drawn.results[1].output.ids, alone.output.ids)
    np.testing.assert_array_equal(drawn.results[1].output.logprobs, alone.output.logprobs)
    warm = probe.sample("Describe.", n=2, temperature=0.5, max_new_tokens=2)
    assert not warm.pure
    assert all(each.output.scores is not None for each in warm)


def test_impossible_samples_are_refused(probe_of):
    probe = probe_of("qwen2_vl")
    for wrong in (1, 0, True, 2.0):
        with pytest.raises(ResultError, match="at least 2"):
            probe.sample("Describe.", n=wrong)
    with pytest.raises(GenerationOptionError, match="leave out"):
        probe.sample("Describe.", do_sample=False)
    with pytest.raises(GenerationOptionError, match="leave out"):
        probe.sample("Describe.", num_beams=2)
    with pytest.raises(ResultError, match="at least 2"):
        Samples((random_result(0),))


def test_statistics_have_the_names_and_layouts_of_lm_polygraph(samples):
    results = [random_result(seed) for seed in (10, 11)]
    drawn = [samples, samples]
    labels = [samples.groups(), np.array([0, 0, 0, 1, 1, 1])]
    stats = lm_polygraph.statistics(results, drawn, labels, without=[each.output for each in results])
    # The estimators below are lm-polygraph's formulas over its statistics.
    sequence = [-np.sum(each) for each in stats["greedy_log_likelihoods"]]
    assert sequence == pytest.approx([-each.output.logprob for each in results], rel=1e-6)
    for at, result in enumerate(results):
        full = np.array(stats["greedy_log_probs"][at])
        np.testing.assert_allclose(np.exp(full).sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(-(np.exp(full) * full).sum(-1), stats["entropy"][at], atol=1e-4)
        tokens = stats["greedy_tokens"][at]
        np.testing.assert_allclose(full[np.arange(len(tokens)), tokens], stats["greedy_log_likelihoods"][at], atol=1e-5)
        for chosen, others in zip(tokens, stats["greedy_tokens_alternatives"][at], strict=True):
            assert others[0][0] == chosen
            assert len(others) == 5
            assert len({each for each, _ in others}) == 5
        assert stats["input_tokens"][at] == list(range(6))
        assert stats["input_texts"][at] == result.meta["question"]
    assert np.mean(stats["sample_log_probs"][0]) == pytest.approx(-samples.predictive_entropy())
    assert [sum(each) for each in stats["sample_log_likelihoods"][0]] == pytest.approx(stats["sample_log_probs"][0])
    classes = stats["semantic_classes_entail"]
    assert classes["class_to_sample"][1] == [[0, 1, 2], [3, 4, 5]]
    assert classes["sample_to_class"][0] == {0: 0, 1: 0, 2: 1, 3: 2, 4: 3, 5: 2}
    assert stats["greedy_lm_log_likelihoods"] == stats["greedy_log_likelihoods"]


def test_statistics_fill_only_what_is_there():
    bare = lm_polygraph.statistics([random_result(12, keep=False)])
    assert "greedy_log_probs" not in bare
    assert not [name for name in bare if name.startswith(("sample", "semantic", "greedy_lm"))]
    result = random_result(13)
    with pytest.raises(ResultError, match="samples has 2 entries for 1"):
        lm_polygraph.statistics([result], samples=[None, None])
    with pytest.raises(ResultError, match="pass samples="):
        lm_polygraph.statistics([result], groups=[np.array([0, 1])])
    other = replace(result.output, ids=result.output.ids[::-1].copy())
    with pytest.raises(ResultError, match="other tokens"):
        lm_polygraph.statistics([result], without=[other])
