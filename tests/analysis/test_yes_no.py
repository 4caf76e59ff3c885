"""Yes or no: probabilities by hand, and the figures of a poll against POPE's own rule and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from analysis_cases import random_result
from common import QUESTION, picture
from counting import counting
from sklearn import metrics

import vlmprobe
from vlmprobe.analysis import yes_no
from vlmprobe.analysis.confidences import confidences, correctness
from vlmprobe.errors import MessageError, ResultError
from vlmprobe.results.grouped import YesNo

ASKED = "Is there a cat in the picture?"


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl", "mllama"])
def test_probability_of_yes_by_hand(probe_of, name):
    probe, image = probe_of(name), picture()
    answer = probe.yes_no(ASKED, image)
    totals = []
    for texts in (yes_no.YES, yes_no.NO):
        counted = [text for text in texts if text not in answer.left_out]
        assert counted
        rows = [probe.score(ASKED, [text], image).tables[0] for text in counted]
        paths = [tuple(table.ids.tolist()) for table in rows]
        assert len(set(paths)) == len(paths)
        totals.append(sum(math.exp(table.logprobs.sum(dtype=np.float64)) for table in rows))
    assert answer.probability == pytest.approx(totals[0] / sum(totals), rel=1e-4)
    assert answer.margin == pytest.approx(math.log(totals[0] / totals[1]), abs=1e-4)
    assert answer.says_yes == (totals[0] > totals[1]) == (answer.best == "yes")
    assert answer.mass == pytest.approx(sum(totals), rel=1e-4)


def test_it_costs_one_picture_and_one_prefill(probe_of):
    probe = probe_of("qwen2_vl")
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as plain:
        probe.score(ASKED, ["yes"], picture())
    with counting(adapter.model, adapter.layers) as count:
        probe.yes_no(ASKED, picture())
    assert count.pictures == plain.pictures
    assert sum(1 for prompts, positions in count.positions if positions > 20) == 1


def test_spellings_of_ones_own(probe_of):
    probe = probe_of("llava")
    answer = probe.yes_no(ASKED, picture(), yes=["certainly"], no=["not at all", "never"])
    assert answer.spellings.candidates == ["certainly", "not at all", "never"]
    with pytest.raises(MessageError, match="both 'yes' and 'no'"):
        probe.yes_no(ASKED, picture(), yes=["no"])
    with pytest.raises(MessageError, match="collide"):
        probe.yes_no(ASKED, picture(), yes=["no problem"])


def test_the_demo_model_is_asked(tmp_path):
    from vlmprobe.demo.scenes import held_out

    probe = vlmprobe.load("demo", device="cpu")
    asked = [(scene, qa) for scene in held_out(12) for qa in scene.questions if qa.answer in ("yes", "no")]
    requests = [vlmprobe.Request(qa.question, scene.picture, id=place) for place, (scene, qa) in enumerate(asked)]
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as one:
        probe.yes_no(requests[0].question, requests[0].image)
    with counting(adapter.model, adapter.layers) as count:
        answers = list(yes_no.yes_no_many(probe, requests, progress=False))
    assert sum(count.pictures) == 12 * sum(one.pictures)  # not once a question
    assert len(count.pictures) < 12, "some of them in one run"
    assert [answer.meta["id"] for answer in answers] == list(range(len(asked)))
    generated = list(probe.generate_many(requests, progress=False, prompt=False))
    for answer, result in zip(answers, generated, strict=True):
        assert answer.says_yes == yes_no.reads_as_yes(result.text)
        assert answer.mass > 0.9
    found = yes_no.report(answers, [qa.answer for _, qa in asked])
    assert found.accuracy > 0.8
    assert found.accuracy == pytest.approx(correctness(answers, [qa.answer for _, qa in asked]).mean())
    sure = confidences(answers)
    np.testing.assert_allclose(sure, [max(each.probability, 1 - each.probability) for each in answers])
    again = vlmprobe.load_result(answers[0].save(tmp_path / "answer"))
    assert type(again) is YesNo
    assert again.probability == answers[0].probability


def test_pope_reads_an_answer_as_its_authors_do():
    """Expected values worked out by hand from the rule of POPE's evaluation script."""
    expected = {
        "Yes, there is a dog in the picture.": True,
        "yes": True,
        "No": False,
        "No, there is no dog.": False,
        "There is not a dog.": False,
        "There is a dog. It does not bark.": True,  # only the first sentence is read
        "Well,no": True,  # the comma is taken out before words are told apart
        "Nothing of the kind": True,
        "NO": True,  # not among the words that the rule knows
        "I see no dog": False,
    }
    assert {text: yes_no.reads_as_yes(text) for text in expected} == expected


