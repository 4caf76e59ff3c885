"""Scores of unusual input against the full rows, and what is made of them."""

from __future__ import annotations

import numpy as np
import pytest
from analysis_cases import random_result, random_table
from scipy.special import log_softmax, logsumexp
from sklearn.metrics import roc_curve

from vlmprobe.analysis import detection
from vlmprobe.analysis.confidences import CalibrationError
from vlmprobe.errors import ResultError


@pytest.mark.parametrize("over", ["mean", "max", "first"])
def test_scores_follow_from_the_full_rows(over):
    table = random_table(1, blank=(0, 5))
    rows = [row for row in range(len(table)) if row not in (0, 5)]
    logits = table.logits[rows].astype(np.float64)
    logprobs = log_softmax(logits, axis=-1)
    ordered = -np.sort(-logprobs, axis=-1)
    values = {
        "max_probability": 1 - np.exp(ordered[:, 0]),
        "energy": -logsumexp(logits, axis=-1),
        "entropy": -(np.exp(logprobs) * logprobs).sum(-1),
        "margin": ordered[:, 1] - ordered[:, 0],
    }
    found = detection.scores(table, over)
    assert set(found) == set(values)
    for name, each in values.items():
        wanted = {"mean": each.mean(), "max": each.max(), "first": each[0]}[over]
        assert found[name] == pytest.approx(wanted, abs=1e-5), name
    hot = -2.5 * logsumexp(logits / 2.5, axis=-1)
    wanted = {"mean": hot.mean(), "max": hot.max(), "first": hot[0]}[over]
    assert detection.energy(table, over, temperature=2.5) == pytest.approx(wanted, abs=1e-5)


def test_flat_distributions_are_more_unusual_than_peaked_ones():
    peaked = [random_result(seed, spread=6.0) for seed in range(25)]
    flat = [random_result(100 + seed, spread=1.0) for seed in range(25)]
    found = detection.evaluate(peaked, flat, resamples=20)
    for name, each in found.items():
        assert each.auroc.value > 0.95, name
        assert each.fpr95 < 0.2, name
    assert detection.evaluate(flat, peaked, resamples=20)["entropy"].auroc.value < 0.05


def test_detection_by_hand():
    found = detection.detection([1, 2, 3, 4], [3.5, 5, 6, 7], resamples=20)
    assert found.auroc.value == pytest.approx(15 / 16)
    assert found.fpr95 == pytest.approx(1 / 4)  # all of the unusual reach 3.5, and so does the 4
    many = np.arange(100.0)  # 95 of them reach 5
    assert detection.detection([4.0, 5.0], many, resamples=5).fpr95 == 0.5


@pytest.mark.parametrize("spread", [None, 3, 12], ids=["no ties", "many ties", "some ties"])
def test_fpr95_flags_at_least_95_percent_and_no_more_at_every_count(spread):
    """A count that is a multiple of 20 used to flag one more of the unusual, 96 to 100%."""
    random = np.random.default_rng(0)
    for count in range(1, 201):
        usual, unusual = random.normal(0, 1, 60), random.normal(1, 1, count)
        if spread:
            usual, unusual = np.round(usual * spread), np.round(unusual * spread)
        labels, values = [0] * 60 + [1] * count, np.concatenate([usual, unusual])
        flagged, caught, _ = roc_curve(labels, values, drop_intermediate=False)
        wanted = flagged[np.argmax(caught >= 0.95 - 1e-12)]
        assert detection.detection(usual, unusual, resamples=1).fpr95 == pytest.approx(wanted, abs=1e-12), count


def test_infinite_scores_are_scores():
    """A token that the model excludes has an infinite energy or margin; scikit-learn takes finite scores only."""
    found = detection.detection([0.0, -np.inf, 1.0], [np.inf, 2.0, 0.5], resamples=20)
    assert found.auroc.value == pytest.approx(8 / 9)
    assert found.fpr95 == pytest.approx(1 / 3)


def test_same_input_is_chance():
    random = np.random.default_rng(0)
    found = detection.detection(random.normal(size=400), random.normal(size=400), resamples=200)
    assert found.auroc.low < 0.5 < found.auroc.high
    assert found.fpr95 == pytest.approx(0.95, abs=0.06)


def test_what_is_missing_is_said():
    bare = random_table(2, keep=False)
    with pytest.raises(ResultError, match='keep="logits"'):
        detection.energy(bare, temperature=2)
    with pytest.raises(ResultError, match="above 0"):
        detection.energy(bare, temperature=0)
    with pytest.raises(ResultError, match="over must be"):
        detection.entropy(bare, "last")
    with pytest.raises(CalibrationError, match="neither of them empty"):
        detection.detection([], [1.0])
    with pytest.raises(CalibrationError, match="NaN"):
        detection.detection([1.0, np.nan], [1.0])
    assert np.isnan(detection.entropy(random_table(3, 2, blank=(0, 1))))
