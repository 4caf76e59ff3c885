"""Thresholds keep their promises: by simulation where the truth is known, and over random splits of a finite pool."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from analysis_cases import outcomes, random_result
from scipy.stats import binom
from sklearn.metrics import confusion_matrix

from vlmprobe.analysis import gating
from vlmprobe.analysis.confidences import CalibrationError
from vlmprobe.errors import ResultError
from vlmprobe.results.result import Scores

THRESHOLD = gating.Threshold(0.5, "promise", 10, 5, 0)


class World:
    """Questions whose confidence is uniform and whose accuracy at a confidence is a given function of it."""

    def __init__(self, accuracy):
        self.accuracy = accuracy
        fine = (np.arange(200_000) + 0.5) / 200_000
        self.right = accuracy(fine)
        self.fine = fine
        # Of the finest steps from each on, and up to each: right ones.
        self.above = np.append(np.cumsum(self.right[::-1])[::-1], 0.0)
        self.steps = len(fine)

    def draw(self, random, count):
        sure = random.random(count)
        return sure, random.random(count) < self.accuracy(sure)

    def true_accuracy(self, threshold):
        """Of all answers from the threshold on."""
        first = np.searchsorted(self.fine, threshold)
        return self.above[first] / (self.steps - first)

    def true_errors(self, threshold):
        """Share of all answers that reach the threshold and are wrong."""
        first = np.searchsorted(self.fine, threshold)
        return (self.steps - first - self.above[first]) / self.steps

    def true_losses(self, threshold):
        """Share of all answers that are below the threshold and right."""
        return (self.above[0] - self.above[np.searchsorted(self.fine, threshold)]) / self.steps


WORLDS = {
    "sigmoid": World(lambda sure: 1 / (1 + np.exp(-9 * (sure - 0.45)))),
    "line": World(lambda sure: 0.4 + 0.59 * sure),
    # The most confident answers are worse than those before them: no order may be relied on.
    "hump": World(lambda sure: np.where(sure > 0.9, 0.85, np.where(sure > 0.4, 0.97, 0.3))),
    # Just below what is asked everywhere: any threshold at all would break the promise.
    "never": World(lambda sure: np.full_like(sure, 0.899)),
}
GRID = tuple(np.linspace(0, 0.95, 20))


@pytest.mark.parametrize("name", WORLDS)
def test_promised_accuracy_is_kept_as_often_as_promised(name):
    world, random = WORLDS[name], np.random.default_rng(1)
    broken = found = 0
    for _ in range(1000):
        try:
            threshold = gating.accept_for_accuracy(*world.draw(random, 600), accuracy=0.9, delta=0.1, grid=GRID)
        except CalibrationError:
            continue  # nothing promised is nothing broken
        found += 1
        broken += world.true_accuracy(threshold.value) < 0.9
    assert broken <= binom.ppf(0.999, 1000, 0.1)
    if name in ("sigmoid", "hump"):
        assert found > 700, "the threshold must be of use, too"


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("count", [30, 200])
def test_promised_errors_are_kept_on_average(name, count):
    world, random = WORLDS[name], np.random.default_rng(2)
    accepted, rejected = [], []
    for _ in range(1000):
        drawn = world.draw(random, count)
        accepted.append(world.true_errors(gating.accept_for_errors(*drawn, errors=0.1).value))
        rejected.append(world.true_losses(gating.reject_for_losses(*drawn, losses=0.1).value))
    for shares in (accepted, rejected):
        assert np.mean(shares) <= 0.1 + 3 * np.std(shares) / np.sqrt(1000)
        assert np.mean(shares) >= 0.1 - 2 / (count + 1) - 0.01 or np.mean(shares) == pytest.approx(
            min(world.true_errors(0), 0.1), abs=0.02
        )


def test_promises_hold_over_a_thousand_random_splits_of_one_pool():
    """Splits of a finite pool are exchangeable, which is all that is asked; the rest of the pool is the future."""
    sure, right = outcomes(3, 1500, sharpness=2.0)
    random = np.random.default_rng(4)
    errors, found, broken = [], 0, 0
    for _ in range(1000):
        order = random.permutation(1500)
        fit, rest = order[:500], order[500:]
        threshold = gating.accept_for_errors(sure[fit], right[fit], errors=0.05)
        errors.append((~right[rest] & (sure[rest] >= threshold.value)).mean())
        try:
            wanted = gating.accept_for_accuracy(sure[fit], right[fit], accuracy=0.9, delta=0.1)
        except CalibrationError:
            continue
        found += 1
        broken += right[sure >= wanted.value].mean() < 0.9
    assert np.mean(errors) <= 0.05 + 3 * np.std(errors) / np.sqrt(1000)
    assert np.mean(errors) >= 0.04
    assert found > 800
    assert broken <= binom.ppf(0.999, 1000, 0.1)


def test_p_values_are_those_of_the_binomial():
    p = gating._binomial_tail(np.array([0, 2, 0]), np.array([59, 100, 0]), 0.05)
    assert p[0] == pytest.approx(0.95**59)
    assert p[1] == pytest.approx(sum(binom.pmf(k, 100, 0.05) for k in range(3)))
    assert p[2] == 1


def test_fallback_hands_on_what_was_not_needed():
    """Two thresholds, delta 0.1: alone each has 0.05; after a rejection the second has 0.1."""
    sure = np.repeat([0.9, 0.5], [100, 60])
    right = np.ones(160, bool)
    right[:3] = False  # 3 of 100 wrong
    right[100:104] = False  # 7 of 160 wrong
    first, second = binom.cdf(3, 100, 0.1), binom.cdf(7, 160, 0.1)
    assert first <= 0.05
    threshold = gating.accept_for_accuracy(sure, right, 0.9, delta=2 * max(first, second / 2), grid=(0.9, 0.5))
    assert threshold.value == 0.5
    assert (threshold.kept, threshold.wrong, threshold.answers) == (160, 7, 160)
    assert threshold.coverage == 1.0


def test_errors_by_hand():
    sure = np.linspace(0.01, 1.0, 100)
    right = np.ones(100, bool)
    right[[10, 50, 60, 90, 95]] = False
    # floor(0.03 x 101) - 1 = 2 wrong answers may pass: 95 and 90; the next, 60, may not
    threshold = gating.accept_for_errors(sure, right, errors=0.03)
    assert sure[60] < threshold.value <= sure[61]
    assert threshold.wrong == 2
    assert gating.accept_for_errors(sure, right, errors=0.2).value == -np.inf
    reject = gating.reject_for_losses(sure, right, losses=0.03)
    assert (right & (sure < reject.value)).sum() == 2
    tied = gating.accept_for_errors(np.full(100, 0.8), right, errors=0.03)
    assert tied.kept == 0  # all or none of equal confidences


@pytest.mark.parametrize("share", [Fraction(1, 20), Fraction(1, 10), Fraction(3, 10), Fraction(1, 3)])
def test_no_threshold_that_keeps_the_promise_is_lower_or_higher_at_any_count(share):
    """Against brute force over every threshold, in exact fractions, with and without ties."""
    random = np.random.default_rng(0)
    for count in range(1, 121):
        sure, right = random.random(count), random.random(count) < 0.7
        if count % 2:
            sure = np.round(sure, 1)
        places = [-np.inf, *np.unique(sure), *np.nextafter(np.unique(sure), np.inf), np.inf]
        accepted = [int(((sure >= place) & ~right).sum()) for place in places]
        lost = [int(((sure < place) & right).sum()) for place in places]
        allowed = [place for place, bad in zip(places, accepted, strict=True) if Fraction(bad + 1, count + 1) <= share]
        wasted = [place for place, bad in zip(places, lost, strict=True) if Fraction(bad + 1, count + 1) <= share]
        if not allowed:
            with pytest.raises(CalibrationError, match=f"{count} answers are too few"):
                gating.accept_for_errors(sure, right, float(share))
            continue
        assert gating.accept_for_errors(sure, right, float(share)).kept == (sure >= min(allowed)).sum(), count
        assert gating.accept_for_errors(sure, right, float(share)).value == min(allowed), count
        assert gating.reject_for_losses(sure, right, float(share)).value == max(wasted), count


def test_accuracy_is_tested_on_all_answers_that_reach_a_threshold():
    """Confidences that equal a threshold of the grid count, against scikit-learn's counts."""
    random = np.random.default_rng(3)
    sure = np.round(random.random(3000), 1)
    right = random.random(3000) < np.where(sure >= 0.5, 0.99, 0.5)
    grid = np.arange(11) / 10
    found = gating.accept_for_accuracy(sure, right, 0.95, grid=grid)
    assert found.value == 0.5
    confusion = confusion_matrix(right, sure >= found.value, labels=[False, True])
    assert (found.wrong, found.kept) == (confusion[0, 1], confusion[:, 1].sum())


