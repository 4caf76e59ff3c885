"""Paired comparisons against the calibration module, scipy, statsmodels, hand computations and known populations."""

from __future__ import annotations

import math

import matplotlib as mpl
import numpy as np
import pytest
from answer_cases import data_set, said
from scipy.stats import binom, bootstrap

mpl.use("Agg")

from matplotlib import pyplot

from vlmprobe.analysis import calibration
from vlmprobe.analysis import paired as module
from vlmprobe.analysis.confidences import CalibrationError
from vlmprobe.analysis.paired import _metrics, paired
from vlmprobe.errors import ResultError
from vlmprobe.probe.failure import Failure
from vlmprobe.results.result import Scores

FAILED = Failure(ResultError("no"), id="x", meta={"id": "x"})


def columns(results, gold):
    return calibration.confidences(results, by="sequence"), calibration.correctness(results, gold)


def test_four_pairs_by_hand():
    a = [said("cat", 0.9), said("cat", 0.8), said("dog", 0.6), said("dog", 0.5)]
    b = [said("Cat.", 0.7), said("dog", 0.6), said("cat", 0.9), said("cow", 0.5)]
    found = paired(a, b, ["cat"] * 4)
    assert (found.n, found.skipped, found.names) == (4, 0, ("a", "b"))
    assert (found.accuracy.a, found.accuracy.b, found.accuracy.difference.value) == (0.5, 0.5, 0.0)
    assert (found.confidence.a, found.confidence.b) == pytest.approx((0.7, 0.675))
    # A is right at 0.9 and 0.8, B at 0.7 and 0.9; B's two answers of 0.7 and 0.6 are in different bins.
    assert found.brier.a == pytest.approx((0.1**2 + 0.2**2 + 0.6**2 + 0.5**2) / 4)
    assert found.brier.b == pytest.approx((0.3**2 + 0.6**2 + 0.1**2 + 0.5**2) / 4)
    assert found.ece.a == pytest.approx((0.1 + 0.2 + 0.6 + 0.5) / 4)
    assert found.ece.b == pytest.approx((0.3 + 0.6 + 0.1 + 0.5) / 4)
    assert found.brier.difference.value == pytest.approx(found.brier.b - found.brier.a)
    assert (found.mcnemar.only_a, found.mcnemar.only_b, found.mcnemar.p) == (1, 1, 1.0)
    assert found.accuracy.p == 1.0
    assert math.isnan(found.brier.p)


def test_failures_that_were_saved_are_left_out_as_before(tmp_path):
    from vlmprobe import load_results, save_results
    from vlmprobe.errors import VlmprobeWarning

    a = [said(text, 0.9, id=place, gold="cat") for place, text in enumerate(("cat", "dog", "cat"))]
    b = [a[0], Failure(ResultError("no"), id=1, row=1, meta={"id": 1}), a[2]]
    save_results(a, tmp_path / "a")
    with pytest.warns(VlmprobeWarning, match="1 of 3 requests failed"):
        save_results(b, tmp_path / "b")
    found = paired(load_results(tmp_path / "a"), load_results(tmp_path / "b", failures=True))
    assert (found.n, found.skipped) == (2, 1) == (paired(a, b).n, paired(a, b).skipped)
    with pytest.raises(ResultError, match=r"1 id in a only, such as 1.*load_results\(folder, failures=True\)"):
        paired(load_results(tmp_path / "a"), load_results(tmp_path / "b"))


@pytest.mark.parametrize("seed", range(3))
def test_values_and_intervals_are_those_of_the_calibration_module(seed):
    """The same resamples, drawn one by one, and each metric computed anew on each by the calibration module."""
    a, b, gold = data_set(seed, 60, better=0.15)
    (sure_a, right_a), (sure_b, right_b) = columns(a, gold), columns(b, gold)
    found = paired(a, b, gold, resamples=200, level=0.9, seed=seed)
    metrics = {
        "accuracy": lambda sure, right: right.mean(),
        "confidence": lambda sure, right: sure.mean(),
        "ECE": calibration.ece,
        "Brier": calibration.brier,
    }
    for name, metric in metrics.items():

        def difference(drawn, _, metric=metric):
            rows = drawn.astype(int)
            return float(metric(sure_b[rows], right_b[rows]) - metric(sure_a[rows], right_a[rows]))

        wanted = calibration.bootstrap(difference, np.arange(60), right_a, resamples=200, level=0.9, seed=seed)
        got = found.metrics[name]
        assert got.a == pytest.approx(metric(sure_a, right_a))
        assert got.b == pytest.approx(metric(sure_b, right_b))
        assert (got.difference.value, got.difference.low, got.difference.high) == pytest.approx(
            (wanted.value, wanted.low, wanted.high)
        )
        assert got.difference.level == 0.9


