"""Fields of many answers as one table with the truth, and gating by field."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from json_answers import answer

from vlmprobe.analysis import calibration, fields, gating
from vlmprobe.analysis.confidences import CalibrationError, normal_text
from vlmprobe.analysis.field_frame import field_frame
from vlmprobe.errors import ResultError, VlmprobeWarning
from vlmprobe.results.failure import Failure

FIRST = answer('{"', "total", '": ', "12", ".", "5", ', "', "shop", '": "', "Moon", '"}')
SECOND = answer('{"', "total", '": ', "7", ', "', "tip", '": ', "1", ', "', "new", '": ', "true", "}")


def table(rows, *names):
    return [tuple(row) for row in rows[list(names)].itertuples(index=False)]


def test_every_field_is_compared_with_the_right_answer():
    gold = [{"total": 12.50, "shop": "moon", "date": "today"}, {"total": 8, "tip": True, "new": True}]
    rows = field_frame([FIRST, SECOND], gold)
    assert table(rows, "answer", "path", "kind", "correct") == [
        (0, "total", "number", True),
        (0, "shop", "string", False),
        (0, "date", "missing", False),
        (1, "total", "number", False),
        (1, "tip", "number", False),  # 1 is not true
        (1, "new", "boolean", True),
    ]
    found = fields(FIRST)
    np.testing.assert_allclose(rows["at_least"][:3], [*found.at_least, np.nan])
    assert list(rows.columns[:4]) == ["answer", "id", "path", "value"]
    assert field_frame([FIRST], gold[:1], path="shop", normal=normal_text)["correct"].tolist() == [True]
    assert "correct" not in field_frame([FIRST])


def test_arrays_and_what_should_not_be_there():
    result = answer('{"a": [1, {"b": "x"}], "c": []}')
    rows = field_frame([result], [{"a": [1, {"b": "x"}, 3]}])
    assert table(rows, "path", "truth", "correct") == [
        ("a[0]", 1, True),
        ("a[1].b", "x", True),
        ("c", None, False),
        ("a[2]", 3, False),
    ]
    assert table(field_frame([result], [{"a": [1, 2]}], path="a[]"), "path", "correct") == [
        ("a[0]", True),
        ("a[1].b", False),
        ("a[1]", False),
    ]


def test_an_answer_without_json_misses_every_field():
    rows = field_frame([answer("I do not know")], [{"total": 1}], path="total")
    assert table(rows, "path", "kind", "correct") == [("total", "missing", False)]
    assert "no JSON" in rows["notes"][0]
    assert len(field_frame([answer("I do not know")])) == 0


def test_a_value_that_is_cut_off_is_not_right():
    rows = field_frame([answer('{"total": 12', end=False)], [{"total": 12}])
    assert rows["correct"].tolist() == [False]


def test_right_answers_by_id_or_in_meta_and_failures_left_out():
    named = [replace(FIRST, meta={"id": "a", "truth": {"total": 12.5}}), replace(SECOND, meta={"id": "b", "truth": {}})]
    failed = Failure("c", "What?", ValueError("no"))
    with pytest.warns(VlmprobeWarning, match="left out"):
        rows = field_frame([failed, *named], "truth", path="total")
    assert table(rows, "answer", "id", "correct") == [(1, "a", True), (2, "b", False)]
    assert field_frame(named, {"a": {"total": 1}, "b": {"total": 7}}, path="total")["correct"].tolist() == [False, True]
    with pytest.raises(CalibrationError, match="no object"):
        field_frame([FIRST], ["12.50"])
    with pytest.raises(CalibrationError, match="no answer for the id"):
        field_frame(named, {"a": {}})
    with pytest.raises(ResultError, match="no path"):
        field_frame([FIRST], path="a..b")


def test_rows_are_what_calibration_and_gating_take():
    """A threshold on one field of each answer; what it promises holds for the fields that reach it."""
    random = np.random.default_rng(0)
    results, gold = [], []
    made = answer('{"total": ', "12", "}")
    for _ in range(1000):
        sure = random.choice([0.4, 0.999])
        logprobs = made.output.logprobs.copy()
        logprobs[1] = np.log(sure)
        results.append(replace(made, output=replace(made.output, logprobs=logprobs)))
        gold.append({"total": 12 if random.random() < sure else 13})
    rows = field_frame(results, gold, path="total")
    threshold = gating.accept_for_accuracy(rows["at_least"], rows["correct"], 0.97)
    assert 0.4 < threshold.value < 0.999
    kept = rows[rows["at_least"] >= threshold.value]
    assert kept["correct"].mean() >= 0.97
    assert gating.gate(float(rows["at_least"][0]), threshold).action in ("accept", "ask")
    assert calibration.ece(rows["at_least"], rows["correct"]) < 0.1
