"""Failures among results: every analysis leaves them out and says how many."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from analysis_cases import random_result

from vlmprobe import Failure
from vlmprobe.analysis import detection, distillation, export, gating, heads, lm_polygraph, uncertainty, yes_no
from vlmprobe.analysis.confidences import confidences, correctness
from vlmprobe.analysis.failures import without_failures
from vlmprobe.errors import ImageError, VlmprobeWarning

FAILED = Failure(ImageError("request 1: no such file"), "What?", "x", 1)


def mixed(**options):
    first, second = random_result(1, request="a", **options), random_result(2, request="b", **options)
    return [first, second], [first, FAILED, second, FAILED]


def told(count=2):
    return pytest.warns(VlmprobeWarning, match=f"^{count} failed request")


def test_they_are_left_out_with_what_belongs_to_them():
    good, all_of_them = mixed()
    with told() as caught:
        assert list(without_failures(iter(all_of_them))) == good
    assert len(caught) == 1
    with told(1):
        assert list(without_failures([*good, FAILED], "abc")) == list(zip(good, "ab", strict=True))
    with pytest.raises(ValueError, match="shorter"):
        list(without_failures(good, "a"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(without_failures(good)) == good


@pytest.mark.parametrize(
    "function",
    [
        lambda results: confidences(results, by="mean"),
        lambda results: correctness(results, ["a"] * 4),
        uncertainty.frame,  # pandas reads the generator that counts them
        lambda results: list(without_failures(results)),
    ],
)
def test_the_warning_points_at_the_line_of_the_caller(function):
    with told() as caught:
        function(mixed()[1])
    assert [each.filename for each in caught] == [__file__]


def test_confidences_and_correctness_match(recwarn):
    good, all_of_them = mixed()
    np.testing.assert_array_equal(confidences(all_of_them, "mean"), confidences(good, "mean"))
    right = correctness(all_of_them, [good[0].text, "x", "nothing", "y"])
    assert right.tolist() == [True, False]
    assert [str(each.message)[:17] for each in recwarn] == ["2 failed requests"] * 2


def test_frame():
    _, all_of_them = mixed()
    with told():
        assert uncertainty.frame(all_of_them)["id"].tolist() == ["a", "b"]


def test_export(tmp_path):
    _, all_of_them = mixed()
    with told():
        path = export.write_parquet(iter(all_of_them), tmp_path / "a.parquet")
    assert [(each.result, each.id) for each in distillation.read_parquet(path)] == [(0, "a"), (1, "b")]


def test_detection():
    good, all_of_them = mixed()
    with told():
        found = detection.evaluate(all_of_them, good, resamples=5)
    assert found == detection.evaluate(good, good, resamples=5)


def test_states():
    good, _ = mixed()
    states = np.ones((len(good[0].output), 4), np.float32)
    good = [replace(each, output=replace(each.output, hidden=states * place)) for place, each in enumerate(good)]
    with told(1):
        found = heads.states([good[0], FAILED, good[1]])
    np.testing.assert_array_equal(found, heads.states(good))


def test_lm_polygraph():
    good, all_of_them = mixed()
    tables = [good[0].output, None, good[1].output, None]
    with told():
        found = lm_polygraph.statistics(all_of_them, without=tables)
    plain = lm_polygraph.statistics(good, without=[each.output for each in good])
    assert found["greedy_texts"] == plain["greedy_texts"]
    assert found["greedy_lm_log_likelihoods"] == plain["greedy_lm_log_likelihoods"]


def test_a_report_counts_them():
    with told():
        found = yes_no.report(["Yes", FAILED, "No", FAILED], ["yes", "no", "no", "yes"])
    assert (found.count, found.failed, found.accuracy) == (2, 2, 1.0)
    assert "2 questions (2 failed)" in str(found)
    assert yes_no.report(["Yes"], ["yes"]).failed == 0
    with told(1):
        groups = yes_no.reports(["Yes", FAILED, "No"], ["yes", "no", "no"], ["a", "a", "b"])
    assert {name: each.failed for name, each in groups.items()} == {"a": 1, "b": 0}


def test_the_gate_asks_a_person():
    decision = gating.gate(FAILED, 0.5, reject=0.1)
    assert decision.action == "ask"
    assert np.isnan(decision.confidence)
    assert "no such file" in decision.why


def test_confidences_ask_for_their_measure():
    good, _ = mixed()
    with pytest.warns(FutureWarning, match='by="sequence" is the probability of the whole answer, as now'):
        assumed = confidences(good)
    assert assumed.tolist() == confidences(good, "sequence").tolist()
