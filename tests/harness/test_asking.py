"""What both harnesses share: rows with images, log-likelihoods and answers of a probe. No harness is needed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import vlmprobe
from vlmprobe.demo import checkpoint, sample_images
from vlmprobe.errors import CapabilityError, GenerationOptionError, ImageError, MessageError, ResultError
from vlmprobe.harness.asking import answers, batches, log_likelihoods, opened, pictures, with_pictures

QUESTION = "Which digit is on the left?"
WORDS = ["one", "two", "seven"]


@pytest.fixture(scope="module")
def probe():
    return vlmprobe.load("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def images():
    return [Image.open(path).convert("RGB") for path in sample_images()[:3]]


def row(image, question=QUESTION, id="task/0"):
    return {"question": with_pictures([{"role": "user", "content": f"<image>{question}"}], [image]), "id": id}


# -- images -----------------------------------------------------------------------------------


def kinds(messages):
    return [
        part if isinstance(part, str) else part.get("text", part.get("image"))
        for each in messages
        for part in ([each["content"]] if isinstance(each["content"], str) else each["content"])
    ]


def test_images_stand_where_the_marks_are():
    chat = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "<image> and <image>: equal?"}]
    made = with_pictures(chat, ["a", "b"])
    assert [each["role"] for each in made] == ["system", "user"]
    assert kinds(made) == ["Answer.", "a", " and ", "b", ": equal?"]
    assert chat[1]["content"] == "<image> and <image>: equal?", "what the harness holds is left as it is"


def test_images_of_several_messages_keep_their_order():
    turns = [("user", "A <image>"), ("assistant", "yes"), ("user", "<image>B")]
    made = with_pictures([{"role": role, "content": text} for role, text in turns], ["a", "b"])
    assert kinds(made) == ["A ", "a", "yes", "b", "B"]


def test_without_images_a_text_is_left_as_it_is():
    chat = [{"role": "user", "content": "What does <image> mean in a prompt?"}]
    assert with_pictures(chat, []) == chat


@pytest.mark.parametrize(("text", "count"), [("Look: ?", 1), ("<image>?", 2), ("<image><image>?", 1)])
def test_another_number_of_marks_is_an_error(text, count):
    with pytest.raises(MessageError, match=rf"{text.count('<image>')} times for {count} images"):
        with_pictures([{"role": "user", "content": text}], ["a", "b"][:count])


def test_without_a_mark_images_may_come_first():
    chat = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Equal?"}]
    assert kinds(with_pictures(chat, ["a", "b"], first=True)) == ["Answer.", "a", "b", "Equal?"]
    with pytest.raises(MessageError, match="1 times for 2 images"):
        with_pictures([{"role": "user", "content": "<image>?"}], ["a", "b"], first=True)


@pytest.mark.parametrize("given", ["/etc/passwd", "http://127.0.0.1/a.png", {"path": "a.png"}, b"GIF89a", [None]])
def test_only_images_are_taken_for_images(given):
    """A cell of a data set is no path that is opened, and no address that is fetched."""
    with pytest.raises(ImageError, match="a task gives"):
        pictures(given)


def test_one_image_several_or_none():
    image = Image.new("RGB", (4, 4))
    assert pictures(None) == []
    assert pictures(image) == [image]
    assert pictures((image, image)) == [image, image]


# -- log-likelihoods ---------------------------------------------------------------------------


def test_log_likelihoods_are_those_of_score(probe, images):
    """In any order of the requests, whatever their neighbours."""
    wanted = [(place, word) for word in WORDS for place in range(3)]
    found = dict(log_likelihoods(probe, wanted, lambda n: row(images[wanted[n][0]]), "auto"))
    assert sorted(found) == list(range(len(wanted)))
    for place, image in enumerate(images):
        scores = probe.score(QUESTION, WORDS, image=image)
        mine = [found[wanted.index((place, word))] for word in WORDS]
        np.testing.assert_allclose([value for value, _ in mine], scores.logprobs, rtol=0, atol=1e-4)
        assert [greedy for _, greedy in mine] == [bool((table.ranks == 0).all()) for table in scores.tables]


def test_a_greedy_answer_is_told(probe, images):
    text = probe.generate(QUESTION, image=images[0], max_new_tokens=1, do_sample=False).text
    wanted = [("a", text), ("a", f"{text} not")]
    found = dict(log_likelihoods(probe, wanted, lambda _: row(images[0]), "auto"))
    assert [greedy for _, greedy in (found[0], found[1])] == [True, False]


def test_one_prompt_is_asked_once_with_each_continuation_once():
    """Two equal choices are one candidate."""
    asked = []

    def score_many(rows, batch_size):
        for each in rows:
            asked.append((each["id"], each["candidates"]))
            tables = [SimpleNamespace(ranks=np.array([len(word) - 3])) for word in each["candidates"]]
            numbers = np.array([-float(len(word)) for word in each["candidates"]])
            yield SimpleNamespace(candidates=each["candidates"], tables=tables, logprobs=numbers, meta={})

    wanted = [("a", "one"), ("b", "one"), ("a", "three"), ("a", "one")]
    probe = SimpleNamespace(score_many=score_many)
    found = dict(log_likelihoods(probe, wanted, lambda place: {"id": wanted[place][0]}, 4))
    assert asked == [("a", ["one", "three"]), ("b", ["one"])]
    assert found == {0: (-3.0, True), 1: (-3.0, True), 2: (-5.0, False), 3: (-3.0, True)}


def test_a_continuation_without_a_log_probability_is_an_error():
    """numpy's argmax takes NaN for the greatest."""
    table = SimpleNamespace(ranks=np.array([-1]))
    scores = SimpleNamespace(
        candidates=["a", "b"], tables=[table, table], logprobs=np.array([-1.0, np.nan]), meta={"id": "task/7"}
    )
    probe = SimpleNamespace(score_many=lambda rows, batch_size: [scores for _ in rows])
    with pytest.raises(ResultError, match="task/7: 'b' has no log-probability"):
        list(log_likelihoods(probe, [("x", "a"), ("x", "b")], lambda _: {"id": "task/7"}, 1))


