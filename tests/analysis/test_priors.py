"""Priors: found again where they are known, by the authors' formulas; taken off, answers are as right as without."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from render_cases import scores

import vlmprobe
from vlmprobe import Failure
from vlmprobe.analysis import calibration, conformal, gating, priors
from vlmprobe.analysis.confidences import CalibrationError
from vlmprobe.demo import sample_images
from vlmprobe.errors import CapabilityError, ImageError, MessageError, VlmprobeWarning
from vlmprobe.inputs.images import load_image

mpl.use("Agg")

NAMES = ["A", "B", "C", "D"]
PRIOR = np.array([0.7, 0.2, 0.07, 0.03])
EVEN = np.full(4, 0.25)
FAILED = Failure(ImageError("no such file"), "What?", None, 1)


def listed(probabilities, names=NAMES, **meta):
    return priors.Adjusted(list(names), np.asarray(probabilities, float), np.zeros(4), np.zeros(4), meta)


def normal(values):
    return values / values.sum(axis=-1, keepdims=True)


def world(seed, count, prior=PRIOR, *, noise=0.0):
    """Contents that are calibrated and equally often right, as a model with a prior says them in all cyclic orders.

    Returns content [K, G], the right one [K], and what is observed [K, R, G] at each ID.
    """
    random = np.random.default_rng(seed)
    content = normal(np.exp(1.5 * random.normal(size=(count, 4))))
    right = (content.cumsum(axis=1) < random.random((count, 1))).sum(axis=1).clip(max=3)
    stands = (np.arange(4)[:, None] + np.arange(4)) % 4  # the option at each ID
    observed = prior * content[:, stands] * np.exp(noise * random.normal(size=(count, 4, 4)))
    return content, right, normal(observed)


def test_contextual_calibration_is_that_of_its_authors():
    """W = diag(p_cf)^-1 of the mean, normalised p_cf, times the normalised label probabilities; the greatest wins."""
    random = np.random.default_rng(0)
    blanks = random.dirichlet(np.ones(4), 3)
    prior = priors.from_blanks([listed(each) for each in blanks])
    p_cf = np.mean(blanks, axis=0) / np.sum(np.mean(blanks, axis=0))
    np.testing.assert_allclose(prior.probabilities, p_cf)
    assert (prior.answers, prior.source) == (3, "contextual calibration")
    weights = np.linalg.inv(np.identity(4) * p_cf)
    for p in random.dirichlet(np.ones(4), 50):
        theirs = weights @ p
        found = prior(listed(p))
        assert found.best == NAMES[int(theirs.argmax())]
        np.testing.assert_allclose(found.probabilities, theirs / theirs.sum())
        np.testing.assert_array_equal(found.before, p)


def test_the_prior_of_a_batch_is_its_mean():
    batch = np.random.default_rng(1).dirichlet(np.ones(4), 40)
    prior = priors.from_batch([listed(each) for each in batch])
    np.testing.assert_allclose(prior.probabilities, batch.mean(axis=0))
    # Their rule: log p - log of the mean.
    log = np.log(batch) - np.log(batch.mean(axis=0))
    assert [prior(listed(each)).best for each in batch] == [NAMES[place] for place in log.argmax(axis=1)]


def test_pride_is_that_of_its_authors():
    """Per question the softmax of the mean log-probability over orders; over questions their mean."""
    _, _, observed = world(2, 7, noise=0.3)
    each = np.exp(np.log(observed + 1e-10).mean(axis=1))
    prior = priors.from_orders(observed)
    np.testing.assert_allclose(prior.probabilities, normal(each).mean(axis=0), rtol=1e-6)
    assert (prior.candidates, prior.answers, prior.source) == (NAMES, 7, "PriDe")
    np.testing.assert_allclose(priors.from_orders(observed[0]).probabilities, normal(each[0]), rtol=1e-6)
    np.testing.assert_allclose(priors.from_orders(5 * observed).probabilities, prior.probabilities)  # of any mass
    assert priors.from_orders(observed, ["i", "ii", "iii", "iv"]).candidates == ["i", "ii", "iii", "iv"]


def test_pride_finds_a_known_prior_again_and_its_error_shrinks():
    exact = priors.from_orders(world(3, 1)[2])
    np.testing.assert_allclose(exact.probabilities, PRIOR, rtol=1e-9)  # one question, where the model is as supposed
    errors = {}
    for count in (2, 32, 512):
        found = [priors.from_orders(world(seed, count, noise=1.0)[2]).probabilities for seed in range(20)]
        errors[count] = np.mean([np.abs(each - PRIOR).sum() for each in found])
    assert errors[32] < errors[2] / 2
    assert errors[512] < errors[32]
    assert errors[512] < 0.05


def test_the_prior_of_a_batch_comes_nearer_with_its_size():
    whole = normal(PRIOR * world(99, 200_000)[0]).mean(axis=0)  # of all questions

    def distance(count, seed):
        first = world(seed, count)[2][:, 0]  # as asked once
        return np.abs(priors.from_batch([listed(each) for each in first]).probabilities - whole).sum()

    few, many = (np.mean([distance(count, seed) for seed in range(10)]) for count in (20, 2000))
    assert many < few / 4


def accuracy(probabilities, right):
    return float((probabilities.argmax(axis=1) == right).mean())


def test_answers_are_as_right_as_without_the_prior():
    """From well below, asked once each, to the oracle that knows the contents."""
    content, right, observed = world(4, 4000)
    once, oracle = observed[:, 0], accuracy(content, right)
    assert accuracy(once, right) < oracle - 0.1
    pride = priors.from_orders(observed[:20])
    np.testing.assert_allclose(priors.taken_off(once, pride.probabilities), content, rtol=1e-6)
    assert accuracy(priors.taken_off(once, pride.probabilities), right) == oracle
    batch = priors.from_batch([listed(each) for each in once])
    assert accuracy(priors.taken_off(once, batch.probabilities), right) > oracle - 0.03
    assert accuracy(priors.over_orders(observed), right) > accuracy(once, right) + 0.08


def test_a_noisy_model_gains_too_and_with_more_questions_more():
    _, right, observed = world(5, 4000, noise=0.5)
    once, best = observed[:, 0], accuracy(normal(observed[:, 0] / PRIOR), right)
    gains = [accuracy(priors.taken_off(once, priors.from_orders(observed[:count]).probabilities), right)
             for count in (1, 200)]  # fmt: skip
    assert accuracy(once, right) < best - 0.1
    assert gains[1] == pytest.approx(best, abs=0.01)
    assert gains[0] > accuracy(once, right)


def test_where_there_is_no_prior_nothing_changes():
    content, _, observed = world(6, 3000, prior=EVEN)
    np.testing.assert_allclose(priors.from_orders(observed).probabilities, EVEN, rtol=1e-9)
    prior = priors.from_blanks([listed(EVEN)] * 2)
    for p in observed[:20, 0]:
        np.testing.assert_allclose(prior(listed(p)).probabilities, p)
    batch = priors.from_batch([listed(each) for each in observed[:, 0]])
    np.testing.assert_allclose(batch.probabilities, EVEN, atol=0.02)
    np.testing.assert_allclose(priors.over_orders(observed), content)


def test_a_batch_with_one_answer_right_more_often_makes_a_prior_of_a_fact():
    """The limit that the page names."""
    content, right, _ = world(7, 4000)
    most = np.flatnonzero((right == 0) | (np.arange(4000) % 8 == 0))
    prior = priors.from_batch([listed(each) for each in content[most]])
    assert prior.probabilities[0] > 0.4
    assert accuracy(priors.taken_off(content[most], prior.probabilities), right[most]) < accuracy(
        content[most], right[most]
    )


def test_options_are_brought_together_by_what_stands_where():
    p = np.array([[0.7, 0.2, 0.1], [0.3, 0.1, 0.6], [0.2, 0.5, 0.3]])
    # Orders (0, 1, 2), (1, 2, 0), (2, 0, 1): option 0 stands at ID 0, then 2, then 1.
    np.testing.assert_allclose(priors.over_orders(p), [(0.7 + 0.6 + 0.5) / 3, (0.2 + 0.3 + 0.3) / 3, 0.2 / 1.5])
    np.testing.assert_allclose(priors.over_orders(p[:2], [(0, 1, 2), (2, 1, 0)]), [0.65, 0.15, 0.2])
    np.testing.assert_allclose(priors.over_orders(np.stack([p, p]))[1], priors.over_orders(p))
    with pytest.raises(CalibrationError, match="3 cyclic orders, not 2"):
        priors.over_orders(p[:2])
    with pytest.raises(CalibrationError, match="2 permutations"):
        priors.over_orders(p[:2], [(0, 1, 2), (1, 1, 2)])


def test_candidates_are_told_by_name():
    prior = priors.from_blanks([listed(PRIOR), listed(PRIOR[::-1], NAMES[::-1])])
    np.testing.assert_allclose(prior.probabilities, PRIOR)
    turned = prior(listed(PRIOR[[1, 0, 3, 2]], ["B", "A", "D", "C"], id=5))
    assert turned.candidates == ["B", "A", "D", "C"]
    np.testing.assert_allclose(turned.probabilities, EVEN)
    np.testing.assert_allclose(turned.prior, PRIOR[[1, 0, 3, 2]])
    assert turned.meta == {"id": 5}
    for names in (["A", "B", "C", "E"], ["A", "A", "B", "C"]):
        with pytest.raises(CalibrationError, match="the answer has other candidates"):
            prior(listed(EVEN, names))
    with pytest.raises(CalibrationError, match="answer 1 has other candidates"):
        priors.from_batch([listed(EVEN), listed(EVEN, ["a", "b", "c", "d"])])


def test_what_is_no_distribution_is_refused():
    with pytest.raises(CalibrationError, match="at least one answer"):
        priors.from_batch([])
    with pytest.raises(CalibrationError, match="answer 1 has no probability for 'B'"):
        priors.from_blanks([listed(EVEN), listed([0.5, np.nan, 0.5, 0])])
    with pytest.raises(CalibrationError, match="gives candidate 2 no probability"):
        priors.taken_off(EVEN, [0.5, 0.5, 0, 0])
    for bad in (EVEN, np.full((1, 4, 4), np.nan), -np.ones((4, 4)), np.zeros((4, 4)), np.zeros((0, 4, 4))):
        with pytest.raises(CalibrationError):
            priors.from_orders(bad)
    with pytest.raises(CalibrationError, match="4 IDs, and 2 names"):
        priors.from_orders(np.full((4, 4), 0.25), ["A", "B"])
    with pytest.warns(VlmprobeWarning, match="^1 failed request"):
        assert priors.from_batch([listed(PRIOR), FAILED]).answers == 1


def test_an_answer_without_its_prior_goes_where_scores_go():
    content, right, observed = world(8, 300)
    prior = priors.from_orders(observed)
    answers = [prior(listed(each)) for each in observed[:, 0]]
    gold = [NAMES[each] for each in right]
    np.testing.assert_allclose(calibration.confidences(answers), content.max(axis=1))
    np.testing.assert_array_equal(calibration.correctness(answers, gold), content.argmax(axis=1) == right)
    assert gating.gate(answers[0], 0.01).confidence == pytest.approx(content[0].max())
    sets = conformal.prediction_sets(answers, gold)
    assert answers[0].best in sets(answers[0])
    real = scores({"no": [0.2], "yes": [0.6]}, question="Is it?")
    found = priors.from_blanks([scores({"no": [0.3], "yes": [0.1]})])(real)
    assert found.best == "yes"
    assert found.probabilities == pytest.approx([0.2 / 3 / (0.2 / 3 + 0.6), 0.6 / (0.2 / 3 + 0.6)])
    assert found.meta is real.meta


def test_they_are_shown():
    prior = priors.from_blanks([listed(PRIOR)])
    assert repr(prior) == "Prior('A' 0.700, 'B' 0.200, 'C' 0.070, ...; contextual calibration, 1 answers)"
    found = prior(listed([0.4, 0.3, 0.2, 0.1]))
    assert repr(found).startswith("Adjusted('D' 0.4")
    assert found.to_pandas().shape == (4, 4)
    assert prior.to_pandas()["prior"].tolist() == PRIOR.tolist()
    ax = found.plot()
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], np.sort(found.probabilities)[::-1])
    np.testing.assert_allclose(ax.get_lines()[0].get_xdata(), found.before[np.argsort(-found.probabilities)])
    np.testing.assert_allclose(prior.plot().get_lines()[0].get_xdata(), EVEN)


@pytest.fixture(scope="module")
def demo():
    return vlmprobe.load("demo", device="cpu", dtype="float32")


def test_blank_answers_are_scores_of_a_grey_image_and_of_none(demo):
    image = load_image(sample_images()[0])
    question, said = "Are the two digits the same?", ["yes", "no"]
    grey = Image.new("RGB", image.size, (128, 128, 128))
    found = priors.blank_answers(demo, question, said, image, against=("grey", "none", grey))
    np.testing.assert_allclose(found[0].logprobs, demo.score(question, said, grey).logprobs, atol=1e-6)
    np.testing.assert_allclose(found[1].logprobs, demo.score(question, said).logprobs, atol=1e-6)
    np.testing.assert_array_equal(found[2].logprobs, found[0].logprobs)
    assert priors.from_blanks(found).answers == 3
    with demo.session(image) as asked:
        inside = priors.blank_answers(asked, question, said, against=("grey", "none"))
    for one, other in zip(inside, found, strict=False):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_blank_answers_leave_every_image_of_a_conversation_blank(demo):
    one, two = (load_image(each) for each in sample_images()[:2])
    said = {"yes": ["yes", "Yes"], "no": ["no"]}
    parts = [{"type": "image", "image": one}, {"type": "image", "image": two}, {"type": "text", "text": "Same?"}]
    found = priors.blank_answers(demo, [{"role": "user", "content": parts}], said)[0]
    greys = [Image.new("RGB", each.size, (128, 128, 128)) for each in (one, two)]
    np.testing.assert_allclose(found.logprobs, demo.score("Same?", said, greys).logprobs, atol=1e-6)
    with pytest.raises(CapabilityError, match="no image to leave blank"):
        priors.blank_answers(demo, "Same?", said)
    with pytest.raises(MessageError, match="no variant 'gray'"):
        priors.blank_answers(demo, "Same?", said, one, against="gray")