def test_an_infinite_confidence_of_a_wrong_answer_is_never_promised_away():
    sure = np.array([np.inf] * 3 + [0.5] * 97)
    right = np.array([False] * 3 + [True] * 97)
    with pytest.raises(CalibrationError, match="infinite confidence"):
        gating.accept_for_errors(sure, right, 0.03)
    assert gating.accept_for_errors(sure, right, 0.05).value == -np.inf


def test_too_few_answers_promise_nothing():
    with pytest.raises(CalibrationError, match=r"18 answers are too few to promise 0.05; at least 19"):
        gating.accept_for_errors(np.linspace(0, 1, 18), np.ones(18, bool), errors=0.05)
    assert gating.accept_for_errors(np.linspace(0, 1, 19), np.ones(19, bool), errors=0.05).kept == 19
    with pytest.raises(CalibrationError, match=r"No threshold can promise 0.95 accuracy with these 50 answers"):
        gating.accept_for_accuracy(np.full(50, 0.99), np.ones(50, bool))
    for share in (0, 1, 95, "half", True):
        with pytest.raises(CalibrationError, match="share between 0 and 1"):
            gating.accept_for_accuracy(np.full(50, 0.9), np.ones(50), accuracy=share)
    with pytest.raises(CalibrationError, match="finite threshold"):
        gating.accept_for_accuracy(np.full(50, 0.9), np.ones(50), grid=())


