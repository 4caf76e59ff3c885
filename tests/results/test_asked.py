"""Typed answers: what they say and decide, how they look, and that a file keeps them. Numbers written by hand."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from render_cases import make_table, scores
from rich.console import Console

import vlmprobe
from vlmprobe.errors import MessageError
from vlmprobe.results.asked import Answers, Choice, Rating
from vlmprobe.results.first_token import cause_of
from vlmprobe.results.grouped import YesNo, grouped


def answer(kind, shares: dict[str, float], **more):
    found = scores({name: [share] for name, share in shares.items()}, question="Is it?")
    return grouped({name: [name] for name in shares}, found, kind=kind, **more)


def rating(shares: dict[str, float], values) -> Rating:
    return answer(Rating, shares, values=np.array(values, dtype=float))


def printed(shown) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def test_yes_or_no_as_a_person_reads_it():
    yes = answer(YesNo, {"yes": 0.837, "no": 0.063})
    assert str(yes) == "yes 0.93"
    assert repr(yes) == "YesNo(yes 0.93)"
    assert yes.says_yes
    assert str(answer(YesNo, {"yes": 0.0004, "no": 0.999})) == "no >0.99"
    assert str(answer(YesNo, {"yes": 0.004, "no": 0.001})) == "yes 0.80 (mass 0.005)"


@pytest.mark.parametrize(
    ("threshold", "said"), [(0.5, "yes"), (0.9, "yes"), (0.95, "unsure"), (SimpleNamespace(value=0.92), "yes")]
)
def test_a_threshold_decides(threshold, said):
    assert answer(YesNo, {"yes": 0.837, "no": 0.063}).at(threshold) == said
    assert answer(YesNo, {"yes": 0.063, "no": 0.837}).at(threshold) == {"yes": "no"}.get(said, said)
    assert answer(Choice, {"red": 0.837, "blue": 0.063}).at(threshold) == {"yes": "red"}.get(said, said)


@pytest.mark.parametrize(
    ("threshold", "error"),
    [(0, ValueError), (1.01, ValueError), ("0.9", TypeError), (None, TypeError), (True, TypeError)],
)
def test_thresholds_are_probabilities(threshold, error):
    with pytest.raises(error, match=r"such as 0\.9"):
        answer(YesNo, {"yes": 0.8, "no": 0.1}).at(threshold)


@pytest.mark.parametrize("kind", [YesNo, Choice])
def test_an_answer_is_no_bool(kind):
    with pytest.raises(TypeError, match=r"answer\.at\(0\.9\)") as told:
        bool(answer(kind, {"yes": 0.8, "no": 0.1}))
    assert ("says_yes" in str(told.value)) == (kind is YesNo)


def test_a_rating_as_a_person_reads_it():
    """Mean 0.1·2 + 0.6·3 + 0.3·4 = 3.2, variance 0.1·1.44 + 0.6·0.04 + 0.3·0.64 = 0.36."""
    shares = {"1": 1e-9, "2": 0.1, "3": 0.6, "4": 0.3, "5": 1e-9}
    found = rating(shares, [1, 2, 3, 4, 5])
    assert str(found) == "3.2 of 5 (± 0.6)"
    assert found.expected == pytest.approx(3.2)
    assert found.std == pytest.approx(0.6)
    assert found.mode == 3
    named = rating(dict(zip("abcde", shares.values(), strict=True)), [1, 2, 3, 4, 5])
    assert str(named) == "c, 3.2 of 5 (± 0.6)"
    assert str(rating({"-2": 0.5, "2": 0.5}, [-2, 2])) == "0.0 between -2 and 2 (± 2.0)"
    assert str(rating({"0": 0.5, "100": 0.5}, [0, 100])) == "50 of 100 (± 50)"


def test_orders_are_averaged_with_their_spread():
    by_order = np.log([[0.6, 0.2], [0.1, 0.1]])
    found = replace(answer(Choice, {"red": 0.6, "blue": 0.2}), orders=[[0, 1], [1, 0]], by_order=by_order)
    np.testing.assert_allclose(found.probabilities, [0.625, 0.375])  # of 0.75, 0.25 and 0.5, 0.5
    assert found.mass == pytest.approx(0.5)  # of 0.8 and 0.2
    np.testing.assert_allclose(found.spread, [0.25, 0.25])
    assert found.note == "Averaged over 2 orders of the options, between which a probability varies by up to 0.25."
    assert found.to_pandas().spread.tolist() == pytest.approx([0.25, 0.25])


def test_the_same_tokens_cannot_be_two_options():
    found = scores({"red": [0.5], "Red": [0.2]})
    same = replace(found, tables=[found.tables[0], found.tables[0]])
    with pytest.raises(MessageError, match="'Red' and 'red' collide"):
        grouped({"red": ["red"], "Red": ["Red"]}, same, kind=Choice, longest=True)


@pytest.mark.parametrize(
    ("token", "cause"),
    [
        ("<think>", "thought"),
        ("◁think▷", "thought"),
        ("\n", "white space"),
        ("▁", "white space"),
        ('"', "quotation mark"),
        ("`", "quotation mark"),
        ("**", "mark"),
        (" **", "mark"),
        ("(", "mark"),
        ("The", "sentence"),
        (" It", "sentence"),
        ("maybe", None),
        ("Theodor", None),
    ],
)
def test_causes_of_the_first_token_trap(token, cause):
    table = make_table([("yes", 0.01, [(token, 0.6), ("The", 0.11)])])
    assert cause_of(table) == (cause or "sentence")
    assert cause_of(make_table([("yes", 0.01, [(token, 0.6), ("The", 0.09)])])) == cause


def test_an_answer_that_holds_little_says_what_the_model_would_rather_say():
    found = scores({"yes": [0.01], "no": [0.002]})
    table = make_table([("yes", 0.01, [("**", 0.6), ("The", 0.2), ('"', 0.005)])])
    tables = [replace(table, ids=np.array([1])), replace(table, ids=np.array([2]), logprobs=np.log([0.002]))]
    little = grouped({"yes": ["yes"], "no": ["no"]}, replace(found, tables=tables), kind=YesNo)
    assert little.note.startswith(
        "Yes and no together hold 1.2% of what the model would say; it would rather begin with '**' (60.0%), 'The' "
        "(20.0%). It marks its answer: spell the answers with it"
    )
    assert little.note in " ".join(printed(little).split())
    assert "1.2% of what" in little._repr_html_()
    assert "**" in Answers({"a": little})._repr_html_()
    assert answer(YesNo, {"yes": 0.1, "no": 0.01}).note == ""


def several() -> Answers:
    orders = {"orders": [[0, 1], [1, 0]], "by_order": np.log([[0.6, 0.2], [0.1, 0.1]])}
    return Answers(
        {
            "person": answer(YesNo, {"yes": 0.837, "no": 0.063}),
            "<b>": replace(answer(Choice, {"red": 0.6, "blue": 0.2}), **orders),
            "sharp": rating({"poor": 0.3, "good": 0.6}, [1, 2]),
        }
    )


def test_several_answers_are_read_together():
    found = several()
    assert str(found).splitlines() == ["person: yes 0.93", "<b>: red 0.62", "sharp: good, 1.67 of 2 (± 0.47)"]
    assert found.at(0.65) == {"person": "yes", "<b>": "unsure", "sharp": "good"}
    frame = found.to_pandas()
    assert frame.kind.tolist() == ["YesNo", "Choice", "Rating"]
    assert frame.answer.tolist() == ["yes", "red", "good"]
    np.testing.assert_allclose(frame.expected, [np.nan, np.nan, 5 / 3], rtol=1e-6)
    assert "&lt;b&gt;" in found._repr_html_()
    assert ["person", "yes", "93.0%", "90.0%"] in [
        line.replace("━", "").replace("╸", "").split() for line in printed(found).splitlines()
    ]
    assert found.to_html().count("<article>") == 3
    assert found.to_dict()["sharp"]["expected"] == pytest.approx(5 / 3)
    assert "person" in found
    assert 3 not in found


@pytest.mark.parametrize("name", ["answers", "answers.safetensors"])
def test_a_file_keeps_answers(tmp_path, name):
    found = several()
    again = vlmprobe.load_result(found.save(tmp_path / name))
    assert type(again) is Answers
    assert str(again) == str(found)
    for key, each in found.items():
        assert type(again[key]) is type(each)
        np.testing.assert_array_equal(again[key].logprobs, each.logprobs)
        alone = vlmprobe.load_result(each.save(tmp_path / "alone.safetensors"))
        np.testing.assert_array_equal(alone.logprobs, each.logprobs)
        assert alone.note == each.note
    vlmprobe.save_results([found, found["person"]], tmp_path / "run")
    assert [str(each) for each in vlmprobe.load_results(tmp_path / "run")] == [str(found), "yes 0.93"]


def test_what_is_taken_off_a_shorter_option_is_kept_in_a_file(tmp_path):
    found = scores({"red": [0.6], "red car": [0.6, 0.25]})
    choice = grouped({"red": ["red"], "red car": ["red car"]}, found, kind=Choice, longest=True)
    np.testing.assert_allclose(np.exp(choice.logprobs), [0.45, 0.15], rtol=1e-6)
    again = vlmprobe.load_result(choice.save(tmp_path / "choice"))
    np.testing.assert_array_equal(again.logprobs, choice.logprobs)
    assert again.longer == choice.longer == [[1], []]


def test_answers_are_shown_with_what_they_say():
    shown = printed(rating({"poor": 0.3, "good": 0.6}, [1, 2]))
    assert "good, 1.67 of 2 (± 0.47)" in shown
    assert "per token" not in shown  # spellings of different lengths have no mean
    page = without_scripts(answer(YesNo, {"yes": 0.837, "no": 0.063}).to_html())
    assert "yes 0.93" in page
    assert "per token" not in page
    assert "per token" in without_scripts(scores({"yes": [0.5]}).to_html())


def without_scripts(page):
    """What a page shows: its scripts have words for every kind of result."""
    return re.sub("<script.*?</script>", "", page, flags=re.DOTALL)