def test_the_interval_is_scipy_s_up_to_the_draws():
    a, b, gold = data_set(5, 200, better=0.1)
    right = columns(a, gold)[1].astype(float), columns(b, gold)[1].astype(float)
    wanted = bootstrap(
        right, lambda x, y, axis: y.mean(axis) - x.mean(axis), paired=True, method="percentile", n_resamples=4000,
        vectorized=True, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    found = paired(a, b, gold, resamples=4000).accuracy.difference
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=0.011)  # two steps of 1 / 200


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    """Of 300 samples of 150 pairs from a population of known accuracies, 95% +- 3 standard errors of 1.3%."""
    hardness = (np.arange(20_000) + 0.5) / 20_000
    truth = np.mean([0.5 * (1 + math.erf((0.6 - each) / (0.2 * math.sqrt(2)))) for each in hardness]) - 0.6
    random, held = np.random.default_rng(0), 0
    for seed in range(300):
        level = random.random(150)
        right = level < 0.6, level + random.normal(0, 0.2, 150) < 0.6
        interval = _metrics((random.random(150), random.random(150)), right, 300, 0.95, seed)[0][2]
        held += interval.low <= truth <= interval.high
    assert 0.91 <= held / 300 <= 0.99


def test_pairing_narrows_the_interval():
    """Resampled independently, answers to the same questions would have the variance of two samples."""
    a, b, gold = data_set(1, 300)
    found = paired(a, b, gold).accuracy.difference
    spread = [math.sqrt(each * (1 - each) / 300) for each in (0.6, 0.6)]
    assert found.high - found.low < 0.7 * 2 * 1.96 * math.hypot(*spread)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 3), (2, 9), (15, 4)])
def test_mcnemar_by_binomial_coefficients(only_a, only_b):
    both = [("yes", "yes")] * 3 + [("no", "no")] * 2
    answers = [("yes", "no")] * only_a + [("no", "yes")] * only_b + both
    a, b = ([said(pair[side], 0.5) for pair in answers] for side in (0, 1))
    found = paired(a, b, ["yes"] * len(a), resamples=10).mcnemar
    total = only_a + only_b
    tail = sum(math.comb(total, each) for each in range(min(only_a, only_b) + 1)) / 2**total
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p == pytest.approx(min(1.0, 2 * tail))
    assert found.p == pytest.approx(min(1.0, 2 * binom.cdf(min(only_a, only_b), total, 0.5)))


def test_mcnemar_as_in_statsmodels():
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    a, b, gold = data_set(2, 120, better=0.2)
    found = paired(a, b, gold, resamples=10)
    x, y = columns(a, gold)[1], columns(b, gold)[1]
    counts = [[int((x & y).sum()), int((x & ~y).sum())], [int((~x & y).sum()), int((~x & ~y).sum())]]
    assert found.mcnemar.p == pytest.approx(tables.mcnemar(counts, exact=True).pvalue)


def test_pairs_drawn_in_parts_are_the_same(monkeypatch):
    a, b, gold = data_set(3, 40)
    whole = paired(a, b, gold, resamples=50)
    monkeypatch.setattr(module, "AT_ONCE", 40 * 7)
    parts = paired(a, b, gold, resamples=50)
    for name, metric in whole.metrics.items():
        other = parts.metrics[name].difference
        assert (other.low, other.high) == pytest.approx((metric.difference.low, metric.difference.high))


def test_ids_pair_the_answers_whatever_their_order():
    a, b, gold = data_set(4, 30, better=0.1)
    gold = [("yes", "no")[row % 3 == 0] for row in range(30)]
    straight = paired(a, b, gold)
    shuffled = paired(a, [b[row] for row in np.random.default_rng(0).permutation(30)], gold)
    by_id = paired(a[::-1], b, dict(enumerate(gold)))
    carried = paired([said(each.text, each.confidence, id=row, gold=gold[row]) for row, each in enumerate(a)], b[::-1])
    for other in (shuffled, by_id, carried):
        assert other.mcnemar == straight.mcnemar
        assert other.brier.b == pytest.approx(straight.brier.b)
    assert [each.id for each in by_id.examples] == list(range(30))[::-1]
    assert [each.gold for each in shuffled.examples] == gold


