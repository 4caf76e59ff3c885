"""What a picture is worth to each token, against forwards of the model's own and arithmetic written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from common import QUESTION, picture
from counting import counting
from PIL import Image
from reference import chat, columns, encode, extended, forward

from vlmprobe.analysis import image_variants
from vlmprobe.analysis.image_contrast import Contrast, contrast
from vlmprobe.errors import CapabilityError, MessageError, ResultError
from vlmprobe.results.table import TokenTable, empty_numbers

FEW = ("llava", "qwen2_vl", "mllama", "gemma3", "internvl")
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def own_columns(own, ids: list[int], *images: Image.Image) -> dict[str, np.ndarray]:
    """The columns of an answer under the model's own forward over prompt and answer."""
    inputs = encode(own, chat(QUESTION, *images))
    start = inputs["input_ids"].shape[1]
    rows = forward(own, extended(own, inputs, ids))[start - 1 : start - 1 + len(ids)]
    return columns(rows, np.array(ids))


@pytest.mark.parametrize("name", FEW)
def test_gain_and_entropy_drop_are_those_of_two_forwards(probe_of, own, name):
    probe, model, image = probe_of(name), own(name), picture()
    found = contrast(probe, QUESTION, image, against=["blank", "blur", "none"], **OPTIONS)
    ids = found.answer.ids.tolist()
    real = own_columns(model, ids, image)
    blurred = image_variants.blur(image)
    blank = image_variants.blank(image)
    others = [own_columns(model, ids, blank), own_columns(model, ids, blurred), own_columns(model, ids)]
    for place, other in enumerate(others):
        np.testing.assert_allclose(found.gain[place], real["logprobs"] - other["logprobs"], atol=1e-4)
        np.testing.assert_allclose(found.entropy_drop[place], other["entropy"] - real["entropy"], atol=1e-4)
    assert np.abs(found.gain).max() > 1e-2, "the picture changes nothing, so this compares nothing"
    # The mixture of the variants, by probabilities of whole beginnings rather than by the chain of sums.
    written = np.exp(np.cumsum([other["logprobs"] for other in others], axis=1)).mean(axis=0)
    before = np.concatenate([[1.0], written[:-1]])
    np.testing.assert_allclose(found.pmi, real["logprobs"] - np.log(written / before), atol=1e-4)
    assert found.pmi.sum() == pytest.approx(real["logprobs"].sum() - np.log(written[-1]), abs=1e-3)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl"])
def test_regions_are_the_cost_of_covering_them(probe_of, own, name):
    probe, model, image = probe_of(name), own(name), picture(1, 48, 42)
    found = contrast(probe, QUESTION, image, regions=(2, 3), cover=(0, 0, 0), **OPTIONS)
    assert found.regions.shape == (2, 3, 6)
    ids = found.answer.ids.tolist()
    real = own_columns(model, ids, image)["logprobs"]
    for row in range(2):
        for column in range(3):
            pixels = np.array(image)
            pixels[row * 21 : row * 21 + 21, column * 16 : column * 16 + 16] = 0
            covered = own_columns(model, ids, Image.fromarray(pixels))["logprobs"]
            np.testing.assert_allclose(found.regions[row, column], real - covered, atol=1e-4)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl"])
def test_each_picture_is_encoded_once_and_each_prompt_runs_once(probe_of, name):
    probe, image = probe_of(name), picture()
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as plain:
        probe.generate(QUESTION, image, **OPTIONS)
    one = sum(plain.pictures)
    assert one > 0
    assert plain.prefills == 1
    with counting(adapter.model, adapter.layers) as count:
        contrast(probe, QUESTION, image, against=["blank", "noise"], regions=(3, 4), **OPTIONS)
    assert sum(count.pictures) == (1 + 2 + 12) * one
    assert count.prefills == 1 + 2 + 12
    with counting(adapter.model, adapter.layers) as count:
        contrast(probe, QUESTION, image, answer="It is a cat.", against="blank")
    assert sum(count.pictures) == 2 * one
    assert count.prefills == 2
    assert len(count.positions) == 2, "a given answer needs no decoding"


@pytest.mark.parametrize("name", ["llava", "mllama", "gemma3"])
def test_given_answers_are_scored_as_they_stand(probe_of, name):
    probe, image = probe_of(name), picture()
    scores = probe.score(QUESTION, ["It is a cat."], image)
    result = probe.generate(QUESTION, image, **OPTIONS)
    text = contrast(probe, QUESTION, image, answer="It is a cat.")
    np.testing.assert_array_equal(text.answer.ids, scores.tables[0].ids)
    np.testing.assert_allclose(text.answer.logprobs, scores.tables[0].logprobs, atol=1e-4)
    ids = contrast(probe, QUESTION, image, answer=result.output.ids)
    whole = contrast(probe, QUESTION, image, answer=result)
    again = contrast(probe, QUESTION, image, **OPTIONS)
    np.testing.assert_array_equal(ids.gain, whole.gain)
    np.testing.assert_allclose(again.gain, whole.gain, atol=1e-4)


