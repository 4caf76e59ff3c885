"""``Probe.ask``: probabilities against full forwards of the model and sums by hand, letters and orders, wrong input."""

from __future__ import annotations

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import wire_engines as wire
from common import picture
from counting import counting
from PIL import Image
from reference import chat, forward
from wire_server import WireServer

import vlmprobe
from vlmprobe.demo import checkpoint, sample_images
from vlmprobe.errors import GenerationOptionError, ImageError, MessageError, VlmprobeWarning
from vlmprobe.inputs import ahead
from vlmprobe.inputs.images import load_encoded
from vlmprobe.probe import ask
from vlmprobe.probe.question_kinds import INSTRUCTION
from vlmprobe.results.asked import Answers, Choice, Rating, YesNo
from vlmprobe.results.grouped import NO, YES

QUESTION = "Is there a cat?"
COLOURS = ["red", "blue", "green"]
FAMILIES = ["qwen2_vl", "internvl"]  # a sliced and a byte-level tokenizer


@pytest.fixture(autouse=True)
def no_warnings_of_random_models():
    """They hold nothing of any answer; the test of the warning turns it on again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VlmprobeWarning)
        yield


@pytest.fixture
def probe(probe_of):
    return probe_of("internvl")


def probability(own, question: str, answer: str, image=None) -> float:
    """Of an answer's tokens right after the prompt, by one forward of the model over both."""
    images = [] if image is None else [image]
    text = own.processor.apply_chat_template(chat(question, *images), add_generation_prompt=True, tokenize=False)
    read = [
        own.processor(text=each, images=images or None, return_tensors="pt", add_special_tokens=False)
        for each in (text, text + answer)
    ]
    start, ids = read[0]["input_ids"].shape[1], read[1]["input_ids"][0].numpy()
    assert ids[:start].tolist() == read[0]["input_ids"][0].tolist()
    rows = forward(own, read[1])[start - 1 : -1].astype(np.float64)
    softmax = np.exp(rows - rows.max(1, keepdims=True))
    softmax /= softmax.sum(1, keepdims=True)
    return float(softmax[np.arange(len(rows)), ids[start:]].prod())


def summed(own, question: str, spellings, image=None) -> float:
    """Of any of the spellings, none of which begins with another."""
    return sum(probability(own, question, each, image) for each in spellings)


def spelled(option: str) -> list[str]:
    return [f"{lead}{first(option[0])}{option[1:]}" for lead in ("", " ") for first in (str.lower, str.upper)]