def test_figures_are_those_of_scikit_learn():
    random = np.random.default_rng(0)
    said, right = random.random(200) < 0.6, random.random(200) < 0.5
    found = yes_no.report(said.tolist(), ["yes" if each else "No " for each in right])
    assert found.count == 200
    assert found.accuracy == pytest.approx(metrics.accuracy_score(right, said))
    assert found.precision == pytest.approx(metrics.precision_score(right, said))
    assert found.recall == pytest.approx(metrics.recall_score(right, said))
    assert found.f1 == pytest.approx(metrics.f1_score(right, said))
    assert found.yes_rate == pytest.approx(said.mean())
    assert math.isnan(found.auroc)
    assert "200 questions: accuracy 0." in str(found)


def test_auroc_of_probabilities(probe_of):
    probe = probe_of("llava")
    answers = [probe.yes_no(ASKED, picture(seed)) for seed in range(6)]
    right = [True, False, True, True, False, False]
    found = yes_no.report(answers, right)
    assert found.auroc == pytest.approx(metrics.roc_auc_score(right, [each.probability for each in answers]))
    assert math.isnan(yes_no.report(answers, [True] * 6).auroc)


def test_generated_answers_are_read():
    results = [random_result(0, text="Yes, a dog."), random_result(1, text="There is no dog.")]
    found = yes_no.report(results, [True, True])
    assert (found.true_yes, found.false_no) == (1, 1)


def test_rates_of_nothing_are_nan():
    found = yes_no.report(["no", "no"], [False, False])
    assert math.isnan(found.precision)
    assert math.isnan(found.recall)
    assert math.isnan(found.f1)
    assert found.accuracy == 1
    assert math.isnan(yes_no.report([], []).accuracy)


def test_groups_and_frame():
    found = yes_no.reports([True, False, True], [True, True, False], ["random", "popular", "random"])
    assert list(found) == ["random", "popular"]
    assert (found["random"].true_yes, found["random"].false_yes) == (1, 1)
    table = yes_no.frame(found)
    assert table.loc["random", "count"] == 2
    assert table.loc["popular", "recall"] == 0
    assert list(table.columns) == ["count", "accuracy", "precision", "recall", "f1", "yes_rate", "auroc"]


def test_errors():
    for wrong in ("maybe", 1, None):
        with pytest.raises(ResultError, match="not a label"):
            yes_no.report([True], [wrong])
    with pytest.raises(ResultError, match="not an answer"):
        yes_no.report([3], [True])
    with pytest.raises(ResultError, match="the same length"):
        yes_no.report([True], [])
    with pytest.raises(ResultError, match="the same length"):
        yes_no.reports([True], [True], [])


def test_requests_may_be_endless(probe_of):
    def endless():
        while True:
            yield {"prompt": QUESTION, "image": picture(), "id": "x"}

    stream = yes_no.yes_no_many(probe_of("llava"), endless(), progress=False)
    assert [next(stream).meta["id"] for _ in range(2)] == ["x", "x"]


def test_a_progress_bar_counts_questions(probe_of, monkeypatch):
    from rich.progress import Progress

    drawn = []
    monkeypatch.setattr(Progress, "add_task", lambda _, what, **more: drawn.append((what, more["total"])))
    monkeypatch.setattr(Progress, "update", lambda _, task, **more: drawn.append(more["rate"].split()[-1]))
    list(yes_no.yes_no_many(probe_of("llava"), [vlmprobe.Request(ASKED, picture())] * 2, progress=True))
    assert drawn == [("questions", 2), "questions/s", "questions/s"]