def test_the_same_picture_is_worth_nothing(probe_of):
    found = contrast(
        probe_of("llava"), QUESTION, picture(), against={"itself": picture(), "other": picture(2)}, **OPTIONS
    )
    assert found.names == ["itself", "other"]
    np.testing.assert_allclose(found.gain[0], 0, atol=1e-5)
    assert np.abs(found.gain[1]).max() > 1e-3


def test_one_of_several_pictures(probe_of, own):
    probe, first, second = probe_of("qwen2_vl"), picture(1), picture(3, 64, 40)
    found = contrast(probe, QUESTION, [first, second], which=1, **OPTIONS)
    ids = found.answer.ids.tolist()
    real = own_columns(own("qwen2_vl"), ids, first, second)
    other = own_columns(own("qwen2_vl"), ids, first, image_variants.blank(second))
    np.testing.assert_allclose(found.gain[0], real["logprobs"] - other["logprobs"], atol=1e-4)
    with pytest.raises(CapabilityError, match="no image 2"):
        contrast(probe, QUESTION, [first, second], which=2)
    with pytest.raises(CapabilityError, match="which="):
        contrast(probe, QUESTION, [first, second], regions=2)


def made(answer: list[float], others: list[list[float]], kinds: list[str] | None = None) -> Contrast:
    """A contrast of given log-probabilities."""

    def table(logprobs: list[float]) -> TokenTable:
        count = len(logprobs)
        numbers = {**empty_numbers(count, 1), "logprobs": np.array(logprobs, np.float32)}
        tokens = [f" t{place}" for place in range(count)]
        offsets = np.zeros((count, 2), np.int64)
        ids = np.arange(count)
        rest = {"positions": ids + 5, "offsets": offsets, "top_tokens": [[""]] * count}
        return TokenTable(ids=ids, tokens=tokens, kinds=kinds or ["text"] * count, **rest, **numbers)

    return Contrast(table(answer), [f"v{place}" for place in range(len(others))], [table(each) for each in others])


def test_unsupported_are_free_tokens_that_gain_nothing():
    log = np.log
    found = made(
        [log(0.9), log(0.5), log(0.99), log(0.6), log(0.4)],
        [[log(0.1), log(0.5), log(0.98), log(0.8), log(0.1)]],
        ["text", "text", "text", "text", "special"],
    )
    assert found.unsupported().tolist() == [1, 3]  # 2 was decided by the words before it, 4 is an end token
    assert found.unsupported(decided=1.0).tolist() == [1, 2, 3]
    assert found.unsupported(below=-0.1).tolist() == [3]


def test_a_token_without_a_number_enters_nothing():
    nan = float("nan")
    found = made([-1.0, nan, -2.0], [[-3.0, nan, -2.5], [-4.0, nan, -6.0]])
    assert np.isnan(found.pmi).tolist() == [False, True, False]
    assert found.unsupported().tolist() == []
    written = np.logaddexp(-5.5, -10.0) - np.log(2)  # beginnings of two tokens that have numbers
    assert np.nansum(found.pmi) == pytest.approx(-3.0 - written, abs=1e-6)


def test_errors_name_the_remedy(probe_of):
    probe, image = probe_of("llava"), picture()
    with pytest.raises(CapabilityError, match="no image"):
        contrast(probe, QUESTION)
    with pytest.raises(MessageError, match="Did you mean blur"):
        contrast(probe, QUESTION, image, against="blurr")
    with pytest.raises(MessageError, match="twice"):
        contrast(probe, QUESTION, image, against=["blank", "blank"])
    with pytest.raises(MessageError, match="does not fit"):
        contrast(probe, QUESTION, image, regions=(400, 2))
    with pytest.raises(MessageError, match="cover must be"):
        contrast(probe, QUESTION, image, regions=2, cover="black")
    with pytest.raises(MessageError, match="max_new_tokens would do nothing"):
        contrast(probe, QUESTION, image, answer="yes", max_new_tokens=3)
    with pytest.raises(MessageError, match="another question"):
        contrast(probe, "What is this?", image, answer=probe.generate(QUESTION, image, **OPTIONS))
    with pytest.raises(MessageError, match="no tokens"):
        contrast(probe, QUESTION, image, answer=[])
    with pytest.raises(ResultError, match="regions="):
        contrast(probe, QUESTION, image, **OPTIONS).plot_regions()