def test_the_number_that_the_error_names_is_enough():
    with pytest.raises(CalibrationError) as error:
        gating.accept_for_accuracy(np.full(50, 0.9999), np.ones(50, bool), 0.9, grid=GRID)
    need = int(str(error.value).split("With no wrong one, ")[1].split()[0])
    assert gating.accept_for_accuracy(np.full(need, 0.9999), np.ones(need, bool), 0.9, grid=GRID).kept == need
    with pytest.raises(CalibrationError):
        gating.accept_for_accuracy(np.full(need - 1, 0.9999), np.ones(need - 1, bool), 0.9, grid=(GRID[-1], *GRID[:-1]))


def test_the_gate_says_what_to_do_and_why():
    sure, right = outcomes(5, 2000)
    accept = gating.accept_for_accuracy(sure, right, 0.95)
    reject = gating.reject_for_losses(sure, right, 0.02)
    assert reject.value < accept.value
    yes = gating.gate(0.999, accept, reject=reject)
    assert yes
    assert yes.action == "accept"
    assert "at least 0.95 of future answers that reach it are right" in yes.why
    assert "as long as questions come from the same distribution" in yes.why
    middle = gating.gate((accept.value + reject.value) / 2, accept, reject=reject)
    assert middle.action == "ask"
    assert not middle
    assert gating.gate(reject.value / 2, accept, reject=reject).action == "reject"
    by_hand = gating.gate(0.8, 0.7)
    assert by_hand.action == "accept"
    assert "guarantees nothing" in by_hand.why
    assert gating.gate(0.7, 0.7).action == "accept"  # reaching it is enough
    assert gating.gate(0.2, 0.7).action == "ask"
    assert "2000 answers" in str(accept)
    with pytest.raises(CalibrationError, match="rejected, but accepted"):
        gating.gate(0.5, 0.4, reject=0.6)
    with pytest.raises(CalibrationError, match="no confidence"):
        gating.gate(float("nan"), 0.5)


def test_the_gate_reads_results_as_confidences_do():
    result = random_result(1, spread=6.0)
    by_mean = gating.gate(result, 0.5, by="mean")
    assert by_mean.confidence == pytest.approx(np.exp(result.output.logprobs.astype(np.float64).mean()))
    assert gating.gate(result, 0.5).confidence == pytest.approx(result.confidence)
    scores = Scores(["yes", "no"], [random_result(2).output, random_result(3).output], [None, None])
    assert gating.gate(scores, 0.5).confidence == pytest.approx(scores.probabilities.max())
    with pytest.raises(TypeError, match=r"gate takes one Result.*, not str"):
        gating.gate("sure", 0.5)
    with pytest.raises(TypeError, match=r"not list: gate each of them"):
        gating.gate([result, result], 0.5)