def test_two_prompts_are_paired_by_id():
    a = [said("yes", 0.9, id=each, question=f"Q{each}") for each in "xyz"]
    b = [said("no", 0.8, id=each, question=f"Please: Q{each}") for each in "zxy"]
    found = paired(a, b, dict.fromkeys("xyz", "yes"), names=("plain", "please"))
    assert found.names == ("plain", "please")
    assert found.examples[0].questions == ("Qx", "Please: Qx")


def test_failures_are_left_out_in_pairs_and_counted():
    a, b = ([said("yes", 0.5, id=each) for each in "uvwx"] for _ in range(2))
    a[3] = FAILED
    found = paired(a, b[::-1], dict.fromkeys("uvw", "yes"))  # the failure's right answer is not needed
    assert (found.n, found.skipped) == (3, 1)
    without = [[said("yes", 0.5), Failure(ResultError("no")), said("yes", 0.5)], [said("no", 0.5)] * 3]
    found = paired(*without, ["yes"] * 3)
    assert (found.n, found.skipped, found.mcnemar.only_a) == (2, 1, 2)


def test_scored_candidates_are_compared_by_the_best():
    def scored(yes):
        tables = [said("yes", yes).output, said("no", (1 - yes)).output]
        return Scores(["yes", "no"], tables, [None, None], {"question": "Q?"})

    found = paired([scored(0.9), scored(0.6)], [scored(0.2), scored(0.7)], ["yes", "yes"])
    assert (found.accuracy.a, found.accuracy.b) == (1.0, 0.5)
    assert found.confidence.b == pytest.approx(0.75)
    assert found.examples[0].texts == ("yes", "no")


def test_what_counts_as_right_can_be_told():
    a, b = [said("a cat", 0.5), said("a dog", 0.5)], [said("the cat sat", 0.5), said("cow", 0.5)]
    assert paired(a, b, ["cat", "dog"]).accuracy.b == 0.0
    assert paired(a, b, [["cat", "the cat sat"], "dog"]).accuracy.b == 0.5
    assert paired(a, b, ["cat", "dog"], correct=lambda said, gold: gold in said).accuracy.b == 0.5
    found = paired(a, b, None, correct=([True, True], [False, True]))
    assert (found.accuracy.a, found.accuracy.b, found.examples[0].gold) == (1.0, 0.5, None)


TWO = [said("yes", 0.5), said("no", 0.5)]


@pytest.mark.parametrize(
    ("a", "b", "options", "error", "message"),
    [
        (TWO, TWO[:1], {}, ResultError, "a has 2 results and b 1"),
        (TWO, [TWO[0], said("no", 0.5, question="Other?")], {}, ResultError, "For two prompts, give the requests ids"),
        (TWO, [TWO[0], said("no", 0.5, image_digests=["q"])], {}, None, ""),
        ([said("yes", 0.5, image_digests=["p"])] * 2, [said("no", 0.5, image_digests=["q"])] * 2, {}, ResultError,
         "images of result 0 differ"),
        ([said("x", 0.5, id=1)] * 2, TWO, {}, ResultError, "the id 1 is twice in a, at 0 and 1"),
        ([said("x", 0.5, id=1), said("x", 0.5)], TWO, {}, ResultError, "1 of 2 results of a have no id"),
        ([said("x", 0.5, id=1)], [said("x", 0.5, id=2)], {}, ResultError, "1 id in a only, such as 1"),
        ([said("x", 0.5, id=[1])], TWO, {}, ResultError, "use texts or numbers as ids"),
        ([said("x", 0.5, id=1, question="Q", image_digests=["p"])],
         [said("x", 0.5, id=1, question="R", image_digests=["q"])], {}, ResultError, "not the same rows"),
        (TWO[0], TWO, {}, ResultError, "a must be a list of results"),
        (TWO, ["yes", "no"], {}, ResultError, "b holds str at 0"),
        (TWO, TWO, {"gold": ["yes"]}, CalibrationError, "gold has 1 answer for 2 results"),
        (TWO, TWO, {"gold": "gold"}, CalibrationError, r"result 0 has no meta\['gold'\]"),
        (TWO, TWO, {"gold": {1: "yes"}}, CalibrationError, "gold is by id, and result 0 has none"),
        (TWO, TWO, {"gold": ["yes", 3]}, CalibrationError, "3 is no text"),
        (TWO, TWO, {"gold": ["yes", None]}, CalibrationError, "None is no text"),
        (TWO, TWO, {"gold": None}, CalibrationError, "gold is None"),
        (TWO, TWO, {"correct": lambda said, gold: 0.6}, CalibrationError, "correct must be booleans"),
        (TWO, TWO, {"correct": ([True], [True, True])}, CalibrationError, "each of 2 results in a"),
        (TWO, TWO, {"correct": ([True, True],)}, CalibrationError, "correct must be two lists"),
        (TWO, TWO, {"names": ("x", "x")}, ResultError, "names must be two different texts"),
        (TWO, TWO, {"names": ("x", "low")}, ResultError, "names must be two different texts"),
        (TWO, TWO, {"names": "ab"}, ResultError, "names must be two different texts"),
        (TWO, TWO, {"level": 1.0}, CalibrationError, "level must be between"),
        (TWO, TWO, {"resamples": 0}, CalibrationError, "resamples at least 1"),
        (TWO, [TWO[0], said("no", math.nan)], {}, CalibrationError, "confidence 1 is NaN"),
        (TWO[:1], TWO[:1], {"gold": ["yes"]}, CalibrationError, "at least 2"),
        ([FAILED], [FAILED], {"gold": ["yes"]}, CalibrationError, "at least 2"),
        ([], [], {"gold": []}, CalibrationError, "at least 2"),
        ([said("x", 0.5, gold="x")] * 2, [said("x", 0.5, gold="y")] * 2, {"gold": "gold"}, CalibrationError,
         "different right answers"),
    ],
)  # fmt: skip
def test_lists_that_do_not_fit_are_errors(a, b, options, error, message):
    options = {"gold": ["yes"] * 2, **options}
    if error is None:
        paired(a, b, **options)
    else:
        with pytest.raises(error, match=message):
            paired(a, b, **options)