def test_an_engine_that_scores_no_given_answer_is_refused(probe_of):
    from dataclasses import replace

    class Server:
        def check(self, conversations, options): ...

    with pytest.raises(CapabilityError, match=r"Server.*vlmprobe\.load"):
        contrast(replace(probe_of("llava"), engine=Server()), QUESTION, picture())


def test_a_model_that_needs_a_picture_refuses_none(probe_of):
    with pytest.raises(CapabilityError):
        contrast(probe_of("paligemma"), QUESTION, picture(), against="none", **OPTIONS)


def test_variants_of_a_picture():
    image = picture(1, 60, 40)
    assert all(make(image).size == image.size for make in image_variants.VARIANTS.values())
    blank = np.array(image_variants.blank(image))
    assert (blank == blank[0, 0]).all()
    np.testing.assert_allclose(blank[0, 0], np.array(image).reshape(-1, 3).mean(axis=0), atol=0.5)
    assert (np.array(image_variants.blank(image, (1, 2, 3)))[5, 5] == (1, 2, 3)).all()
    assert np.array(image_variants.blur(image)).std() < np.array(image).std()
    assert image_variants.variant(image, "none") is None
    box = image_variants.covered(image, (10, 5, 30, 20), (9, 9, 9))
    changed = (np.array(box) != np.array(image)).any(axis=-1)
    inside = np.zeros((40, 60), bool)
    inside[5:20, 10:30] = True
    assert not (changed & ~inside).any()
    assert (np.array(box)[inside] == 9).all()
    found = list(image_variants.cells((60, 40), (3, 7)))
    covered = np.zeros((40, 60), int)
    for _, _, (left, upper, right, lower) in found:
        covered[upper:lower, left:right] += 1
    assert len(found) == 21
    assert (covered == 1).all(), "the cells tile the picture"
    with pytest.raises(MessageError, match="does not lie"):
        image_variants.covered(image, (0, 0, 61, 10))


def test_diffusion_noise_follows_the_schedule_of_the_paper():
    """Against the recursion x_t = sqrt(1 - beta_t) x_(t-1) + sqrt(beta_t) e, by its moments."""
    betas = torch.sigmoid(torch.linspace(-6, 6, 1000, dtype=torch.float64)) * (0.5e-2 - 1e-5) + 1e-5
    mean, variance = 1.0, 0.0
    for beta in betas[:501]:
        mean, variance = mean * float(torch.sqrt(1 - beta)), variance * float(1 - beta) + float(beta)
    grey = Image.new("RGB", (400, 300), (148, 148, 148))
    noisy = np.array(image_variants.diffused(grey, 500), dtype=np.float64) / 127.5 - 1
    level = 148 / 127.5 - 1
    low, middle, high = np.quantile(noisy, [0.158655, 0.5, 0.841345])  # of what a picture can show: within -1 .. 1
    assert middle == pytest.approx(mean * level, abs=0.01)
    assert (middle - low, high - middle) == pytest.approx((np.sqrt(variance),) * 2, abs=0.01)
    assert (np.array(image_variants.diffused(grey, 500)) == np.array(image_variants.diffused(grey, 500))).all()


@pytest.mark.parametrize("style", ["default", "dark_background", "grayscale"])
def test_plots_return_axes_and_take_the_colours_of_the_style(probe_of, style):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    found = contrast(probe_of("llava"), QUESTION, picture(), against=["blank", "blur"], regions=(2, 3), **OPTIONS)
    with pyplot.style.context(style):
        ax = found.plot()
        assert len(ax.get_xticklabels()) == 6
        heat = found.plot_regions(0)
        assert heat.get_title()
        _, mine = pyplot.subplots()
        assert found.plot_regions(slice(0, 3), mine, limit=2.0) is mine
        ink = pyplot.rcParams["text.color"]
        assert ax.xaxis.label.get_color() == ink == heat.title.get_color()
        with pytest.raises(ResultError, match="no token 99"):
            found.plot_regions(99)
        for each in (ax, heat, mine):
            pyplot.close(each.figure)


def test_table_for_pandas(probe_of):
    pytest.importorskip("pandas")
    found = contrast(probe_of("llava"), QUESTION, picture(), against=["blank", "none"], **OPTIONS)
    frame = found.to_pandas()
    np.testing.assert_allclose(frame["gain none"], found.gain[1])
    assert frame["unsupported"].sum() == len(found.unsupported())
