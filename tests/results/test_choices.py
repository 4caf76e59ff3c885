"""What else could have been said: the table of the likeliest tokens of every step, against the full rows."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from analysis_cases import random_result, random_table
from common import QUESTION, picture
from rich.console import Console

from vlmprobe.errors import ResultError

OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def test_choices_are_the_sorted_rows_of_logits():
    table = random_table(3, 9, blank=(0, 4))
    choices = table.top(4)
    expected = []
    for step in range(9):
        if step in (0, 4):
            continue
        row = table.logits[step].astype(np.float64)
        logprobs = row - np.logaddexp.reduce(row)
        order = np.argsort(-row, kind="stable")
        said = int(table.ids[step])
        listed = order[:4].tolist() + ([said] if said not in order[:4] else [])
        for each in listed:
            expected.append((step, int(np.flatnonzero(order == each)[0]), each, logprobs[each], each == said))
    found = list(zip(choices.steps, choices.ranks, choices.ids, choices.logprobs, choices.chosen, strict=True))
    assert [each[:3] for each in found] == [each[:3] for each in expected]
    np.testing.assert_allclose([each[3] for each in found], [each[3] for each in expected], atol=1e-5)
    assert [bool(each[4]) for each in found] == [each[4] for each in expected]
    assert np.bincount(choices.steps[choices.chosen], minlength=9).tolist() == [0, 1, 1, 1, 0, 1, 1, 1, 1]
    np.testing.assert_allclose(choices.probabilities, np.exp(choices.logprobs))


def test_of_a_result_the_answer_and_of_the_prompt_its_scored_rows(probe_of):
    result = probe_of("llava").generate(QUESTION, picture(), keep="logits", **OPTIONS)
    choices = result.top(3)
    assert choices.ids[choices.chosen].tolist() == result.output.ids.tolist()
    assert (choices.ranks[choices.chosen] == 0).all()  # greedy
    first = choices.at(0)
    assert [name for name, _ in first] == result.output.top_tokens[0][:3]
    assert [share for _, share in first] == pytest.approx(np.exp(result.output.top_logprobs[0, :3]).tolist())
    prompt = result.prompt.top(2)
    assert sorted(set(prompt.steps.tolist())) == np.flatnonzero(result.prompt.scored).tolist()
    assert prompt.ids[prompt.chosen].tolist() == result.prompt.ids[result.prompt.scored].tolist()


def test_pandas():
    frame = random_table(1, 5).top(2).to_pandas()
    assert list(frame.columns) == ["step", "rank", "id", "token", "logprob", "probability", "chosen"]
    assert (frame.groupby("step").chosen.sum() == 1).all()


def test_it_is_shown_as_text_and_html_that_interprets_nothing():
    table = random_table(2, 4, tokens=["<script>", "a\x1b[31m", "[bold]", "b"])
    choices = table.top(2)
    html = choices._repr_html_()
    assert "<script>" not in html.split("</style>")[1]
    assert "&lt;script&gt;" in html
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(choices)
    text = console.export_text()
    assert "<script>" in text
    assert "[bold]" in text
    assert "\x1b" not in text
    assert text.count("%") == 4 * 2
    assert "steps" in repr(choices)


def test_many_steps_are_cut_and_said_so():
    choices = random_table(2, 90).top(1)
    assert "30 steps are not shown" in choices._repr_html_()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(choices)
    assert "30 steps more" in console.export_text()


@pytest.mark.parametrize("k", [0, 6, True, "3", 2.5])
def test_more_than_is_kept_is_an_error(k):
    with pytest.raises(ResultError, match=r"from 1 to 5.*alternatives="):
        random_table(0, 3).top(k)
    with pytest.raises(ResultError, match="not a step"):
        random_result(0).prompt.top(1).at(0)


def test_nothing_scored_is_an_empty_table():
    choices = random_table(0, 2, blank=(0, 1)).top(3)
    assert len(choices) == 0
    assert "0 steps" in repr(choices)
    assert choices._repr_html_()


def test_of_a_server_without_ids_and_with_fewer_alternatives():
    """The token that was said is told by its text; alternatives that the wire did not bring are left out."""
    table = random_table(5, 4, ids=[0, 1, 2, 3])
    tops = table.top_logprobs.copy()
    tops[2, 2:] = np.nan
    tops[3] = np.nan
    said = table.top_tokens[0][1]
    bare = replace(
        table,
        ids=None,
        tokens=[said, *table.tokens[1:]],
        top_ids=np.full_like(table.top_ids, -1),
        top_logprobs=tops,
        logits=None,
    )
    choices = bare.top(3)
    assert choices.chosen[choices.steps == 0].tolist() == [False, True, False]
    assert (choices.ids == -1).all()
    assert (choices.steps == 2).sum() == 3  # two alternatives, and the token that was said
    assert 3 not in choices.steps
    assert choices._repr_html_()