def test_names_are_the_models_where_they_differ():
    def named(model):
        return [said("yes", 0.5, model=model)] * 2

    assert paired(named("x/y"), named("/models/z"), ["yes"] * 2).names == ("x/y", "z")
    assert paired(named("x/y"), named("low"), ["yes"] * 2).names == ("a", "b")
    assert paired(named("x/y"), named(None), ["yes"] * 2).names == ("a", "b")


def test_table_for_pandas_and_latex():
    a, b, gold = data_set(6, 50, better=0.2)
    found = paired(a, b, gold, names=("base", "x_1"))
    table = found.to_pandas()
    assert list(table.columns) == ["base", "x_1", "difference", "low", "high", "p"]
    assert list(table.index) == ["accuracy", "confidence", "ECE", "Brier"]
    assert table.loc["ECE", "difference"] == pytest.approx(table.loc["ECE", "x_1"] - table.loc["ECE", "base"])
    assert table.loc["accuracy", "p"] == found.mcnemar.p
    assert table["p"].notna().sum() == 1
    latex = table.to_latex(float_format="%.3f", na_rep="", escape=True)
    assert r"x\_1" in latex
    assert f"accuracy & {found.accuracy.a:.3f} & {found.accuracy.b:.3f} &" in latex


def test_gallery_of_changed_wrong_and_least_sure():
    texts = [("yes", "no"), ("no", "yes"), ("yes", "yes"), ("no", "no"), ("yes", "no")]
    sure = [(0.9, 0.8), (0.9, 0.4), (0.9, 0.6), (0.9, 0.7), (0.9, 0.3)]
    a, b = (
        [said(text[side], prob[side], id=row) for row, (text, prob) in enumerate(zip(texts, sure, strict=True))]
        for side in (0, 1)
    )
    found = paired(a, b, ["yes"] * 5, resamples=10)
    assert [each.id for each in found.changed()] == [0, 4, 1]  # lost, lost, gained
    assert [each.id for each in found.wrong()] == [0, 3, 4]  # by falling confidence of B
    assert [each.id for each in found.least_sure(2)] == [4, 1]
    assert found.least_sure(2).total == 5
    frame = found.changed().to_pandas()
    assert frame.loc[2].to_dict() == {
        "id": 1, "question": "What is it?", "gold": "yes", "answer_a": "no", "answer_b": "yes",
        "confidence_a": pytest.approx(0.9), "confidence_b": pytest.approx(0.4), "right_a": False, "right_b": True,
    }  # fmt: skip


def test_plot_draws_the_intervals():
    a, b, gold = data_set(7, 80, better=0.2)
    found = paired(a, b, gold, names=("$x_1$", "b"))
    _, ax = pyplot.subplots()
    assert found.plot(ax) is ax
    lines = [each.get_xdata() for each in ax.get_lines()]
    drawn = [tuple(map(float, each)) for each in lines if len(each) == 2 and each[0] != each[1]]
    assert drawn == [(each.difference.low, each.difference.high) for each in found.metrics.values()]
    assert ax.get_xlabel() == "b minus $x_1$, 95% interval, 80 pairs"
    ax.figure.canvas.draw()  # a name is no formula
    pyplot.close("all")
