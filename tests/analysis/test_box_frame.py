"""Boxes of many answers, compared with the right ones, as calibration and gating take them."""

from __future__ import annotations

import numpy as np
import pytest
from box_answers import answer, written

from vlmprobe.analysis import calibration, gating
from vlmprobe.analysis.box_frame import box_frame
from vlmprobe.analysis.confidences import CalibrationError
from vlmprobe.errors import VlmprobeWarning
from vlmprobe.results.failure import Failure


def test_each_right_box_goes_to_the_surest_box_that_overlaps_it():
    sure, unsure = ("4", 0.99, {"9": 0.01}), ("4", 0.5, {"9": 0.5})
    begun = "<ref>a</ref><box>1 1 4 "
    result = answer(*begun, unsure, *"</box>", *begun, sure, *"</box><ref>b</ref><box>1 1 4 4</box>")
    rows = box_frame([result], [[{"box": [1, 1, 4, 4], "label": "a"}, {"box": [100, 100, 200, 200], "label": "b"}]])
    assert rows["kind"].tolist() == ["box", "box", "box", "missing"]
    assert rows["correct"].tolist() == [False, True, False, False]
    assert rows["truth"].tolist() == [-1, 0, -1, 1]
    assert rows["overlap"].tolist()[1] == 1
    assert rows["label"].tolist() == ["a", "a", "b", "b"]
    assert np.isnan(rows["score"].iloc[3])
    assert rows["answer"].tolist() == [0] * 4


def test_the_overlap_that_is_wanted_and_labels_that_are_not():
    result = written("<box>0 0 100 100</box>", id="x")
    for wanted, right in ((0.5, True), (0.6, False)):
        rows = box_frame([result], {"x": [[0, 0, 100, 200]]}, iou=wanted)
        assert rows["correct"].tolist() == ([True] if right else [False, False])
        assert set(rows["id"]) == {"x"}
    rows = box_frame(
        [written("<ref>A</ref><box>0 0 9 9</box>")], [[{"box": (0, 0, 9, 9), "label": "a"}]], normal=str.lower
    )
    assert rows["correct"].tolist() == [True]


def test_points_lie_in_a_right_box_and_answers_without_boxes_miss_all():
    results = [written('<point x="5" y="5">'), written('<point x="50" y="5">'), written("There is none.")]
    failure = Failure(None, "EngineError", "refused")
    with pytest.warns(VlmprobeWarning, match="left out"):
        rows = box_frame([*results, failure], [[[0, 0, 100, 100]]] * 4)
    assert rows[["answer", "kind", "correct"]].to_numpy().tolist() == [
        [0, "point", True],
        [1, "point", False],
        [1, "missing", False],
        [2, "missing", False],
    ]


def test_without_right_boxes_nothing_is_judged():
    rows = box_frame([written("<box>1 2 3 4</box>"), written("none")])
    assert "correct" not in rows
    assert len(rows) == 1
    assert len(box_frame([])) == 0


@pytest.mark.parametrize("right", [[[1, 2, 3]], "dog", {"box": [1, 2, 3, 4]}, [{"label": "dog"}], [[1, 2, 3, "x"]]])
def test_what_is_no_right_box_is_an_error(right):
    with pytest.raises(CalibrationError, match="right box"):
        box_frame([written("<box>1 2 3 4</box>")], [right])


def test_rows_are_what_calibration_and_gating_take():
    random = np.random.default_rng(0)
    results, gold = [], []
    for _ in range(120):
        sure = float(random.choice([0.6, 0.95]))
        moved = random.random() > sure
        results.append(answer(*"<box>100 100 ", ("9", sure, {"2": 1 - sure}), *"00 900</box>"))
        gold.append([[100, 100, 200 if moved else 900, 900]])
    rows = box_frame(results, gold).dropna(subset="score")
    assert len(rows) == 120
    assert calibration.auroc(rows["score"], rows["correct"]) > 0.6
    threshold = gating.accept_for_accuracy(rows["score"], rows["correct"], accuracy=0.8)
    assert threshold.value > rows["score"].min()