def test_a_threshold_is_saved_with_its_measure(tmp_path):
    sure, right = np.linspace(0, 1, 400), np.linspace(0, 1, 400) > 0.2
    threshold = gating.accept_for_accuracy(sure, right, accuracy=0.9, by="mean")
    again = gating.Threshold.load(threshold.save(tmp_path / "new" / "gate.json"))
    assert again == threshold
    assert again.by == "mean"


def test_a_gate_measures_as_its_threshold_does():
    answer = random_result(1)
    mean = float(np.exp(np.nanmean(answer.output.logprobs)))
    assert gating.gate(answer, replace(THRESHOLD, by="mean")).confidence == pytest.approx(mean, rel=1e-5)
    assert gating.gate(answer, replace(THRESHOLD, by="mean"), by="mean").confidence == pytest.approx(mean, rel=1e-5)
    assert gating.gate(answer, THRESHOLD, by="sequence").confidence == pytest.approx(answer.confidence, rel=1e-5)
    for other in ({"by": "min"}, {"reject": replace(THRESHOLD, value=0.1, by="sequence")}):
        with pytest.raises(CalibrationError, match="is about by="):
            gating.gate(answer, replace(THRESHOLD, by="mean"), **other)


def test_a_threshold_that_does_not_say_its_measure_promises_nothing_of_an_answer():
    """Neither alone nor beside a threshold by hand; what the answer's confidence is can be said, or be passed."""
    answer = random_result(1)
    for thresholds in ((THRESHOLD, None), (0.9, replace(THRESHOLD, value=0.1)), (THRESHOLD, 0.1)):
        with pytest.raises(CalibrationError, match="does not say which confidence"):
            gating.gate(answer, thresholds[0], reject=thresholds[1])
        assert gating.gate(answer, thresholds[0], reject=thresholds[1], by="mean").confidence > 0
    assert gating.gate(0.97, THRESHOLD).confidence == 0.97
    scores = Scores(["yes", "no"], [random_result(2).output, random_result(3).output], [None, None])
    assert gating.gate(scores, THRESHOLD).confidence == scores.probabilities.max()  # they have one confidence


def test_a_threshold_by_hand_is_a_probability_where_the_confidence_is_one():
    answer = random_result(1)
    for number in (70, -0.5, np.float64(1.5), float("inf")):
        with pytest.raises(CalibrationError, match="from 0 to 1"):
            gating.gate(answer, number)
        with pytest.raises(CalibrationError, match="from 0 to 1"):
            gating.gate(answer, 1.0, reject=number if number < 1 else -number)
    for wrong in ("0.7", True, None, [0.7]):
        with pytest.raises(TypeError, match="a Threshold or a number"):
            gating.gate(answer, wrong)
    with pytest.raises(CalibrationError, match="NaN"):
        gating.gate(answer, float("nan"))
    assert gating.gate(answer, -3.0, by=lambda result: -1.0)  # a score of one's own has its own scale


def test_a_measure_without_a_name_cannot_be_saved(tmp_path):
    with pytest.raises(CalibrationError, match="is a function"):
        replace(THRESHOLD, by=len).save(tmp_path / "gate.json")
    assert not list(tmp_path.iterdir())


def test_thresholds_without_a_measure_and_without_a_limit_load(tmp_path):
    held = '{"format": 1, "value": -Infinity, "promise": "p", "answers": 4, "kept": 3, "wrong": 1}'
    (tmp_path / "gate.json").write_text(held)
    assert gating.Threshold.load(tmp_path / "gate.json") == gating.Threshold(float("-inf"), "p", 4, 3, 1, None)


def test_a_threshold_of_a_later_vlmprobe(tmp_path):
    (tmp_path / "gate.json").write_text('{"format": 9, "value": 1}')
    with pytest.raises(ResultError, match=r"gate\.json has layout 9.*Update vlmprobe\.$"):
        gating.Threshold.load(tmp_path / "gate.json")


TYPED = '{"format": 1, "value": "0.5", "promise": "p", "answers": 4, "kept": 3, "wrong": 1}'


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 9, "value": 1}', TYPED])
def test_a_file_that_holds_no_threshold(text, tmp_path):
    (tmp_path / "gate.json").write_text(text)
    with pytest.raises(ResultError, match=r"gate\.json"):
        gating.Threshold.load(tmp_path / "gate.json")


def test_a_missing_threshold_is_called_missing(tmp_path):
    for nothing in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(ResultError) as raised:
            gating.Threshold.load(nothing)
        assert str(raised.value) == f"No file at {nothing}."