def test_an_empty_continuation_names_its_request(probe, images):
    with pytest.raises(MessageError, match="task/3"):
        list(log_likelihoods(probe, [("x", "")], lambda _: row(images[0], id="task/3"), "auto"))


# -- answers ------------------------------------------------------------------------------------


def test_answers_are_those_of_generate_in_their_own_places(probe, images):
    wanted = [{"max_gen_toks": 1 + place % 2} for place in range(4)]
    found = dict(answers(probe, wanted, lambda n: row(images[n % 3]), "auto", 64))
    for place in range(4):
        asked = probe.generate(QUESTION, image=images[place % 3], max_new_tokens=1 + place % 2, do_sample=False)
        assert found[place] == asked.text


def test_answers_are_kept_in_a_run_with_their_numbers(probe, images, tmp_path):
    wanted = [{"max_gen_toks": 1 + place % 2} for place in range(6)]
    asked = [images[n % 3] for n in range(6)]
    due = dict(answers(probe, wanted, lambda n: row(asked[n], id=f"task/{n}"), "auto", 64))
    for _ in range(2):
        assert dict(answers(probe, wanted, lambda n: row(asked[n], id=f"task/{n}"), "auto", 64, tmp_path)) == due
    tables = [vlmprobe.open_run(folder).table() for folder in tmp_path.iterdir()]
    assert sorted(each for table in tables for each in table["id"].to_pylist()) == [f"task/{n}" for n in range(6)]
    for table in tables:
        assert [len(each) for each in table["token_logprob"].to_pylist()] == table["n_tokens"].to_pylist()


def test_a_request_that_fails_in_a_run_is_an_error(probe, images, tmp_path):
    rows = [row(images[0]), {"question": "", "id": "task/1"}]
    with pytest.raises(ResultError, match="task/1"):
        list(answers(probe, [{}, {}], lambda n: rows[n], "auto", 2, tmp_path))


