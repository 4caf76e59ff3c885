"""Prediction sets keep their promise: over every split of small pools, and by simulation; as they are defined."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import ceil

import matplotlib as mpl
import numpy as np
import pytest
from render_cases import scores
from scipy.stats import betabinom, binom, kstest

from vlmprobe import Failure
from vlmprobe.analysis import conformal
from vlmprobe.analysis.confidences import CalibrationError
from vlmprobe.analysis.conformal import PredictionSet, PredictionSets, prediction_sets
from vlmprobe.errors import ImageError, ResultError, VlmprobeWarning

mpl.use("Agg")

NAMES = ("red", "green", "blue", "grey", "black")
WAYS = (("lac", False), ("aps", False), ("aps", True))
FAILED = Failure(ImageError("no such file"), "What?", None, 1)


@dataclass
class Listed:
    """The least that a set can be made of."""

    candidates: tuple[str, ...]
    probabilities: np.ndarray
    meta: dict = field(default_factory=dict)


def drawn(seed, count, *, decimals=None):
    """Answers of a model that is surer than it should be, and the right candidates."""
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(count, len(NAMES)))
    said = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    true = said**0.5 / (said**0.5).sum(axis=1, keepdims=True)
    right = [NAMES[random.choice(len(NAMES), p=row)] for row in true]
    said = said if decimals is None else np.round(said, decimals)
    return [Listed(NAMES, row) for row in said], right


def least_tau(probabilities, label, u):
    """The score of Romano et al. 2020: the least tau whose set holds the label, their S searched from below."""

    def held(tau):
        order = np.argsort(-probabilities)
        total = np.cumsum(probabilities[order])
        last = int(np.searchsorted(total, tau - 1e-12))  # L - 1: the first that brings the mass to tau
        kept = order[: last + 1]
        surplus = (total[last] - tau) / probabilities[order[last]]  # V
        return label in (kept[:-1] if u <= surplus else kept)

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if held(middle) else (middle, high)
    return high


@pytest.mark.parametrize(("method", "randomised"), WAYS)
@pytest.mark.parametrize("alpha", [Fraction(1, 20), Fraction(1, 10), Fraction(3, 10), Fraction(1, 3)])
def test_threshold_and_sets_are_those_of_the_definitions(method, randomised, alpha):
    known, right = drawn(1, 57)
    sets = prediction_sets(known, right, float(alpha), method=method, randomised=randomised, seed=3)

    def score(answer, place):
        p = answer.probabilities
        if method == "lac":
            return 1 - p[place]
        # Without chance the last candidate always stays: u above any V.
        return least_tau(p, place, conformal._chance(p, 3) if randomised else 1 - 1e-12)

    by_hand = sorted(score(each, NAMES.index(label)) for each, label in zip(known, right, strict=True))
    threshold = by_hand[ceil((57 + 1) * (1 - alpha)) - 1]
    assert sets.threshold == pytest.approx(threshold, abs=1e-9)
    for each in drawn(2, 100)[0]:
        found = sets(each)
        assert set(found) == {NAMES[place] for place in range(5) if score(each, place) <= threshold + 1e-9}
        sure = [each.probabilities[NAMES.index(name)] for name in found]
        assert sure == sorted(sure, reverse=True)


@pytest.mark.parametrize(("method", "randomised"), WAYS)
def test_of_any_answers_each_left_out_in_turn_enough_are_covered(method, randomised):
    """The guarantee itself, without chance: over which of N + 1 exchangeable answers is the new one; with ties too."""
    for seed in range(12):
        answers, right = drawn(seed, 21, decimals=1 if seed % 3 == 0 else None)
        for alpha in (0.05, 0.1, 0.25, 0.5, 0.9):
            covered = []
            for out in range(21):
                rest = [place for place in range(21) if place != out]
                sets = prediction_sets(
                    [answers[place] for place in rest], [right[place] for place in rest], alpha, method=method,
                    randomised=randomised,
                )  # fmt: skip
                covered.append(right[out] in sets(answers[out]))
            least = ceil(21 * (1 - Fraction(str(alpha))))
            assert sum(covered) >= least
            if seed % 3 and (method == "lac" or randomised):
                assert sum(covered) == least, "no more than promised where no two scores are the same"


@pytest.mark.parametrize(("method", "randomised"), WAYS)
@pytest.mark.parametrize(("count", "alpha"), [(19, 0.05), (60, 0.1), (200, 0.2)])
def test_coverage_over_many_draws_is_beta_distributed(method, randomised, count, alpha):
    """Splits of one pool into known and new answers: the number covered is beta-binomial."""
    pool = prediction_sets(*drawn(5, 4000), 0.5, method=method, randomised=randomised).scores
    random, new, draws = np.random.default_rng(6), 100, 2000
    covered = []
    for _ in range(draws):
        chosen = pool[random.choice(len(pool), count + new, replace=False)]
        sets = PredictionSets(np.sort(chosen[:count]), alpha, method, randomised)
        covered.append(int((chosen[count:] <= sets.threshold).sum()))
    rank = ceil((count + 1) * (1 - Fraction(str(alpha))))
    law = betabinom(new, rank, count + 1 - rank)
    slack = 4 * law.std() / np.sqrt(draws)
    assert np.mean(covered) >= new * (1 - alpha) - slack
    for tail in (0.05, 0.5):  # too low a coverage no more often than the law has it
        edge = law.ppf(tail)
        assert (np.array(covered) < edge).sum() <= binom.ppf(0.9999, draws, law.cdf(edge - 1))
    if method == "lac" or randomised:
        assert abs(np.mean(covered) - law.mean()) <= slack
        assert abs(np.std(covered) / law.std() - 1) < 0.1


def test_coverage_is_the_share_of_sets_that_hold_the_right_one():
    known, new = drawn(7, 80), drawn(8, 300)
    for method, randomised in WAYS:
        sets = prediction_sets(*known, 0.2, method=method, randomised=randomised)
        held = np.mean([label in sets(each) for each, label in zip(*new, strict=True)])
        assert sets.coverage(*new) == held
        assert abs(held - 0.8) < 0.12
        frame = sets.to_pandas(*new)
        assert frame["covered"].mean() == held
        assert frame["set"].tolist() == [str(sets(each)) for each in new[0]]
        assert frame["size"].tolist() == [len(sets(each)) for each in new[0]]
        assert frame["label"].tolist() == new[1]
        assert list(sets.to_pandas(new[0])) == ["id", "set", "size"]


def test_sets_grow_with_what_is_promised():
    known, new = drawn(9, 200), drawn(10, 50)[0]
    sets = prediction_sets(*known, 0.3)
    for answer in new:
        nested = [set(sets.at(alpha)(answer)) for alpha in (0.5, 0.3, 0.1, 0.02)]
        assert all(small <= large for small, large in pairwise(nested))
    assert sets.at(0.1).threshold == prediction_sets(*known, 0.1).threshold


def test_aps_without_chance_is_never_empty_and_lac_may_be():
    sure = Listed(NAMES, np.array([0.99, 0.01, 0, 0, 0]))
    unsure = Listed(NAMES, np.array([0.3, 0.25, 0.2, 0.15, 0.1]))
    lac = prediction_sets([sure] * 40, ["red"] * 40)
    assert lac(sure) == ("red",)
    assert lac(unsure) == ()
    aps = prediction_sets([sure] * 40, ["red"] * 40, method="aps")
    assert aps.threshold == 0
    assert aps(unsure) == ("red",)


def test_the_chance_is_even_and_the_same_every_time():
    answers, right = drawn(11, 3000)
    chances = [conformal._chance(each.probabilities, 0) for each in answers]
    assert kstest(chances, "uniform").pvalue > 1e-3
    others = [conformal._chance(each.probabilities, 1) for each in answers]
    assert abs(np.corrcoef(chances, others)[0, 1]) < 0.08
    sets = prediction_sets(answers[:500], right[:500], method="aps", randomised=True)
    assert [sets(each) for each in answers[500:]] == [sets(each) for each in answers[500:]]
    again = prediction_sets(answers[:500], right[:500], method="aps", randomised=True, seed=1)
    assert [sets(each) for each in answers[500:]] != [again(each) for each in answers[500:]]


def test_likely_coverage_is_that_of_many_draws():
    sets = prediction_sets(*drawn(12, 60), 0.1)
    low, high = sets.likely_coverage(0.9)
    random = np.random.default_rng(0)
    covered = [np.sort(random.random(60))[ceil(61 * Fraction(9, 10)) - 1] for _ in range(4000)]  # of uniform scores
    assert np.quantile(covered, [0.05, 0.95]) == pytest.approx([low, high], abs=0.01)


def test_too_few_answers_promise_nothing_and_the_number_named_is_enough():
    known, right = drawn(13, 19)
    with pytest.raises(CalibrationError, match=r"18 answers are too few for alpha 0.05.*at least 19 are needed"):
        prediction_sets(known[:18], right[:18], 0.05)
    assert prediction_sets(known, right, 0.05).threshold == max(prediction_sets(known, right, 0.05).scores)
    with pytest.raises(CalibrationError, match="1 answer is too few"):
        prediction_sets(known[:1], right[:1])
    with pytest.raises(CalibrationError, match="0 answers are too few"):
        prediction_sets([], [])
    for alpha in (0, 1, 10, "0.1", True, float("nan")):
        with pytest.raises(CalibrationError, match="alpha must be a share"):
            prediction_sets(known, right, alpha)
    with pytest.raises(CalibrationError, match="'lac' or 'aps'"):
        prediction_sets(known, right, method="raps")
    with pytest.raises(CalibrationError, match="no chance"):
        prediction_sets(known, right, randomised=True)


def test_labels_are_candidates():
    known, right = drawn(14, 20)
    with pytest.raises(CalibrationError, match=r"answer 3: the right answer 'grene' is none of .* Did you mean green"):
        prediction_sets(known, [*right[:3], "grene", *right[4:]])
    with pytest.raises(CalibrationError, match="20 results"):
        prediction_sets(known, right[:-1])
    with pytest.raises(CalibrationError, match="is several of its candidates 'Red', 'the red'"):
        prediction_sets([Listed(("Red", "the red"), np.array([0.5, 0.5]))] * 20, ["red"] * 20)
    usual = prediction_sets(known, right).scores
    np.testing.assert_array_equal(prediction_sets(known, [f"The {each.upper()}." for each in right]).scores, usual)
    by_meta = [Listed(each.candidates, each.probabilities, {"gold": label, "id": place})
               for place, (each, label) in enumerate(zip(known, right, strict=True))]  # fmt: skip
    np.testing.assert_array_equal(prediction_sets(by_meta).scores, usual)
    np.testing.assert_array_equal(prediction_sets(by_meta, dict(enumerate(right))).scores, usual)
    assert prediction_sets(by_meta).to_pandas(by_meta)["id"].tolist() == list(range(20))
    polls = [Listed(("yes", "no"), np.array([p, 1 - p])) for p in np.linspace(0.05, 0.95, 20)]
    truth = [p > 0.5 for p in np.linspace(0.05, 0.95, 20)]
    said = prediction_sets(polls, ["yes" if each else "no" for each in truth])
    np.testing.assert_array_equal(prediction_sets(polls, truth).scores, said.scores)
    levels = [Listed(("1", "2", "3"), np.array([0.2, 0.5, 0.3]))] * 20
    assert prediction_sets(levels, [2] * 20).threshold == 0.5


def test_answers_may_have_candidates_of_their_own():
    known, right = drawn(15, 30)
    for place in range(0, 30, 2):
        keep = [NAMES.index(right[place]), (NAMES.index(right[place]) + 1) % 5]
        p = known[place].probabilities[keep]
        known[place] = Listed(tuple(NAMES[each] for each in keep), p / p.sum())
    sets = prediction_sets(known, right, 0.2)
    assert set(sets(Listed(("a", "b"), np.array([0.98, 0.02])))) <= {"a", "b"}
    assert isinstance(sets(scores({"no": [0.2], "a cat": [0.6]})), PredictionSet)


def test_what_has_no_probability_is_refused():
    known, right = drawn(16, 20)
    missing = Listed(NAMES, np.array([0.5, np.nan, 0.5, 0, 0]))
    with pytest.raises(CalibrationError, match="answer 0 has no probability for 'green'"):
        prediction_sets([missing, *known[1:]], right)
    sets = prediction_sets(known, right)
    with pytest.raises(CalibrationError, match="the answer has no probability for 'green'"):
        sets(missing)
    with pytest.raises(CalibrationError, match="not from 0 to 1"):
        sets(Listed(NAMES, np.array([-3.0, -1, -2, -4, -5])))
    with pytest.raises(CalibrationError, match="has 5 candidates, and probabilities"):
        sets(Listed(NAMES, np.array([1.0])))
    with pytest.raises(CalibrationError, match="str, which has no candidates"):
        sets("red")
    with pytest.raises(CalibrationError, match="for each in answers"):
        sets(known)
    with pytest.raises(CalibrationError, match="request failed"):
        sets(FAILED)
    with pytest.raises(CalibrationError, match="no answer"):
        sets.coverage([], [])


def test_failures_are_left_out_with_their_labels():
    known, right = drawn(17, 40)
    mixed, labels = [known[0], FAILED, *known[1:]], [right[0], "of no matter", *right[1:]]
    with pytest.warns(VlmprobeWarning, match="^1 failed request"):
        sets = prediction_sets(mixed, labels)
    np.testing.assert_array_equal(sets.scores, prediction_sets(known, right).scores)
    with pytest.warns(VlmprobeWarning, match="^1 failed request"):
        assert sets.coverage(mixed, labels) == sets.coverage(known, right)
    with pytest.warns(VlmprobeWarning, match="^1 failed request"):
        assert len(sets.to_pandas(mixed)) == 40


def test_they_are_saved_and_loaded(tmp_path):
    known, right = drawn(18, 50)
    for method, randomised in WAYS:
        sets = prediction_sets(known, right, 0.15, method=method, randomised=randomised, seed=4)
        again = PredictionSets.load(sets.save(tmp_path / "new" / "sets.json"))
        assert repr(again) == repr(sets)
        np.testing.assert_array_equal(again.scores, sets.scores)
        assert [again(each) for each in known] == [sets(each) for each in known]
    with pytest.raises(ResultError, match="No file"):
        PredictionSets.load(tmp_path / "none.json")
    path = tmp_path / "new" / "sets.json"
    held = json.loads(path.read_text())
    for change in ({"scores": [0.5, 0.1]}, {"method": "raps"}, {"seed": "0"}, {"alpha": 2}, {"more": 1}):
        path.write_text(json.dumps(held | change))
        with pytest.raises(ResultError, match="holds no prediction sets"):
            PredictionSets.load(path)
    path.write_text(json.dumps(held | {"format": 2}))
    with pytest.raises(ResultError, match="later"):
        PredictionSets.load(path)
    path.write_text("[]")
    with pytest.raises(ResultError, match="holds no prediction sets"):
        PredictionSets.load(path)


def test_they_read_as_a_person_says_it():
    assert [str(PredictionSet(each)) for each in ((), ("red",), ("red", "blue"), ("a", "b", "c"))] == [
        "none of the candidates",
        "red",
        "red or blue",
        "a, b or c",
    ]
    assert repr(PredictionSet(("red", "blue"))) == "PredictionSet('red', 'blue')"
    sets = prediction_sets(*drawn(19, 50))
    assert str(sets).startswith("LAC, candidates of a probability of at least 0.")
    assert "with probability at least 0.9" in str(sets)
    assert str(sets).endswith("From 50 answers.")
    assert "'lac', alpha=0.1" in repr(sets)
    assert "random part" in str(prediction_sets(*drawn(19, 50), method="aps", randomised=True))


def test_the_plot_draws_what_every_alpha_would_give():
    from matplotlib import pyplot

    known, new = drawn(20, 40), drawn(21, 60)
    for method, randomised in WAYS:
        sets = prediction_sets(*known, 0.2, method=method, randomised=randomised)
        ax = sets.plot(*new)
        promised, held, chosen = (line.get_xydata() for line in ax.get_lines())
        for place in (5, 20, 35):
            at = sets.at(1 - (place + 1) / 41)
            assert promised[place] == pytest.approx(
                [np.mean([len(at(each)) for each in new[0]]), 100 * (place + 1) / 41]
            )
            assert held[place, 1] == pytest.approx(100 * at.coverage(*new))
        assert chosen[0, 0] == pytest.approx(np.mean([len(sets(each)) for each in new[0]]))
        assert len(sets.plot(new[0]).get_lines()) == 2
        with pytest.raises(CalibrationError, match="no answer"):
            sets.plot([])
    pyplot.close("all")
