"""Calibration figures against scikit-learn, the demo's own evaluation, brute force, and known populations."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import sklearn.metrics
from analysis_cases import outcomes, random_result
from sklearn.calibration import calibration_curve

from tools.demo_model import evaluate
from vlmprobe import Failure
from vlmprobe.analysis import calibration, recalibration, uncertainty
from vlmprobe.analysis import confidences as room
from vlmprobe.analysis.confidences import CalibrationError
from vlmprobe.errors import ResultError, VlmprobeWarning
from vlmprobe.results.result import Scores


@pytest.mark.parametrize("seed", range(5))
def test_figures_agree_with_independent_ones(seed):
    sure, right = outcomes(seed, 400, sharpness=1.7)
    assert calibration.auroc(sure, right) == pytest.approx(evaluate.auroc(sure, right))
    assert calibration.brier(sure, right) == pytest.approx(((sure - right) ** 2).mean())
    wanted = -np.where(right, np.log(sure), np.log1p(-sure)).mean()
    assert calibration.log_loss(sure, right) == pytest.approx(wanted)
    assert calibration.ece(sure, right) == pytest.approx(evaluate.ece(sure, right))
    for strategy in ("uniform", "quantile"):
        found = calibration.reliability(sure, right, 10, strategy)
        accuracy, confidence = calibration_curve(right, sure, n_bins=10, strategy=strategy)
        np.testing.assert_allclose(found.accuracy, accuracy, atol=0.02 if strategy == "quantile" else 1e-12)
        np.testing.assert_allclose(found.confidence, confidence, atol=0.02 if strategy == "quantile" else 1e-12)
        assert found.count.sum() == 400
        assert found.mce == pytest.approx(np.abs(found.accuracy - found.confidence).max())


def test_bins_by_hand():
    sure, right = [0.1, 0.2, 0.9, 0.9, 1.0, 0.0], [0, 1, 1, 0, 1, 0]
    found = calibration.reliability(sure, right, bins=2)
    assert found.count.tolist() == [3, 3]
    np.testing.assert_allclose(found.confidence, [0.1, 2.8 / 3])
    np.testing.assert_allclose(found.accuracy, [1 / 3, 2 / 3])
    assert found.ece == pytest.approx((abs(1 / 3 - 0.1) + abs(2 / 3 - 2.8 / 3)) / 2)
    assert calibration.reliability(sure, right, bins=100).count.max() == 2  # empty bins are left out


@pytest.mark.parametrize("bins", [*range(1, 31), 49, 98, 100])
def test_an_edge_value_is_in_the_lower_bin(bins):
    """Bins used to begin at ``numpy.linspace``, which puts 5/6, 7/9 or 11/12 below the number of that name."""
    sure = np.array([Fraction(place, bins) for place in range(bins + 1)])
    found = calibration.reliability(sure.astype(np.float64), [1] * (bins + 1), bins)
    wanted = [max(math.ceil(each * bins) - 1, 0) for each in sure]  # exact: which bin (k/B, (k+1)/B] holds it
    assert found.count.tolist() == np.bincount(wanted, minlength=bins).tolist()


@pytest.mark.parametrize("count", [1, 2, 7, 20, 40, 41, 100, 101])
def test_bins_of_equal_count_are_numpy_s_quantiles(count):
    """The bin of an answer, ties together, by ``numpy.quantile`` and counting."""
    random = np.random.default_rng(count)
    for sure in (random.random(count), np.round(random.random(count), 1)):
        for bins in (1, 3, 10, 20):
            shares = [Fraction(place, bins) for place in range(1, bins + 1)]
            ordered = sorted(sure)
            edges = sorted({ordered[math.ceil(share * count) - 1] for share in shares})
            assert max(edges) == np.quantile(sure, 1.0)
            wanted = [sum(each > edge for edge in edges) for each in sure]
            found = calibration.reliability(sure, np.ones(count, bool), bins, "quantile")
            assert found.count.tolist() == [each for each in np.bincount(wanted).tolist() if each]


def test_accuracy_at_every_coverage():
    random = np.random.default_rng(0)
    for count in (1, 2, 3, 7, 20, 100):
        sure, right = np.round(random.random(count), 1), random.random(count) < 0.6
        found = calibration.risk_coverage(sure, right)
        for kept in range(1, count + 1):
            threshold = np.sort(sure)[-kept]  # the answers that reach it are the fewest that are at least so many
            assert found.accuracy_at(kept / count) == pytest.approx(right[sure >= threshold].mean()), (count, kept)


@pytest.mark.parametrize("seed", range(3))
def test_auroc_counts_ties_half_and_takes_infinite_scores(seed):
    random = np.random.default_rng(seed)
    sure = random.choice([-np.inf, -1.0, 0.0, 2.5, np.inf], 40)
    right = random.random(40) < 0.5
    pairs = [(good > bad) + 0.5 * (good == bad) for good in sure[right] for bad in sure[~right]]
    assert calibration.auroc(sure, right) == pytest.approx(np.mean(pairs))


def test_bins_of_equal_count():
    sure, right = outcomes(1, 1000)
    found = calibration.reliability(sure, right, 10, "quantile")
    assert set(found.count.tolist()) == {100}
    tied = calibration.reliability([0.5] * 30 + [0.7] * 10, [1] * 20 + [0] * 20, 10, "quantile")
    assert tied.count.tolist() == [30, 10]
    same = calibration.reliability([1.0] * 5, [1, 1, 0, 1, 1], 4, "quantile")
    assert same.ece == pytest.approx(0.2)
    assert calibration.adaptive_ece([0.0, 0.0], [0, 1]) == pytest.approx(0.5)


def test_a_calibrated_model_has_little_error_and_a_bent_one_has_it():
    assert calibration.ece(*outcomes(2, 50_000)) < 0.01
    assert calibration.adaptive_ece(*outcomes(2, 50_000)) < 0.01
    assert calibration.ece(*outcomes(2, 50_000, sharpness=4)) > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_risk_coverage_is_the_mean_over_all_orders_of_ties(seed):
    random = np.random.default_rng(seed)
    sure = random.choice([0.2, 0.5, 0.9], 7)
    right = random.random(7) < 0.6
    areas = []
    for order in itertools.permutations(range(7)):
        order = sorted(order, key=lambda each: -sure[each])  # stable: ties stay in the permutation's order
        wrong = ~right[list(order)]
        areas.append((np.cumsum(wrong) / np.arange(1, 8)).mean())
    found = calibration.risk_coverage(sure, right)
    assert found.area == pytest.approx(np.mean(areas))
    wrong_last = np.sort(~right)
    assert found.best_area == pytest.approx((np.cumsum(wrong_last) / np.arange(1, 8)).mean())
    for threshold, coverage, risk in zip(found.thresholds, found.coverage, found.risk, strict=True):
        assert coverage == pytest.approx((sure >= threshold).mean())
        assert risk == pytest.approx((~right[sure >= threshold]).mean())
    assert found.coverage[-1] == 1
    assert found.accuracy_at(1.0) == pytest.approx(right.mean())
    assert found.excess_area == pytest.approx(found.area - found.best_area)


def test_area_without_ties_is_the_plain_mean():
    sure, right = outcomes(3, 200)
    order = np.argsort(-sure)
    wanted = (np.cumsum(~right[order]) / np.arange(1, 201)).mean()
    assert calibration.risk_coverage(sure, right).area == pytest.approx(wanted)
    perfect = calibration.risk_coverage(right.astype(float), right)
    assert perfect.excess_area == pytest.approx(0, abs=1e-12)


def test_bootstrap_intervals_cover_the_truth():
    truth = calibration.auroc(*outcomes(99, 200_000))
    hits = 0
    for seed in range(60):
        interval = calibration.bootstrap(evaluate.auroc, *outcomes(seed, 150), resamples=200, seed=seed)
        assert interval.low <= interval.value <= interval.high
        hits += interval.low <= truth <= interval.high
    assert 50 <= hits <= 60  # 57 are expected


def test_bootstrap_draws_again_where_a_metric_is_not_defined():
    sure, right = np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 1, 1, 0])
    interval = calibration.bootstrap(calibration.auroc, sure, right, resamples=50)
    assert interval.value == 1.0
    assert interval.low == 1.0
    assert str(interval) == "1.000 [1.000, 1.000]"
    assert f"{interval:.1%}" == "100.0% [100.0%, 100.0%]"
    with pytest.raises(CalibrationError, match="level"):
        calibration.bootstrap(calibration.auroc, sure, right, level=95)


@pytest.mark.parametrize("decimals", [1, 2, 17])
def test_the_intervals_of_a_report_are_those_of_a_plain_bootstrap(decimals):
    sure, right = outcomes(5, 130)
    sure = np.round(sure, decimals)
    plain = {
        "accuracy": lambda sure, right: float(right.mean()),
        "confidence": lambda sure, right: float(sure.mean()),
        "auroc": calibration.auroc,
        "ece": calibration.ece,
        "adaptive_ece": calibration.adaptive_ece,
        "brier": calibration.brier,
        "aurc": lambda sure, right: calibration.risk_coverage(sure, right).area,
    }
    found = calibration.report(sure, right, resamples=40, seed=2)
    assert list(found) == list(plain)
    for name, metric in plain.items():
        due = calibration.bootstrap(metric, sure, right, resamples=40, seed=2)
        assert [found[name].value, found[name].low, found[name].high] == pytest.approx(
            [due.value, due.low, due.high], abs=1e-12
        ), name


def test_report_has_every_figure_with_its_interval():
    found = calibration.report(*outcomes(4, 120), resamples=20)
    assert set(found) == {"accuracy", "confidence", "auroc", "ece", "adaptive_ece", "brier", "aurc"}
    assert all(each.low <= each.high for each in found.values())
    frame = found.to_pandas()
    assert list(frame.index) == list(found)
    assert frame.loc["auroc"].tolist() == [found["auroc"].value, found["auroc"].low, found["auroc"].high]
    assert "auroc & " in frame.to_latex()


@pytest.mark.parametrize("sharpness", [0.5, 2.0, 3.0])
def test_temperature_undoes_what_bent_the_confidences(sharpness):
    fitted = recalibration.fit_temperature(*outcomes(5, 20_000, sharpness=sharpness))
    assert fitted.temperature == pytest.approx(sharpness, rel=0.05)
    sure, right = outcomes(6, 20_000, sharpness=sharpness)
    assert calibration.ece(fitted(sure), right) < 0.02 < calibration.ece(sure, right)
    assert calibration.auroc(fitted(sure), right) == pytest.approx(calibration.auroc(sure, right))
    assert fitted(0.5) == pytest.approx(0.5)


def test_temperature_is_the_one_of_the_greatest_likelihood():
    sure, right = outcomes(7, 300, sharpness=2.5)
    fitted = recalibration.fit_temperature(sure, right)
    at = calibration.log_loss(fitted(sure), right)
    for factor in (0.97, 1.03):
        assert calibration.log_loss(recalibration.Temperature(fitted.temperature * factor)(sure), right) > at


def test_platt_undoes_a_shift_too():
    fitted = recalibration.fit_platt(*outcomes(8, 20_000, sharpness=2.0, shift=-3.0))
    assert fitted.slope == pytest.approx(0.5, rel=0.05)
    assert fitted.intercept == pytest.approx(1.5, rel=0.05)
    sure, right = outcomes(9, 20_000, sharpness=2.0, shift=-3.0)
    assert calibration.ece(fitted(sure), right) < 0.02 < 0.1 < calibration.ece(sure, right)
    with pytest.raises(CalibrationError, match="less confident are right more often"):
        recalibration.fit_platt(1 - sure, right)


def test_isotonic_is_the_regression_of_scikit_learn_and_rises():
    from sklearn.isotonic import IsotonicRegression

    sure, right = outcomes(10, 2000, sharpness=3.0, shift=1.0)
    fitted = recalibration.fit_isotonic(sure, right)
    new, new_right = outcomes(11, 5000, sharpness=3.0, shift=1.0)
    own = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(sure, right)
    np.testing.assert_allclose(fitted(new), own.predict(new), atol=1e-9)
    assert (np.diff(fitted(np.linspace(0, 1, 101))) >= 0).all()
    assert calibration.ece(fitted(new), new_right) < 0.03 < calibration.ece(new, new_right)


def test_temperature_of_candidates():
    random = np.random.default_rng(12)
    logits = random.normal(0, 2, (8000, 4))
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = (random.random((8000, 1)) > shares.cumsum(1)).sum(1)
    given = [3.0 * row + random.normal() for row in logits]  # too sharp by 3; a constant per question is nothing
    fitted = recalibration.fit_candidate_temperature(given, right)
    assert fitted.temperature == pytest.approx(3.0, rel=0.05)
    np.testing.assert_allclose(fitted(given[0]).sum(), 1)
    again = recalibration.CandidateTemperature(3.0)(given[0])
    np.testing.assert_allclose(again, shares[0], atol=1e-9)
    with pytest.raises(CalibrationError, match="no log-probability for its right candidate"):
        recalibration.fit_candidate_temperature(given, np.where(np.arange(8000) == 7, 4, right))


@pytest.mark.parametrize("fit", [recalibration.fit_temperature, recalibration.fit_platt, recalibration.fit_isotonic])
def test_too_little_to_fit_on_is_said(fit):
    sure, right = outcomes(13, 19)
    with pytest.raises(CalibrationError, match="19 answers are too few here; at least 20"):
        fit(sure, right)
    with pytest.raises(CalibrationError, match="All answers are right"):
        fit(np.full(30, 0.9), np.ones(30))
    with pytest.raises(CalibrationError, match="All answers are wrong"):
        fit(np.full(30, 0.9), np.zeros(30))


def test_a_perfect_order_has_no_temperature():
    with pytest.raises(CalibrationError, match="No temperature fits"):
        recalibration.fit_temperature(np.repeat([0.2, 0.9], 20), np.repeat([0, 1], 20))


@pytest.mark.parametrize(
    ("sure", "right", "said"),
    [
        ([0.1, 1.2], [0, 1], "from 0 to 1"),
        ([-0.3, 0.2], [0, 1], "from 0 to 1"),
        ([0.1, np.nan], [0, 1], "confidence 1 is NaN"),
        ([0.1, 0.2], [0, 2], "0 and 1"),
        ([0.1, 0.2], [0, 1, 1], "the same length"),
        ([[0.1, 0.2]], [[0, 1]], "the same length"),
        (["sure", "not"], [0, 1], "must be numbers"),
        ([0.1, 0.2], ["yes", "no"], "must be numbers"),
        ([], [], "too few"),
    ],
)
def test_wrong_input_is_told(sure, right, said):
    for figure in (calibration.ece, calibration.brier):
        with pytest.raises(CalibrationError, match=said):
            figure(sure, right)


@pytest.mark.parametrize("all_of_them", [True, False])
def test_a_report_of_one_class_has_what_can_be_had(all_of_them):
    sure = np.linspace(0.5, 0.99, 40)
    right = np.full(40, all_of_them)
    found = calibration.report(sure, right, resamples=20)
    assert found["accuracy"] == calibration.Interval(float(all_of_them), float(all_of_them), float(all_of_them), 0.95)
    for name, metric in {"ece": calibration.ece, "brier": calibration.brier}.items():
        due = calibration.bootstrap(metric, sure, right, resamples=20)
        got = [found[name].value, found[name].low, found[name].high]
        assert got == pytest.approx([due.value, due.low, due.high], abs=1e-12)  # sums in another order
    assert np.isnan([found["auroc"].value, found["auroc"].low, found["auroc"].high]).all()
    assert found.to_pandas().loc["auroc"].isna().all()
    assert re.search(r"^auroc +– –$", str(found), re.MULTILINE)
    assert "nan" not in found._repr_html_() + str(found)
    with pytest.raises(CalibrationError, match="2 are needed"):
        calibration.report([0.5], [True])
    with pytest.raises(CalibrationError, match="resamples"):
        calibration.report(sure, right, resamples=0)


def test_a_report_of_hardly_any_wrong_answer_has_no_interval_of_its_auroc():
    sure, right = np.linspace(0.5, 0.99, 400), np.arange(400) > 0
    found = calibration.report(sure, right, resamples=2000)
    assert found["auroc"].value == 1
    assert not np.isnan(found["auroc"].low)  # two in three resamples have the wrong one
    few = calibration.report([0.2, 0.9], [False, True], resamples=3, seed=3)["auroc"]
    assert few.value == 1


def test_auroc_needs_both_classes():
    with pytest.raises(CalibrationError, match="All answers are right"):
        calibration.auroc([0.2, 0.3], [True, True])


def test_brier_and_loss_of_one_class():
    assert calibration.brier([0.9, 0.8], [1, 1]) == pytest.approx((0.01 + 0.04) / 2)
    assert calibration.brier([0.9, 0.8], [0, 0]) == pytest.approx((0.81 + 0.64) / 2)
    assert calibration.log_loss([0.9, 0.8], [1, 1]) == pytest.approx(-np.log([0.9, 0.8]).mean())
    assert np.isfinite(calibration.log_loss([1.0], [0]))


def test_confidences_and_correctness_of_results():
    results = [random_result(seed, text=text) for seed, text in ((1, "A cat."), (2, " the DOG"), (3, "no"))]
    sums = [each.output.logprobs.astype(np.float64) for each in results]
    np.testing.assert_allclose(
        room.confidences(results, by="sequence"), [np.exp(each.sum()) for each in sums], rtol=1e-6
    )
    np.testing.assert_allclose(room.confidences(results, "mean"), [np.exp(each.mean()) for each in sums], rtol=1e-6)
    np.testing.assert_allclose(room.confidences(results, "min"), [np.exp(each.min()) for each in sums], rtol=1e-6)
    assert room.confidences(results, lambda each: len(each.text)).tolist() == [6, 8, 2]
    assert room.correctness(results, ["cat", ["dog", "hound"], "yes"]).tolist() == [True, True, False]
    assert room.correctness(results, ["cat", "dog", "no"], normal=str).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="Did you mean sequence"):
        room.confidences(results, "sequenc")
    with pytest.raises(room.CalibrationError, match="1 answer for 3 results"):
        room.correctness(results, ["cat"])
    tables = [each.output for each in results]
    scores = Scores(["yes", "no", "maybe"], tables, [None] * 3)
    assert room.confidences([scores]) == pytest.approx([scores.probabilities.max()])
    assert room.correctness([scores], [scores.best]).tolist() == [True]


def test_correctness_reads_the_right_answers_that_the_rows_carried():
    results = [random_result(seed, text=text) for seed, text in ((1, "A cat."), (2, "a dog"), (3, "no"))]
    golds = ("cat", ["hound", "dog"], "yes")
    carried = [
        replace(each, meta={**each.meta, "id": place, "gold": gold, "label": "no"})
        for place, (each, gold) in enumerate(zip(results, golds, strict=True))
    ]
    assert room.correctness(carried).tolist() == [True, True, False]
    assert room.correctness(carried, "label").tolist() == [False, False, True]
    assert room.correctness(carried, dict(enumerate(golds))).tolist() == [True, True, False]
    failed = [*carried, Failure(ValueError("x"))]
    with pytest.warns(VlmprobeWarning, match="1 failed"):
        assert room.correctness(failed, [*golds, "x"]).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        (None, "the right answers are None: give a list"),
        (7, "the right answers are 7"),
        ("cat", r"result 0 has no meta\['cat'\]"),
        (["cat", None, "no"], "right answer None is no text"),
        (["cat", 3, "no"], "right answer 3 is no text"),
        (["cat", [], "no"], r"right answer \[\] is no text"),
        (["cat", [2], "no"], r"right answer \[2\] is no text"),
        (["cat"] * 4, "4 answers for 3 results"),
        ({0: "cat"}, "result 0 has none"),
    ],
)
def test_right_answers_that_do_not_fit_say_what_to_give(answers, says):
    results = [random_result(seed) for seed in range(3)]
    with pytest.raises(room.CalibrationError, match=says):
        room.correctness(results, answers)
    with pytest.raises(room.CalibrationError, match="number 1 is str"):
        room.correctness([results[0], "cat"], ["cat", "cat"])
    with pytest.raises(room.CalibrationError, match=r"result 0 has no meta\['gold'\]"):
        room.correctness(results)


def test_a_single_result_is_no_list_of_results():
    result = random_result(1)
    for wrong in (result, result.output, Failure(ValueError("x"))):
        for function in (room.correctness, room.confidences, uncertainty.frame):
            with pytest.raises(ResultError, match=f"{function.__name__} takes a list of results, not a single"):
                function(wrong)
    with pytest.raises(ResultError, match="takes a list of results, not str"):
        uncertainty.frame("results")


def test_against_scikit_learn_without_ties():
    sure, right = outcomes(14, 300)
    false, true, _ = sklearn.metrics.roc_curve(right, sure)
    assert calibration.auroc(sure, right) == pytest.approx(np.trapezoid(true, false))
