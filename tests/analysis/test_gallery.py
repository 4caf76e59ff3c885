"""Galleries of one model's answers: which are chosen, and in which order."""

from __future__ import annotations

import pytest
from answer_cases import said

from vlmprobe.analysis import gallery
from vlmprobe.analysis.confidences import CalibrationError
from vlmprobe.errors import ResultError, VlmprobeWarning
from vlmprobe.probe.failure import Failure

ANSWERS = [said("yes", 0.6, id="p"), said("no", 0.7, id="q"), said("no", 0.9, id="r"), said("yes", 0.5, id="s")]
GOLD = {"p": "no", "q": "no", "r": "yes", "s": "yes"}


def test_wrong_answers_are_the_most_confident_first():
    found = gallery.wrong(ANSWERS, GOLD)
    assert [each.id for each in found] == ["r", "p"]
    assert found.to_pandas().to_dict("list") == {
        "id": ["r", "p"], "question": ["What is it?"] * 2, "gold": ["yes", "no"], "answer": ["no", "yes"],
        "confidence": pytest.approx([0.9, 0.6]), "right": [False, False],
    }  # fmt: skip


def test_least_sure_needs_no_right_answers():
    found = gallery.least_sure(ANSWERS, most=3)
    assert [each.id for each in found] == ["s", "p", "q"]
    assert (len(found), found.total, found[0].correct) == (3, 4, ())
    assert found.to_pandas()["right"].isna().all()
    assert [each.correct for each in gallery.least_sure(ANSWERS, GOLD)] == [(True,), (False,), (True,), (False,)]


def test_order_follows_the_chosen_confidence():
    found = gallery.least_sure(ANSWERS, by=lambda result: 1 - result.confidence)
    assert [each.id for each in found] == ["r", "q", "p", "s"]


def test_failures_are_left_out_with_their_right_answers():
    with pytest.warns(VlmprobeWarning, match="1 failed request is left out"):
        found = gallery.wrong([said("yes", 0.5), Failure(ResultError("no")), said("no", 0.5)], ["yes", "yes", "yes"])
    assert [each.texts for each in found] == [("no",)]


def test_unusable_arguments_are_errors():
    with pytest.raises(CalibrationError, match="gold has no answer for the id 's'"):
        gallery.wrong(ANSWERS, {"p": "no", "q": "no", "r": "no"})
    with pytest.raises(ResultError, match="most must be an integer of at least 1, not 0"):
        gallery.wrong(ANSWERS, GOLD, most=0)
    with pytest.raises(ResultError, match="results must be a list of results"):
        gallery.wrong(ANSWERS[0], GOLD)


def test_images_of_both_are_shown_where_they_differ():
    def example(digest, other):
        pair = (
            said("x", 0.5, colour="red", image_digests=[digest]),
            said("x", 0.5, colour="blue", image_digests=[other]),
        )
        return gallery.Example("p", None, pair, (0.5, 0.5), ())

    assert [each.getpixel((0, 0)) for each in example("1", "1").images] == [(255, 0, 0)]
    assert [each.getpixel((0, 0)) for each in example("1", "2").images] == [(255, 0, 0), (0, 0, 255)]