def options_given(given, most=64):
    """What a probe is asked for the options of a task, and the text that is made of its answer."""
    seen = {}

    def generate_many(rows, **options):
        seen.update(options)
        return [SimpleNamespace(text="first line\nsecond Q: third") for _ in rows]

    ((_, text),) = answers(SimpleNamespace(generate_many=generate_many), [given], lambda _: {}, "auto", most)
    assert seen.pop("batch_size") == "auto"
    assert seen.pop("prompt") is False
    return seen, text


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({}, {"max_new_tokens": 64, "do_sample": False}),
        ({"max_gen_toks": 5}, {"max_new_tokens": 5, "do_sample": False}),
        ({"max_gen_toks": 5, "max_new_tokens": 5}, {"max_new_tokens": 5, "do_sample": False}),
        ({"temperature": 0.0, "do_sample": False, "top_p": 0}, {"max_new_tokens": 64, "do_sample": False}),
        ({"temperature": 0, "top_p": None}, {"max_new_tokens": 64, "do_sample": False}),
        ({"temperature": 0.7, "top_p": 0.9}, {"max_new_tokens": 64, "temperature": 0.7, "top_p": 0.9}),
        ({"do_sample": True}, {"max_new_tokens": 64, "do_sample": True}),
        ({"num_beams": 3}, {"max_new_tokens": 64, "do_sample": False, "num_beams": 3}),
    ],
)
def test_options_of_tasks(given, asked):
    assert options_given(given) == (asked, "first line\nsecond Q: third")


@pytest.mark.parametrize(
    ("until", "text"),
    [
        (["Q:"], "first line\nsecond "),
        (["Q:", "\n"], "first line"),
        ("\n", "first line"),
        (["", "none of these"], "first line\nsecond Q: third"),
    ],
)
def test_answers_end_before_the_first_stop_string(until, text):
    seen, found = options_given({"until": until})
    assert found == text
    assert seen["stop_strings"] == [each for each in ([until] if isinstance(until, str) else until) if each]


def test_a_stop_string_ends_the_answer_of_a_model(probe, images):
    whole = probe.generate(QUESTION, image=images[0], max_new_tokens=8, do_sample=False).text
    ((_, text),) = answers(probe, [{"until": [whole[1]]}], lambda _: row(images[0]), "auto", 8)
    assert text == whole[:1]


def test_two_lengths_are_an_error():
    """lm-eval takes the first of them, so that one given on the command line would have no effect."""
    with pytest.raises(GenerationOptionError, match="max_new_tokens=9, max_gen_toks=5"):
        options_given({"max_gen_toks": 5, "max_new_tokens": 9})


def test_an_option_that_no_model_has_is_an_error(probe, images):
    with pytest.raises(GenerationOptionError, match="temprature"):
        list(answers(probe, [{"temprature": 1}], lambda _: row(images[0]), "auto", 8))


# -- the model ----------------------------------------------------------------------------------


def test_a_checkpoint_is_loaded_with_its_options():
    assert opened(str(checkpoint()), "cpu", {"dtype": "float32"}).meta["dtype"] == "float32"


def test_a_probe_is_taken_as_it_is(probe):
    assert opened(probe, None, {}) is probe


def test_one_of_several_processes_is_refused(monkeypatch, probe):
    """Each would ask every question, or only count its own share."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(CapabilityError, match="one of 4 processes"):
        opened(probe, None, {})


def test_a_url_is_a_server(probe, images):
    """The same numbers from an engine's answers, replayed."""
    import wire_engines as wire
    from wire_server import WireServer

    served = {**wire.facts("sglang", "facts"), "/generate": wire.sglang(wire.Model(probe, QUESTION))}
    with WireServer(served) as server:
        remote = opened(server.url, None, {"processor": str(checkpoint())})
        found = dict(log_likelihoods(remote, [(0, "one"), (0, "two")], lambda _: row(images[0]), "auto"))
        ((_, text),) = answers(remote, [{"max_new_tokens": 4}], lambda _: row(images[0]), "auto", 8)
        with pytest.raises(CapabilityError, match="leave out device=cpu"):
            opened(server.url, "cpu", {})
    scores = probe.score(QUESTION, ["one", "two"], image=images[0])
    np.testing.assert_allclose([found[0][0], found[1][0]], scores.logprobs, atol=1e-3)
    assert text == probe.generate(QUESTION, image=images[0], max_new_tokens=4, do_sample=False).text


@pytest.mark.parametrize(("given", "taken"), [("auto", "auto"), ("8", 8), (1, 1), ("auto:4", "auto:4")])
def test_batch_sizes(given, taken):
    assert batches(given) == taken
