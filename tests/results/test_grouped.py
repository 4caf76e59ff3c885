"""Answers of several spellings: sums against full rows by hand, and collisions."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from analysis_cases import random_table
from common import QUESTION, picture
from counting import counting
from rich.console import Console

import vlmprobe
from vlmprobe.errors import MessageError
from vlmprobe.results.grouped import GroupedScores, grouped
from vlmprobe.results.result import Scores
from vlmprobe.results.table import TokenTable

GROUPS = {"cat": ["a cat", "cat", "Cat"], "tiger": ["a tiger", "tiger"], "none": ["nothing"]}


def scores_of(paths: dict[str, tuple[int, ...]], start: dict[str, int] | None = None, special: str = "") -> Scores:
    """Scores whose candidates have given token ids, each token with a probability of its own."""
    tables = []
    for place, (text, ids) in enumerate(paths.items()):
        kinds = ["special" if text == special else "text"] * len(ids)
        tokens = ["<unk>" if text == special else text, *[""] * (len(ids) - 1)]
        table = random_table(place, len(ids), ids=ids, tokens=tokens, kinds=kinds)
        columns = {name: getattr(table, name) for name in TokenTable.__dataclass_fields__}
        columns["positions"] = np.arange(len(ids)) + (start or {}).get(text, 20)
        tables.append(TokenTable(**columns))
    return Scores(list(paths), tables, [None] * len(paths))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "paligemma"])
def test_probabilities_are_summed_over_spellings(probe_of, name):
    probe, image = probe_of(name), picture()
    scores = probe.score(QUESTION, GROUPS, image)
    flat = probe.score(QUESTION, [each for texts in GROUPS.values() for each in texts], image)
    by_hand = {}
    for answer, texts in GROUPS.items():
        rows = [probe.score(QUESTION, [text], image, keep="logits").tables[0] for text in texts]
        total = 0.0
        for table in rows:  # product of softmaxes, written out
            logits = table.logits.astype(np.float64)
            softmax = np.exp(logits - logits.max(1, keepdims=True))
            softmax /= softmax.sum(1, keepdims=True)
            total += softmax[np.arange(len(table)), table.ids].prod()
        by_hand[answer] = total
    np.testing.assert_allclose(np.exp(scores.logprobs), list(by_hand.values()), rtol=1e-4)
    assert scores.mass == pytest.approx(sum(by_hand.values()), rel=1e-4)
    np.testing.assert_allclose(scores.probabilities, np.array([*by_hand.values()]) / sum(by_hand.values()), rtol=1e-4)
    assert scores.best == max(by_hand, key=by_hand.__getitem__)
    assert scores.candidates == list(GROUPS)
    np.testing.assert_allclose(scores.spellings.logprobs, flat.logprobs, atol=1e-5)
    assert isinstance(scores, GroupedScores)
    assert scores.meta["question"] == QUESTION


def test_one_picture_and_one_prefill(probe_of):
    probe, image = probe_of("llava"), picture()
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as plain:
        probe.score(QUESTION, ["cat"], image)
    with counting(adapter.model, adapter.layers) as count:
        probe.score(QUESTION, GROUPS, image)
    assert count.pictures == plain.pictures


def test_mass_counts_what_begins_with_another_candidate_once():
    """As token paths: [5, 6] and [5, 6, 8] begin with [5], whose probability theirs is part of; [36] does not."""
    scores = scores_of({"no way": (5, 6), "no": (5,), "No": (5,), "no way out": (5, 6, 8), "nothing": (36,)})
    assert scores.mass == pytest.approx(np.exp(scores.logprobs[[1, 4]]).sum())
    elsewhere = scores_of({"no way": (5, 6), "no": (5,)}, start={"no": 19})
    assert elsewhere.mass == pytest.approx(np.exp(elsewhere.logprobs).sum())
    without_ids = Scores(
        scores.candidates, [replace(each, ids=None) for each in scores.tables], scores.boundaries
    )  # their token texts are all different
    assert without_ids.mass == pytest.approx(np.exp(scores.logprobs).sum())


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_mass_of_nested_candidates_is_the_probability_of_their_beginning(probe_of, name):
    probe, image = probe_of(name), picture()
    scores = probe.score(QUESTION, ["cat", "cat sat", "cat sat here"], image)
    assert [table.ids[: len(scores.tables[0])].tolist() for table in scores.tables] == [
        scores.tables[0].ids.tolist()
    ] * 3
    logits = probe.score(QUESTION, ["cat"], image, keep="logits").tables[0].logits.astype(np.float64)
    softmax = np.exp(logits - logits.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    assert scores.mass == pytest.approx(softmax[np.arange(len(logits)), scores.tables[0].ids].prod(), rel=1e-4)


def test_a_spelling_that_begins_with_another_counts_once():
    """The event "begins with 5" holds "begins with 5, 6"; the same tokens twice are one spelling."""
    scores = scores_of({"no": (5,), "no way": (5, 6), "No": (5,), "yes": (7,)})
    found = grouped({"no": ["no", "no way", "No"], "yes": ["yes"]}, scores)
    assert found.members == [[0], [3]]
    assert set(found.left_out) == {"no way", "No"}
    np.testing.assert_allclose(found.logprobs, scores.logprobs[[0, 3]])
    assert found.tables[0] is scores.tables[0]


@pytest.mark.parametrize(
    "paths", [{"no": (5,), "nothing": (5,)}, {"no": (5,), "nothing": (5, 6)}, {"no": (5, 6), "nothing": (5,)}]
)
def test_answers_that_collide_are_an_error(paths):
    scores = scores_of(paths)
    with pytest.raises(MessageError, match=r"'no(thing)?' and 'no(thing)?' collide"):
        grouped({"no": ["no"], "nothing": ["nothing"]}, scores)


def test_collision_through_a_spelling_that_is_left_out():
    scores = scores_of({"a": (5,), "b": (5, 6), "c": (5, 6, 7)})
    with pytest.raises(MessageError, match="collide"):
        grouped({"one": ["a", "b"], "two": ["c"]}, scores)


def test_an_unknown_token_is_no_spelling():
    scores = scores_of({"yes": (5,), "Yes": (1,), "no": (6,)}, special="Yes")
    with pytest.raises(MessageError, match=r"'Yes' cannot be encoded.*'<unk>'"):
        grouped({"yes": ["yes", "Yes"], "no": ["no"]}, scores)
    found = grouped({"yes": ["yes", "Yes"], "no": ["no"]}, scores, strict=False)
    assert found.members == [[0], [2]]
    assert "<unk>" in found.left_out["Yes"]
    with pytest.raises(MessageError, match="'yes' has no spelling"):
        grouped({"yes": ["Yes"], "no": ["no"]}, scores_of({"Yes": (1,), "no": (6,)}, special="Yes"), strict=False)


def test_spellings_are_compared_at_one_place():
    """Where the tokenizer merges the end of the prompt with some spellings, those of the other place are left out."""
    start = {"yes": 19, "no": 19, " yes": 20}
    scores = scores_of({"yes": (5,), " yes": (6,), "no": (7,)}, start)
    found = grouped({"yes": ["yes", " yes"], "no": ["no"]}, scores)
    assert found.members == [[0], [2]]
    assert "merges" in found.left_out[" yes"]
    apart = scores_of({"yes": (5,), "no": (7,)}, {"yes": 19, "no": 20})
    with pytest.raises(MessageError, match="different positions"):
        grouped({"yes": ["yes"], "no": ["no"]}, apart)


def test_a_template_that_ends_in_a_space(probe_of):
    """llava_next: 'yes' merges with the space that the prompt ends in; the sum is of what begins there."""
    probe, image = probe_of("llava_next"), picture()
    found = probe.score(QUESTION, {"yes": ["yes", "Yes"], "no": ["no", "No"]}, image)
    starts = {int(found.spellings.tables[place].positions[0]) for places in found.members for place in places}
    assert len(starts) == 1
    counted = [np.exp(found.spellings.logprobs[places]).sum() for places in found.members]
    np.testing.assert_allclose(np.exp(found.logprobs), counted)


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ({}, "empty"),
        ({"yes": []}, "empty"),
        ({"yes": [""]}, "empty"),
        ({"yes": ["yes", "yes"]}, "repeats"),
        ({"yes": ["yes"], "no": ["no", "yes"]}, "'yes' is a spelling of both 'yes' and 'no'"),
        ({1: ["yes"]}, "name"),
        ({"yes": 3}, "list"),
        ({"yes": [3]}, "not a string"),
    ],
)
def test_bad_groups_before_anything_runs(probe_of, groups, says):
    probe = probe_of("llava")
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as count, pytest.raises(MessageError, match=says):
        probe.score(QUESTION, groups, picture())
    assert not count.positions


def test_saved_and_shown(probe_of, tmp_path):
    found = probe_of("llava").score(QUESTION, {**GROUPS, "<b>": "maybe"}, picture())
    again = vlmprobe.load_result(found.save(tmp_path / "groups"))
    assert type(again) is GroupedScores
    np.testing.assert_array_equal(again.logprobs, found.logprobs)
    assert again.candidates == found.candidates
    assert again.members == found.members
    assert again.left_out == found.left_out
    assert "&lt;b&gt;" in found._repr_html_()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(found)
    text = console.export_text()
    assert all(name in text for name in ("cat", "tiger", "none", "<b>"))
    frame = found.to_pandas()
    assert frame.answer.tolist() == ["cat"] * 3 + ["tiger"] * 2 + ["none", "<b>"]


def test_a_saved_file_whose_groups_do_not_fit_is_refused(probe_of, tmp_path):
    import json

    from vlmprobe.errors import ResultError

    path = probe_of("llava").score(QUESTION, GROUPS, picture()).save(tmp_path / "groups")
    document = json.loads((path / "result.json").read_text())
    document["groups"]["members"][0] = [99]
    (path / "result.json").write_text(json.dumps(document))
    with pytest.raises(ResultError, match="do not fit"):
        vlmprobe.load_result(path)
