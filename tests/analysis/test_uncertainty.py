"""Measures of one answer against float64 arithmetic over the full rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
from analysis_cases import VOCABULARY, random_result, random_table

from vlmprobe import analysis
from vlmprobe.analysis import entropies, uncertainty
from vlmprobe.analysis.confidences import confidences
from vlmprobe.errors import ResultError
from vlmprobe.results.result import Scores


def exact(table, row):
    """Log-probabilities [V] of a row, float64, by scipy."""
    return scipy.special.log_softmax(table.logits[row].astype(np.float64))


@pytest.mark.parametrize("seed", range(5))
def test_measures_follow_from_the_full_rows(seed):
    table = random_table(seed, blank=(0, 3, 7))
    rows = [row for row in range(len(table)) if row not in (0, 3, 7)]
    logprobs = np.array([exact(table, row)[table.ids[row]] for row in rows])
    entropy = np.array([scipy.stats.entropy(np.exp(exact(table, row))) for row in rows])
    leads = np.array([-np.diff(-np.sort(-exact(table, row))[:2])[0] for row in rows])
    said = uncertainty.summary(table)
    assert said["logprob"] == pytest.approx(logprobs.sum(), abs=1e-4)
    assert said["probability"] == pytest.approx(np.exp(logprobs.sum()), rel=1e-4)
    assert said["mean_logprob"] == pytest.approx(logprobs.mean(), abs=1e-5)
    assert said["min_logprob"] == pytest.approx(logprobs.min(), abs=1e-5)
    assert said["perplexity"] == pytest.approx(np.exp(-logprobs.mean()), rel=1e-5)
    assert said["mean_surprisal"] == pytest.approx(-np.log2(np.exp(logprobs)).mean(), abs=1e-5)
    assert said["mean_entropy"] == pytest.approx(entropy.mean(), abs=1e-5)
    assert said["max_entropy"] == pytest.approx(entropy.max(), abs=1e-5)
    assert said["mean_margin"] == pytest.approx(leads.mean(), abs=1e-5)
    assert said["min_margin"] == pytest.approx(leads.min(), abs=1e-5)
    assert said["perplexity"] == pytest.approx(table.perplexity, rel=1e-6)
    bits = uncertainty.surprisal(table)
    np.testing.assert_allclose(bits[rows], -logprobs / np.log(2), atol=1e-5)
    assert np.isnan(bits[[0, 3, 7]]).all()


def test_rows_without_a_distribution_enter_nothing():
    table = random_table(1, blank=(0, 4, 9))
    without = [row for row in range(len(table)) if row not in (0, 4, 9)]
    dense = random_table(1)
    for name, measure in uncertainty.MEASURES.items():
        if name == "bits_per_byte":
            continue
        values = {"logprob": dense.logprobs, "entropy": dense.entropy, "margin": dense.margin}
        column = values.get(name.split("_")[-1])
        if column is None:
            continue
        how = {"logprob": np.sum, "mean": np.mean, "min": np.min, "max": np.max}[name.split("_")[0]]
        assert measure(table) == pytest.approx(how(column[without].astype(np.float64)), rel=1e-6), name


def test_a_table_without_any_distribution_has_no_numbers():
    table = random_table(0, 3, blank=(0, 1, 2))
    assert all(np.isnan(value) for value in uncertainty.summary(table).values())


def test_kinds_choose_rows():
    kinds = ["text"] * 4 + ["special"]
    table = random_table(2, 5, kinds=kinds)
    assert uncertainty.sequence_logprob(table) == pytest.approx(table.logprobs.sum(), rel=1e-6)
    assert uncertainty.sequence_logprob(table, kinds=("text",)) == pytest.approx(table.logprobs[:4].sum(), rel=1e-6)
    assert uncertainty.sequence_logprob(table, kinds="special") == pytest.approx(table.logprobs[4])
    with pytest.raises(ResultError, match="kinds must be among"):
        uncertainty.sequence_logprob(table, kinds=("words",))


def test_normalised_by_length():
    table = random_table(3, 4, tokens=["Ein", " schö", "ner", "<end>"], kinds=["text"] * 3 + ["special"])
    total = float(table.logprobs.sum(dtype=np.float64))
    assert uncertainty.normalised_logprob(table) == pytest.approx(total / 4)
    assert uncertainty.normalised_logprob(table, "characters") == pytest.approx(total / 11)
    assert uncertainty.normalised_logprob(table, "bytes") == pytest.approx(total / 12)
    assert uncertainty.normalised_logprob(table, "gnmt") == pytest.approx(total / (9 / 6) ** 0.6)
    assert uncertainty.normalised_logprob(table, "gnmt", alpha=0) == pytest.approx(total)
    text = float(table.logprobs[:3].sum(dtype=np.float64))
    assert uncertainty.bits_per_byte(table) == pytest.approx(-text / 12 / np.log(2))
    with pytest.raises(ValueError, match="by must be one of"):
        uncertainty.normalised_logprob(table, "words")


def test_a_result_is_read_at_its_answer_and_nothing_else_is_taken():
    result = random_result(4)
    assert uncertainty.perplexity(result) == uncertainty.perplexity(result.output)
    with pytest.raises(TypeError, match="TokenTable or a Result, not list"):
        uncertainty.perplexity([1, 2])


def test_a_bound_makes_log_probabilities_of_an_answer_unknown():
    """As Result.confidence says; the bounded token is the least likely one, so the mean of the others is too high."""
    result = random_result(1)
    logprobs, bounds = result.output.logprobs.copy(), np.full(len(result.output), np.nan, np.float32)
    logprobs[1], bounds[1] = np.nan, -4
    served = replace(result, output=replace(result.output, logprobs=logprobs, logprobs_at_most=bounds))
    assert np.isnan(served.confidence)
    found = uncertainty.summary(served)
    unknown = {"logprob", "probability", "mean_logprob", "min_logprob", "perplexity", "mean_surprisal", "bits_per_byte"}
    assert {name for name, value in found.items() if np.isnan(value)} == unknown
    assert np.isnan(confidences([served], by="mean")).all()
    assert uncertainty.mean_logprob(served.output[2:]) == pytest.approx(logprobs[2:].mean(dtype=np.float64))


def test_frame_refuses_what_is_no_result():
    scores = Scores(["yes"], [random_result(2).output], [None])
    with pytest.raises(TypeError, match="not Scores"):
        uncertainty.frame([scores])


def test_frame_has_a_row_for_each_result():
    results = [random_result(seed, request=f"q{seed}") for seed in range(3)]
    frame = uncertainty.frame(iter(results))
    assert frame["id"].tolist() == ["q0", "q1", "q2"]
    assert frame["perplexity"].tolist() == [uncertainty.perplexity(each) for each in results]


@pytest.mark.parametrize("order", [0, 0.5, 1, 2, 3.7, np.inf])
def test_renyi_entropy_is_its_definition(order):
    table = random_table(5, blank=(0,))
    found = entropies.renyi_entropy(table, order)
    assert np.isnan(found[0])
    for row in range(1, len(table)):
        p = np.exp(exact(table, row))
        if order == 1:
            wanted = scipy.stats.entropy(p)
        elif np.isinf(order):
            wanted = -np.log(p.max())
        else:
            wanted = np.log((p**order).sum()) / (1 - order)
        assert found[row] == pytest.approx(wanted, abs=1e-5)


def test_renyi_entropy_does_not_rise_with_its_order():
    table = random_table(6)
    values = [entropies.renyi_entropy(table, order) for order in (0, 0.3, 1, 1.5, 2, 10, np.inf)]
    assert (np.diff(values, axis=0) <= 1e-5).all()


@pytest.mark.parametrize("order", [0.5, 1, 2, np.inf])
@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0])
@pytest.mark.parametrize("alternatives", [1, 5, VOCABULARY])
def test_bounds_hold_and_close(order, spread, alternatives):
    full = random_table(7, 30, spread=spread, blank=(0,), alternatives=alternatives)
    bare = random_table(7, 30, spread=spread, blank=(0,), alternatives=alternatives, keep=False)
    exactly = entropies.renyi_entropy(full, order)
    for bounds in (
        entropies.renyi_bounds(full, order),
        entropies.renyi_bounds(bare, order, vocabulary=VOCABULARY),
        entropies.renyi_bounds(bare, order),
    ):
        assert np.isnan(bounds.lower[0])
        assert (bounds.lower[1:] <= exactly[1:] + 1e-5).all()
        assert (bounds.upper[1:] >= exactly[1:] - 1e-5).all()
    if alternatives == VOCABULARY:
        np.testing.assert_allclose(entropies.renyi_bounds(full, order).width[1:], 0, atol=2e-3 if order < 1 else 1e-5)


@pytest.mark.parametrize("order", [0.5, 1, 2])
def test_bounds_are_reached(order):
    """A tail shared equally has the upper bound, one on as few tokens as possible the lower."""
    table = random_table(8, 1, alternatives=3)
    top = np.exp(table.top_logprobs[0].astype(np.float64))
    rest, least = 1 - top.sum(), top[-1]
    whole = int(rest // least)
    packed = np.concatenate([top, np.full(whole, least), [rest - whole * least]])
    packed = packed[packed > 0]
    equal = np.concatenate([top, np.full(VOCABULARY - 3, rest / (VOCABULARY - 3))])

    def renyi(p):
        return scipy.stats.entropy(p) if order == 1 else np.log((p**order).sum()) / (1 - order)

    bounds = entropies.renyi_bounds(table, order)
    assert bounds.lower[0] == pytest.approx(renyi(packed), abs=1e-5)
    assert bounds.upper[0] == pytest.approx(renyi(equal), abs=1e-6)


def test_top_k_entropy_and_tail():
    table = random_table(9, blank=(2,))
    p = np.exp(table.top_logprobs.astype(np.float64))
    found = entropies.top_k_entropy(table, 3)
    for row in (0, 1, 5):
        assert found[row] == pytest.approx(scipy.stats.entropy(p[row, :3]), abs=1e-6)  # scipy brings it to sum 1
        assert entropies.tail_mass(table)[row] == pytest.approx(1 - p[row].sum(), abs=1e-6)
    assert np.isnan(found[2])
    assert np.isnan(entropies.tail_mass(table)[2])
    with pytest.raises(ResultError, match="k must be from 1 to 5"):
        entropies.top_k_entropy(table, 6)


def test_what_needs_full_rows_says_so():
    table = random_table(10, keep=False)
    with pytest.raises(ResultError, match='keep="logits"'):
        entropies.renyi_entropy(table, 2)
    assert np.isinf(entropies.renyi_bounds(table, 0.5).upper).all()
    with pytest.raises(ResultError, match="cannot hold"):
        entropies.renyi_bounds(table, 2, vocabulary=3)
    for order in (-1, np.nan, "two", True):
        with pytest.raises(ResultError, match="order"):
            entropies.renyi_entropy(table, order)


def test_rooms_are_found_and_near_names_offered():
    assert analysis.uncertainty is uncertainty
    assert "calibration" in dir(analysis)
    with pytest.raises(AttributeError, match="calibration"):
        _ = analysis.calibrations


def test_a_frame_has_the_columns_that_requests_carried(probe_of):
    pandas = pytest.importorskip("pandas")
    rows = pandas.DataFrame({"question": ["Hi", "Yes"], "id": [1, 2], "gold": ["a", None], "text": ["x", "y"]})
    results = list(probe_of("internvl").generate_many(rows, max_new_tokens=2, do_sample=False, progress=False))
    one = probe_of("internvl").generate("Hi", max_new_tokens=2, do_sample=False)
    frame = uncertainty.frame([*results, one])
    fixed = ["id", "question", "text", "model", "finish_reason", *uncertainty.MEASURES]
    assert list(frame.columns) == [*fixed, "gold", "meta_text"]
    assert frame["text"].tolist() == [each.text for each in [*results, one]]
    assert frame["gold"].tolist()[:1] == ["a"]
    assert frame["meta_text"].tolist()[:2] == ["x", "y"]
    assert frame[["gold", "meta_text"]].isna().sum().tolist() == [2, 1]
    assert list(uncertainty.frame([]).columns) == fixed


def test_a_bound_makes_the_sums_of_a_table_unknown():
    """The table's own perplexity too; of the rows whose numbers are all known they are as ever."""
    table = random_result(1).output
    logprobs, bounds = table.logprobs.copy(), np.full(len(table), np.nan, np.float32)
    assert not replace(table, logprobs_at_most=bounds).bounded
    assert replace(table, logprobs_at_most=bounds).perplexity == table.perplexity
    logprobs[1], bounds[1] = np.nan, -4
    served = replace(table, logprobs=logprobs, logprobs_at_most=bounds)
    assert served.bounded
    assert np.isnan([served.logprob, served.perplexity]).all()
    assert served[2:].logprob == pytest.approx(table.logprobs[2:].sum(dtype=np.float64))
    assert served[2:].perplexity == table[2:].perplexity
    whole = replace(random_result(1), output=served[2:])
    assert whole.confidence == pytest.approx(np.exp(table.logprobs[2:].sum(dtype=np.float64)))
