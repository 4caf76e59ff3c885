"""``Probe.score_many``: forms of requests, errors, order. The numbers are tested with the engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from common import picture

import vlmprobe
from vlmprobe import Failure, Request
from vlmprobe.analysis.priors import from_batch
from vlmprobe.errors import GenerationOptionError, ImageError, MessageError
from vlmprobe.results.grouped import GroupedScores


@pytest.fixture
def probe(probe_of):
    return probe_of("internvl")


def test_each_request_has_its_own_candidates_or_all_have_the_same(probe):
    own = [
        Request("Is it?", picture(), id="a", candidates=["yes", "no"], carry={"gold": "yes"}),
        Request("Which?", candidates=["red", "blue", "a green one"]),
    ]
    first, second = probe.score_many(own, progress=False)
    assert (first.meta["id"], first.meta["gold"], first.candidates) == ("a", "yes", ["yes", "no"])
    assert second.candidates == ["red", "blue", "a green one"]
    np.testing.assert_allclose(second.logprobs, probe.score("Which?", second.candidates).logprobs, atol=1e-4)
    (same,) = probe.score_many([("Is it?", picture())], ["yes", "no"], progress=False)
    np.testing.assert_allclose(same.logprobs, first.logprobs, atol=1e-4)


def test_a_mapping_of_spellings(probe):
    asked = [("Is it?", picture()), "Is it?"]
    found = list(probe.score_many(asked, {"yes": ["yes", "Yes"], "no": ["no", "No"]}, progress=False))
    assert all(isinstance(each, GroupedScores) for each in found)
    single = probe.score("Is it?", {"yes": ["yes", "Yes"], "no": ["no", "No"]})
    np.testing.assert_allclose(found[1].logprobs, single.logprobs, atol=1e-4)


def test_a_table(probe):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(
        {"question": ["Is it?", "Was it?"], "candidates": [["a", "b"], ["c", "d"]], "label": [1, 2]}
    )
    found = list(probe.score_many(table, progress=False))
    assert [each.candidates for each in found] == [["a", "b"], ["c", "d"]]
    assert [each.meta["label"] for each in found] == [1, 2]


def test_errors_name_the_request(probe):
    with pytest.raises(MessageError, match="request 1: it has no candidates"):
        list(probe.score_many([Request("Is it?", candidates=["yes", "no"]), "Is it?"], progress=False))
    with pytest.raises(MessageError, match="request 0: its candidates would not be scored, but candidates="):
        list(probe.score_many([Request("Is it?", candidates=["yes", "no"])], ["a", "b"], progress=False))
    with pytest.raises(TypeError, match="max_new_tokens"):
        probe.score_many(["Is it?"], ["a", "b"], max_new_tokens=3)


def test_failures_keep_their_place(probe):
    asked = [("Is it?", picture()), ("Is it?", "none.png"), Request("Is it?", id="c")]
    found = list(probe.score_many(asked, ["yes", "no"], on_error="keep", progress=False))
    assert isinstance(found[1], Failure)
    assert isinstance(found[1].error, ImageError)
    assert found[2].meta["id"] == "c"
    with pytest.raises(ImageError, match="request 1"):
        list(probe.score_many(asked, ["yes", "no"], progress=False))


@pytest.mark.parametrize("size", [1, 2, "auto"])
def test_the_batch_changes_no_number(probe, size):
    asked = [(f"Is it {place}?", picture(place % 3)) for place in range(7)]
    found = list(probe.score_many(asked, ["yes", "no"], batch_size=size, progress=False))
    for (question, image), scores in zip(asked, found, strict=True):
        np.testing.assert_allclose(
            scores.logprobs, probe.score(question, ["yes", "no"], image=image).logprobs, atol=1e-4
        )


def test_scores_are_saved_and_shown(probe, tmp_path):
    (scores,) = probe.score_many([("Is it?", picture())], ["yes", "no"], progress=False)
    again = vlmprobe.load_result(scores.save(tmp_path / "scores"))
    np.testing.assert_array_equal(again.logprobs, scores.logprobs)


# -- sizes of batches ------------------------------------------------------------------------------


def sizes_of(probe, monkeypatch, most=None, error=None):
    """How many requests are scored together each time; more than ``most`` fail."""
    engine, found = type(probe.engine), []
    whole = engine.score_together

    def score_together(self, requests, options):
        found.append(len(requests))
        if most is not None and len(requests) > most:
            raise error
        return whole(self, requests, options)

    monkeypatch.setattr(engine, "score_together", score_together)
    return found


def test_questions_about_one_image_are_scored_four_times_as_many_together(probe, monkeypatch):
    sizes = sizes_of(probe, monkeypatch)
    asked = [(f"Is it {place}?", picture()) for place in range(40)] + [("Who?", picture(5))]
    assert len(list(probe.score_many(asked, ["yes"], progress=False))) == 41
    assert sizes == [40, 1]
    sizes.clear()
    asked = [("Is it?", picture(place // 2)) for place in range(40)]
    list(probe.score_many(asked, ["yes"], progress=False))
    assert sizes == [16, 16, 8]
    sizes.clear()
    list(probe.score_many([("Is it?", picture())] * 40, ["yes"], batch_size=8, progress=False))
    assert sizes == [8] * 5, "a size of the caller's is the size"


def test_a_batch_about_one_image_that_does_not_fit_into_memory(probe, monkeypatch):
    sizes = sizes_of(probe, monkeypatch, 8, torch.OutOfMemoryError("CUDA out of memory"))
    asked = [(f"Is it {place}?", picture()) for place in range(40)]
    found = list(probe.score_many(asked, ["yes"], progress=False))
    assert sizes == [40, 16, *[8] * 5]
    for (question, image), scores in zip(asked[::7], found[::7], strict=True):
        np.testing.assert_allclose(scores.logprobs, probe.score(question, ["yes"], image).logprobs, atol=1e-4)


def test_an_error_in_a_batch_about_one_image_is_that_of_its_question(probe, monkeypatch):
    sizes = sizes_of(probe, monkeypatch, 1, RuntimeError("of one"))
    asked = [(f"Is it {place}?", picture()) for place in range(20)]
    found = list(probe.score_many(asked, ["yes"], progress=False))
    assert sizes == [20, *[1] * 20]
    assert len(found) == 20


class TestLetters:
    """Options that are listed below each question with letters, as in ``ask``."""

    def test_each_answer_is_that_of_a_single_call(self, probe):
        asked = [("Which is it?", picture()), ("And which colour is the square?", picture()), ("Which?", None)]
        how = {"options": ["red", "blue"], "by": "letters", "none_of_these": True}
        found = list(probe.score_many(asked, **how, progress=False))
        for (question, image), each in zip(asked, found, strict=True):
            single = probe.ask(question, image, **how)
            assert each.candidates == single.candidates == ["red", "blue", "none of these"]
            assert each.spellings.candidates == single.spellings.candidates
            assert each.orders == single.orders == [[0, 1, 2]]
            np.testing.assert_allclose(each.logprobs, single.logprobs, atol=1e-4)

    def test_a_scale_with_letters(self, probe):
        (found,) = probe.score_many([("How sharp?", picture())], levels=["blurry", "sharp"], by="letters")
        single = probe.ask("How sharp?", picture(), levels=["blurry", "sharp"], by="letters")
        assert found.expected == pytest.approx(single.expected, abs=1e-4)

    def test_a_prior_is_taken_off_each(self, probe):
        asked = [("Which is it?", picture()), ("Which colour?", picture())]
        found = list(probe.score_many(asked, options=["red", "blue"], by="letters", progress=False))
        prior = from_batch(found)
        due = np.stack([each.probabilities for each in found]).mean(axis=0)
        np.testing.assert_allclose(prior.probabilities, due)
        np.testing.assert_allclose(
            prior(found[0]).probabilities, found[0].probabilities / due / (found[0].probabilities / due).sum()
        )

    def test_a_raw_prompt_fails_alone(self, probe):
        asked = [Request("Which?", raw_prompt=True), "Which?"]
        failure, answer = probe.score_many(asked, options=["red", "blue"], by="letters", on_error="keep")
        assert "raw prompt" in str(failure.error)
        assert answer.candidates == ["red", "blue"]

    @pytest.mark.parametrize("how", [{"by": "letters"}, {"none_of_these": True}])
    def test_without_options_there_is_nothing_to_list(self, probe, how):
        with pytest.raises(GenerationOptionError, match="is about options"):
            probe.score_many(["Is it?"], **how)