# -- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_yes_or_no_is_the_sum_over_spellings(probe_of, own, name):
    answer = probe_of(name).ask(QUESTION, picture())
    assert isinstance(answer, YesNo)
    counted = [[answer.spellings.candidates[place] for place in places] for places in answer.members]
    assert set(counted[0]) <= set(YES)
    assert set(counted[1]) <= set(NO)
    yes, no = (summed(own(name), QUESTION, texts, picture()) for texts in counted)
    assert answer.probability == pytest.approx(yes / (yes + no), abs=1e-5)
    assert answer.mass == pytest.approx(yes + no, rel=1e-3)
    assert answer.margin == pytest.approx(probe_of(name).yes_no(QUESTION, picture()).margin, abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_choice_is_the_sum_over_spellings(probe_of, own, name):
    answer = probe_of(name).ask("Which colour?", picture(), options=COLOURS)
    assert isinstance(answer, Choice)
    assert answer.candidates == COLOURS
    by_hand = np.array([summed(own(name), "Which colour?", spelled(each), picture()) for each in COLOURS])
    np.testing.assert_allclose(answer.probabilities, by_hand / by_hand.sum(), atol=1e-5)
    assert answer.mass == pytest.approx(by_hand.sum(), rel=1e-3)
    assert answer.best == COLOURS[int(by_hand.argmax())]


@pytest.fixture(scope="module")
def demo():
    """The demo model as transformers loads it, nothing of vlmprobe around."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(checkpoint(), dtype="float32").eval()
    return SimpleNamespace(name="internvl", model=model, processor=AutoProcessor.from_pretrained(checkpoint()))


@pytest.mark.parametrize(
    "options",
    [["a blue", "a blue nine"], ["a blue nine", "a blue"], ["a", "a blue", "a blue nine on"], ["a", "a blue", "a red"]],
)
def test_what_begins_with_the_longer_option_is_not_the_shorter(demo, options):
    """Each: begins with it, and then goes on as none of the longer options."""
    scene, question = Image.open(sample_images()[0]).convert("RGB"), "Describe the picture."
    answer = vlmprobe.load("demo", device="cpu", dtype="float32").ask(question, scene, options=options)
    by_hand = dict.fromkeys(options, 0.0)
    for option in options:
        longer = [each for each in options if each.startswith(option) and each != option]
        longer = [each for each in longer if not any(each != other and each.startswith(other) for other in longer)]
        for lead, first in itertools.product(("", " "), (str.lower, str.upper)):
            text = f"{lead}{first(option[0])}{option[1:]}"
            here = probability(demo, question, text, scene)
            goes_on = [probability(demo, question, text + each[len(option) :], scene) / here for each in longer]
            by_hand[option] += here * (1 - sum(goes_on))
    assert max(by_hand.values()) > 0.5
    assert min(by_hand.values()) < 0.1
    np.testing.assert_allclose(np.exp(answer.logprobs), list(by_hand.values()), atol=1e-5)
    shortest = summed(demo, question, spelled(min(options, key=len)), scene)
    assert answer.mass == pytest.approx(shortest, rel=1e-4)  # together they are all that begins with it


def test_a_rating_is_a_mean_over_the_levels(probe, own):
    answer = probe.ask("How many?", levels=range(1, 11))
    assert isinstance(answer, Rating)
    assert answer.values.tolist() == list(range(1, 11))
    whole = [summed(own("internvl"), "How many?", [str(each), f" {each}"]) for each in range(1, 11)]
    shares = np.array([whole[0] - whole[9], *whole[1:]])  # 10 begins with 1
    shares /= shares.sum()
    assert answer.expected == pytest.approx(sum(shares * np.arange(1, 11)), abs=1e-4)
    variance = sum(shares * np.arange(1, 11) ** 2) - sum(shares * np.arange(1, 11)) ** 2
    assert answer.std == pytest.approx(variance**0.5, abs=1e-4)
    assert answer.mode == 1 + shares.argmax()


@pytest.mark.parametrize(
    ("levels", "values"),
    [
        (["blurry", "fair", "sharp"], [1, 2, 3]),
        (["0", "5", "10"], [0, 5, 10]),
        (range(5, 0, -1), [5, 4, 3, 2, 1]),
        ((0.5, 1, 1.5), [0.5, 1, 1.5]),
        (np.arange(3), [0, 1, 2]),
    ],
)
def test_levels_have_their_own_values_or_count_from_one(probe, levels, values):
    answer = probe.ask("How?", levels=levels)
    assert answer.values.tolist() == values
    assert answer.expected == pytest.approx((answer.probabilities * values).sum())


# -- letters and orders -------------------------------------------------------------------------------------


def listed(question: str, options: list[str]) -> str:
    lines = [f"{letter}. {option}" for letter, option in zip("ABCDEFGH", options, strict=False)]
    return "\n".join([question, *lines, "Answer with the option's letter from the given choices directly."])


def of_letters(own, question: str, options: list[str], image=None) -> np.ndarray:
    """Probability of the letter of each option, by the model's own forward."""
    asked = listed(question, options)
    return np.array([summed(own, asked, [letter, f" {letter}"], image) for letter in "ABCDEFGH"[: len(options)]])


def test_letters_are_listed_in_the_prompt(probe, own):
    answer = probe.ask("Which colour?", picture(), options=COLOURS, by="letters")
    assert answer.meta["question"] == listed("Which colour?", COLOURS)
    assert INSTRUCTION in answer.meta["question"]
    by_hand = of_letters(own("internvl"), "Which colour?", COLOURS, picture())
    np.testing.assert_allclose(np.exp(answer.logprobs), by_hand, rtol=1e-3)
    assert answer.candidates == COLOURS
    assert answer.spellings.candidates == ["A", " A", "B", " B", "C", " C"]
    assert np.isnan(answer.spread).all()


def test_all_orders_are_averaged(probe, own):
    answer = probe.ask("Which colour?", picture(), options=COLOURS, by="letters", rotate="all")
    shares, masses = [], []
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        found = of_letters(own("internvl"), "Which colour?", [COLOURS[each] for each in order], picture())
        masses.append(found.sum())
        shares.append((found / found.sum())[np.argsort(order)])
    assert answer.orders == [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    np.testing.assert_allclose(answer.probabilities, np.mean(shares, axis=0), atol=1e-5)
    assert answer.mass == pytest.approx(np.mean(masses), rel=1e-3)
    np.testing.assert_allclose(answer.spread, np.max(shares, axis=0) - np.min(shares, axis=0), atol=1e-5)
    assert "Averaged over 3 orders" in answer.note


def test_close_answers_alone_are_asked_again(probe, monkeypatch):
    once = probe.ask("Which?", options=COLOURS, by="letters")
    last, best = np.sort(once.probabilities)[-2:]
    monkeypatch.setattr(ask, "CLOSE", best - last - 1e-6)
    answer = probe.ask("Which?", options=COLOURS, by="letters", rotate="close")
    assert answer.orders == [[0, 1, 2]]
    np.testing.assert_allclose(answer.logprobs, once.logprobs, atol=1e-5)
    monkeypatch.setattr(ask, "CLOSE", best - last + 1e-6)
    answer = probe.ask("Which?", options=COLOURS, by="letters", rotate="close")
    whole = probe.ask("Which?", options=COLOURS, by="letters", rotate="all")
    assert answer.orders == whole.orders
    np.testing.assert_allclose(answer.logprobs, whole.logprobs, atol=1e-4)


def test_levels_are_listed_with_letters_too(probe):
    answer = probe.ask("How sharp?", levels=["blurry", "fair", "sharp"], by="letters", rotate="all")
    assert isinstance(answer, Rating)
    assert "B. fair" in answer.meta["question"]
    assert answer.expected == pytest.approx((answer.probabilities * [1, 2, 3]).sum())


def test_letters_stand_below_the_question_of_a_conversation(probe):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Which?"}, {"type": "image"}]},
    ]
    answer = probe.ask(turns, picture(), options=COLOURS, by="letters")
    assert answer.meta["question"] == listed("Which?", COLOURS)
    single = probe.ask(turns, picture(), options=COLOURS)
    assert single.meta["question"] == "Which?"


# -- several questions --------------------------------------------------------------------------------------


def test_several_questions_share_one_picture_and_equal_single_ones(probe):
    asked = {
        "person": "Is there a person?",
        "weather": ("What is the weather?", ["sunny", "rainy"]),
        "sharp": {"question": "How sharp?", "levels": ["blurry", "sharp"], "by": "letters"},
        "count": ("How many?", range(1, 4)),
    }
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as one:
        probe.ask("Is there a person?", picture())
    with counting(adapter.model, adapter.layers) as count:
        answers = probe.ask(asked, picture())
    assert count.pictures == one.pictures
    assert isinstance(answers, Answers)
    assert list(answers) == list(asked)
    assert [type(each) for each in answers.values()] == [YesNo, Choice, Rating, Rating]
    single = {
        "person": probe.ask("Is there a person?", picture()),
        "weather": probe.ask("What is the weather?", picture(), options=["sunny", "rainy"]),
        "sharp": probe.ask("How sharp?", picture(), levels=["blurry", "sharp"], by="letters"),
        "count": probe.ask("How many?", picture(), levels=range(1, 4)),
    }
    for name, each in single.items():
        np.testing.assert_allclose(answers[name].logprobs, each.logprobs, atol=1e-4)
        assert answers[name].meta["id"] == name
    assert answers.at(1.0) == dict.fromkeys(asked, "unsure")
    with pytest.raises(KeyError, match="'weather'"):
        answers["wether"]


def test_an_image_of_several_questions_is_read_once(probe, tmp_path, monkeypatch):
    picture().save(tmp_path / "a.png")
    read = []
    monkeypatch.setattr(ahead, "load_encoded", lambda source: read.append(source) or load_encoded(source))
    answers = probe.ask({"a": QUESTION, "b": (QUESTION, COLOURS), "c": "Is it?"}, tmp_path / "a.png")
    assert read == [tmp_path / "a.png"]
    assert all(len(each.images) == 1 for each in answers.values())
    np.testing.assert_allclose(answers["a"].logprobs, probe.ask(QUESTION, picture()).logprobs, atol=1e-4)
    many = probe.ask({"a": QUESTION, "b": "Is it?"}, iter([picture(1), picture(2)]))
    np.testing.assert_allclose(many["b"].logprobs, probe.ask("Is it?", [picture(1), picture(2)]).logprobs, atol=1e-4)
    with pytest.raises(ImageError, match="question 'a'"):
        probe.ask({"a": QUESTION, "b": "Is it?"}, "gone.png")


def test_options_of_the_call_are_those_of_questions_without_any(probe):
    asked = {"left": "Which colour is left?", "right": ("Which colour is right?", ["black", "white"])}
    answers = probe.ask(asked, picture(), options=COLOURS, by="letters", none_of_these=True)
    assert answers["left"].candidates == [*COLOURS, "none of these"]
    assert answers["right"].candidates == ["black", "white", "none of these"]
    assert "D. none of these" in answers["left"].meta["question"]


def test_each_question_may_have_its_own_image(probe):
    answers = probe.ask({"a": QUESTION, "b": {"question": QUESTION, "image": picture(2)}}, picture(1))
    for name, seed in (("a", 1), ("b", 2)):
        single = probe.ask(QUESTION, picture(seed))
        np.testing.assert_allclose(answers[name].logprobs, single.logprobs, atol=1e-4)


def test_a_session_shows_its_image_unless_told_otherwise(probe):
    with probe.session(picture()) as session:
        seen, unseen = session.ask({"a": QUESTION, "b": {"question": QUESTION, "image": []}}).values()
        alone = session.ask(QUESTION, image=[])
    np.testing.assert_allclose(seen.logprobs, probe.ask(QUESTION, picture()).logprobs, atol=1e-4)
    np.testing.assert_allclose(unseen.logprobs, probe.ask(QUESTION).logprobs, atol=1e-4)
    np.testing.assert_allclose(alone.logprobs, probe.ask(QUESTION).logprobs, atol=1e-4)


def test_several_images_and_prompt_options(probe):
    images = [picture(1), picture(2)]
    raw = {"raw_prompt": True}
    for question, image, options in ((QUESTION, images, {}), ("It is", None, raw)):
        answer = probe.ask(question, image, options=COLOURS, **options)
        scored = probe.score(question, spelled("blue"), image, **options)
        assert np.exp(answer.logprobs[1]) == pytest.approx(np.exp(scored.logprobs).sum(), rel=1e-3)


def test_many_requests_choose_from_the_same_options(probe):
    requests = [("Which?", picture(1)), ("Which?", picture(2)), "Which?"]
    found = list(probe.score_many(requests, options=COLOURS, progress=False))
    assert [type(each) for each in found] == [Choice] * 3
    for (question, image), each in zip([*requests[:2], ("Which?", None)], found, strict=True):
        np.testing.assert_allclose(each.logprobs, probe.ask(question, image, options=COLOURS).logprobs, atol=1e-4)
    (rated,) = probe.score_many(["How?"], levels=range(1, 4), progress=False)
    assert rated.expected == pytest.approx(probe.ask("How?", levels=range(1, 4)).expected, abs=1e-4)
    kept = list(probe.score_many(["Which?", ("Which?", "gone.png")], options=COLOURS, on_error="keep", progress=False))
    assert isinstance(kept[1], vlmprobe.Failure)
    with pytest.raises(GenerationOptionError, match="both say what is scored"):
        probe.score_many(["Which?"], ["a", "b"], options=COLOURS)


@pytest.mark.parametrize("engine", ["sglang", "lightllm"])
def test_a_server_is_asked_as_a_model_here(engine):
    local = vlmprobe.load("demo", dtype="float32", device="cpu")
    question = "What colour is the digit on the left?"
    served = {**wire.facts(engine), "/generate": getattr(wire, engine)(wire.Model(local, question))}
    with WireServer(served) as server:
        probe = vlmprobe.connect(server.url, processor=local)
        answer = probe.ask(question, sample_images()[0], options=["red", "blue"])
        several = probe.ask({"a": question, "b": (question, ["red", "blue"])}, sample_images()[0])
    here = local.ask(question, sample_images()[0], options=["red", "blue"])
    # LightLLM gives no number of the unlikely spellings, only a bound.
    assert not answer.left_out
    assert answer.bounded == (engine == "lightllm")
    kept = [
        [place for place in range(8) if not np.isnan(answer.spellings.logprobs[place]) and place // 4 == option]
        for option in (0, 1)
    ]
    due = [np.logaddexp.reduce(here.spellings.logprobs[places]) for places in kept]
    np.testing.assert_allclose(answer.logprobs, due, atol=1e-4)
    np.testing.assert_allclose(several["b"].logprobs, due, atol=1e-4)
    whole = local.yes_no(question, sample_images()[0])
    assert several["a"].bounded == (engine == "lightllm")
    np.testing.assert_allclose(several["a"].logprobs, whole.logprobs, atol=1e-2 if several["a"].bounded else 1e-4)


# -- spellings ----------------------------------------------------------------------------------------------


def test_spellings_belong_to_one_option_each(probe):
    answer = probe.ask("Which?", options=["Polish", "polish"])
    frame = answer.spellings.candidates
    assert frame == ["Polish", " Polish", "polish", " polish"]
    assert answer.members == [[0, 1], [2, 3]]


def test_own_spellings_of_options(probe):
    answer = probe.ask("Which?", options={"red": ["red", "crimson"], "blue": "blue"}, none_of_these="neither")
    assert answer.candidates == ["red", "blue", "neither"]
    assert answer.spellings.candidates[:3] == ["red", "crimson", "blue"]
    scored = probe.score("Which?", ["red", "crimson"])
    assert np.exp(answer.logprobs[0]) == pytest.approx(np.exp(scored.logprobs).sum(), rel=1e-3)


def test_options_in_chinese(probe):
    answer = probe.ask("哪种颜色？", options=["红色", "蓝色"])
    assert answer.best in ("红色", "蓝色")
    assert answer.probabilities.sum() == pytest.approx(1)


# -- the first token ----------------------------------------------------------------------------------------


def test_the_first_token_trap_is_told_once(probe_of):
    """The demo model does not know letters: it begins with a word."""
    probe = vlmprobe.load("demo", device="cpu")
    ask._TOLD.clear()
    warnings.simplefilter("always", VlmprobeWarning)
    with pytest.warns(VlmprobeWarning, match=r"together hold <0.1% .* begin with 'a' .* It begins a sentence") as told:
        answer = probe.ask("Which digit is on the left?", picture(), options=["one", "two"], by="letters")
    assert len(told) == 1
    assert told[0].filename == __file__
    assert answer.mass < 1e-3
    assert "(mass " in str(answer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe.ask("Which digit is on the left?", picture(), options=["one", "two"], by="letters")
        assert probe.ask("Is there a seven?", picture()).note == ""


# -- wrong input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"options": "red"}, MessageError, "options must be a list, such as"),
        ({"options": []}, MessageError, "no option"),
        ({"options": ["red"]}, MessageError, "at least two"),
        ({"options": ["red", "red "]}, MessageError, "repeats"),
        ({"options": ["red", " "]}, MessageError, "option 1 is empty"),
        ({"options": ["red", "a\nb"]}, MessageError, "several lines"),
        ({"options": [1, 2]}, MessageError, "go into levels="),
        ({"options": {"red", "blue"}}, MessageError, "has an order"),
        ({"options": {"a": ["x"], "b": ["x"]}}, MessageError, "spelling of both"),
        ({"options": {"a": "x", "b": "y"}, "by": "letters"}, GenerationOptionError, "spellings are not used"),
        ({"options": COLOURS, "levels": [1, 2]}, GenerationOptionError, "give one of them"),
        ({"options": COLOURS, "rotate": "all"}, GenerationOptionError, "by='letters' too"),
        ({"options": COLOURS, "by": "letters", "rotate": True}, GenerationOptionError, "'close' or 'all'"),
        ({"options": COLOURS, "by": "letter"}, GenerationOptionError, "Did you mean letters"),
        ({"options": COLOURS, "none_of_these": "red"}, MessageError, "repeats the option"),
        ({"options": COLOURS, "none_of_these": 3}, GenerationOptionError, "True or the text"),
        ({"options": [str(each) for each in range(27)], "by": "letters"}, MessageError, "27 options"),
        ({"options": COLOURS, "by": "letters", "raw_prompt": True}, GenerationOptionError, "raw prompt"),
        ({"levels": [1, 3, 2]}, MessageError, "in order"),
        ({"levels": [1, 1]}, MessageError, "repeats"),
        ({"levels": 5}, MessageError, "levels must be a list"),
        ({"levels": [True, False]}, MessageError, "level 0 is bool"),
        ({"levels": ["good"]}, MessageError, "at least two"),
        ({"levels": [1, 2], "none_of_these": True}, GenerationOptionError, "no level"),
        ({"by": "letters"}, GenerationOptionError, "without options="),
        ({"rotate": "all"}, GenerationOptionError, "without options="),
        ({"candidates": ["a", "b"]}, TypeError, "options="),
        ({"option": ["a", "b"]}, TypeError, "Did you mean options"),
        ({"max_new_tokens": 3}, TypeError, "max_new_tokens"),
    ],
)
def test_wrong_arguments_are_told_before_the_model_runs(probe, given, error, says):
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as count, pytest.raises(error, match=says):
        probe.ask("Which?", picture(), **given)
    assert not count.positions


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({}, "there is no question"),
        ({1: "Is it?"}, "name of a question"),
        ({"a": {"question": [{"role": "assistant", "content": "It"}], "options": ["x", "y"], "by": "letters"}}, "user"),
        ({"a": ""}, "question 'a': The prompt is empty"),
        ({"a": ("Which?", "red")}, "question 'a': options must be a list"),
        ({"a": ("Which?", ["x", "y"], 3)}, "question 'a'.*3 parts"),
        ({"a": {"questions": "Is it?"}}, "question 'a'.*'questions'"),
        ({"a": {"options": ["x", "y"]}}, "no 'question'"),
        ({"question": "Which?", "options": ["x", "y"]}, "asked as ask"),
        ({"role": "user", "content": "Is it?"}, "into a list"),
        (["Is it?", "Was it?"], "pass a mapping"),
        (3, "a string or a list of chat messages"),
    ],
)
def test_wrong_questions(probe, question, says):
    with pytest.raises(MessageError, match=says):
        probe.ask(question, picture())


def test_options_in_place_of_the_image(probe):
    with pytest.raises(MessageError, match="Options go in by name"):
        probe.ask("Which?", ["red", "blue"])
    with pytest.raises(ImageError):
        probe.ask("Which?", ["red.png", "blue.png"])
