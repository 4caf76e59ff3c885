"""``Probe.generate_many``: the numbers of single calls, in the order of the requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from common import QUESTION, families, picture

import vlmprobe
from vlmprobe import Request
from vlmprobe.errors import CapabilityError, GenerationOptionError, ImageError, MessageError

TOLERANCE = 1e-4  # float32, a batch against single calls
# Padding moves the borders of the chunks in which their linear attention runs, in float32 whatever the dtype. Most
# rows differ by 5e-6, and the few whose states are small before the final norm by up to 5e-4.
LOOSER = {"minicpmv4_6": 1e-3, "minicpmv4_7": 1e-3}
COLUMNS = ("logprobs", "entropy", "logsumexp", "top_logprobs", "logits")
NEW = 4


def mixed(text_only: bool) -> list[Request]:
    """Pictures of several sizes, texts of several lengths, and text alone among them."""
    requests = [
        Request("Hi", picture(1), id="short"),
        Request(QUESTION * 2, picture(2, 150, 60), id="wide"),
        Request("Is there a cat in the image? 图片里有什么？", picture(3, 61, 90), id="high"),
        Request("Which of the two images is brighter?", id="text"),
        Request("Please answer with yes or no. Are there people in the picture?", id="longer text"),
        Request(QUESTION, picture(4, 33, 33), id="square"),
    ]
    return [each for each in requests if text_only or each.image is not None]


def assert_same(one, other, tolerance=TOLERANCE):
    assert one.text == other.text
    assert np.array_equal(one.input_ids, other.input_ids)
    for side in ("prompt", "output"):
        table, single = getattr(one, side), getattr(other, side)
        assert table.ids.tolist() == single.ids.tolist()
        assert table.positions.tolist() == single.positions.tolist()
        assert table.kinds == single.kinds
        assert table.image_spans == single.image_spans
        for column in COLUMNS:
            held, wanted = getattr(table, column), getattr(single, column)
            assert (held is None) == (wanted is None), column
            if held is not None:
                assert np.array_equal(np.isnan(held), np.isnan(wanted)), column
                assert np.nanmax(np.abs(held - wanted)) < tolerance, column


@pytest.mark.parametrize("name", families())
def test_a_batch_gives_the_numbers_of_single_calls(name, probe_of):
    probe = probe_of(name)
    requests = mixed(text_only=name != "paligemma")
    options = {"max_new_tokens": NEW, "do_sample": False, "keep": "logits"}
    together = list(probe.generate_many(requests, batch_size=3, **options))
    assert [each.meta["id"] for each in together] == [each.id for each in requests]
    assert max(each.meta["batch_size"] for each in together) == 3, "they did run together"
    for request, result in zip(requests, together, strict=True):
        assert_same(result, probe.generate(request.question, request.image, **options), LOOSER.get(name, TOLERANCE))


@pytest.mark.parametrize("family", ["internvl", "qwen2_5_vl", "mllama", "gemma3"])
def test_beams_in_a_batch(family, probe_of):
    probe = probe_of(family)
    options = {"max_new_tokens": NEW, "num_beams": 3, "do_sample": False, "keep": "logits"}
    requests = mixed(text_only=False)
    for request, result in zip(requests, probe.generate_many(requests, **options), strict=True):
        assert_same(result, probe.generate(request.question, request.image, **options))


def test_rows_that_end_before_the_others_report_no_padding(probe_of):
    probe = probe_of("llava")
    requests = mixed(text_only=False)
    free = [probe.generate(each.question, each.image, max_new_tokens=8, do_sample=False) for each in requests]
    end = int(free[0].output.ids[1])  # ends the first answer early, the others probably not
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": end}
    results = list(probe.generate_many(requests, **options))
    assert len({len(each.output) for each in results}) > 1
    for request, result in zip(requests, results, strict=True):
        assert_same(result, probe.generate(request.question, request.image, **options))
    assert results[0].finish_reason == "stop"


def test_rows_that_end_with_a_stop_string_report_no_padding(probe_of):
    probe = probe_of("cohere2_vision")
    requests = mixed(text_only=False)
    free = [probe.generate(each.question, each.image, max_new_tokens=8, do_sample=False) for each in requests]
    stop = next(token for token in free[0].output.tokens if token.strip() and "�" not in token)
    options = {"max_new_tokens": 8, "do_sample": False, "stop_strings": [stop]}
    results = list(probe.generate_many(requests, **options))
    for request, result in zip(requests, results, strict=True):
        alone = probe.generate(request.question, request.image, **options)
        assert_same(result, alone)
        assert result.finish_reason == alone.finish_reason


@pytest.mark.parametrize("options", [{"repetition_penalty": 3.0}, {"no_repeat_ngram_size": 2}, {"max_length": 120}])
def test_options_that_count_the_prompt_do_not_count_padding(options, probe_of):
    probe = probe_of("llava")  # pads with its end token, which a penalty on padding would keep from ending an answer
    requests = mixed(text_only=False)
    options = {"do_sample": False, **({} if "max_length" in options else {"max_new_tokens": 8}), **options}
    for request, result in zip(requests, probe.generate_many(requests, **options), strict=True):
        assert_same(result, probe.generate(request.question, request.image, **options))


@pytest.mark.parametrize("by_default", [False, True], ids=["asked for", "the checkpoint's default"])
def test_sampling_with_a_seed_draws_what_each_would_draw_alone(by_default, checkpoint):
    probe = vlmprobe.load(checkpoint("llava"), device="cpu")
    options = {"max_new_tokens": 6, "temperature": 1.5, "top_k": 0, "seed": 7}
    if by_default:
        probe.engine.adapter.model.generation_config.do_sample = True
    else:
        options["do_sample"] = True
    requests = mixed(text_only=True)
    for request, result in zip(requests, probe.generate_many(requests, **options), strict=True):
        assert_same(result, probe.generate(request.question, request.image, **options))


def test_a_family_that_cannot_be_batched_runs_one_by_one(checkpoint):
    probe = vlmprobe.load(checkpoint("llava"), device="cpu")
    probe.engine.adapter.capabilities = replace(probe.engine.adapter.capabilities, batching=False)
    results = list(probe.generate_many(mixed(text_only=False), max_new_tokens=2, do_sample=False))
    assert [each.meta["batch_size"] for each in results] == [1] * 4


def test_every_form_of_request(probe_of):
    probe = probe_of("internvl")
    image = picture()
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "Hi"}]}]
    forms = [
        Request("Hi", image),
        {"prompt": "Hi", "image": image, "id": 0},
        messages,
        Request(messages),
        {"prompt": messages},
    ]
    results = list(probe.generate_many(forms, max_new_tokens=2, do_sample=False))
    for result in results:
        assert_same(result, results[0])
    assert [each.meta.get("id") for each in results] == [None, 0, None, None, None]
    text, by_mapping = probe.generate_many(["Hi", {"prompt": "Hi"}], max_new_tokens=2, do_sample=False)
    assert_same(text, by_mapping)


def test_requests_are_read_as_they_are_needed(probe_of):
    read = []

    def endless():
        place = 0
        while True:
            read.append(place)
            yield Request("Hi", id=place)
            place += 1

    results = probe_of("internvl").generate_many(endless(), batch_size=2, max_new_tokens=1, do_sample=False)
    assert not read
    assert [next(results).meta["id"] for _ in range(3)] == [0, 1, 2]
    assert len(read) <= 5
    results.close()


def test_batches_leave_the_tokenizer_as_it_was(checkpoint):
    probe = vlmprobe.load(checkpoint("llava"), device="cpu")
    tokenizer = probe.engine.adapter.tokenizer
    tokenizer.padding_side = "right"
    held = tokenizer.pad_token
    requests = mixed(text_only=False)
    for request, result in zip(requests, probe.generate_many(requests, max_new_tokens=2, do_sample=False), strict=True):
        assert_same(result, probe.generate(request.question, request.image, max_new_tokens=2, do_sample=False))
    assert tokenizer.padding_side == "right"
    assert tokenizer.pad_token == held


def test_no_request_is_no_result(probe_of):
    assert list(probe_of("internvl").generate_many([], max_new_tokens=1)) == []


@pytest.mark.parametrize(
    ("requests", "says"),
    [
        ([{"image": None}], "question"),
        ([{"question": "Hi", "picture": 1}], "picture"),
        ([{"role": "user", "content": "Hi"}], "a request has"),
        ([None], "string"),
        ([""], "empty"),
    ],
)
def test_a_bad_request(requests, says, probe_of):
    with pytest.raises(MessageError, match=says):
        list(probe_of("internvl").generate_many(requests, max_new_tokens=1))


@pytest.mark.parametrize("requests", ["What is this?", Request("What is this?"), {"prompt": "What is this?"}, None, 3])
def test_one_request_in_place_of_a_list(requests, probe_of):
    with pytest.raises(MessageError, match="list"):
        probe_of("internvl").generate_many(requests, max_new_tokens=1)


def test_results_before_a_bad_request_are_not_lost(probe_of, tmp_path):
    requests = ["Hi", "Yes", Request("What is this?", tmp_path / "missing.png"), "No"]
    seen = []
    results = probe_of("internvl").generate_many(requests, batch_size=8, max_new_tokens=1, do_sample=False)
    with pytest.raises(ImageError, match="missing"):
        seen.extend(results)
    assert len(seen) == 2


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "four", None])
def test_impossible_batch_sizes(size, probe_of):
    with pytest.raises(GenerationOptionError, match="batch_size"):
        probe_of("internvl").generate_many(["Hi"], batch_size=size)


def test_bad_options_are_told_before_anything_is_read(probe_of):
    with pytest.raises(GenerationOptionError, match="temperature"):
        probe_of("internvl").generate_many(iter(()), temprature=1)


def test_what_the_family_cannot_take_is_told(probe_of):
    with pytest.raises(CapabilityError, match="image"):
        list(probe_of("paligemma").generate_many(["What is this?"], max_new_tokens=1))


# -- former names, accepted until 1.0 --------------------------------------------------------------


def test_the_former_name_of_a_question():
    with pytest.warns(DeprecationWarning, match=r"Request\(prompt=\) is now Request\(question=\)"):
        request = Request(prompt="Hi", image="a.png", id=3)
    assert request == Request("Hi", "a.png", 3) == Request(question="Hi", image="a.png", id=3)
    with pytest.warns(DeprecationWarning, match=r"Request\.prompt is now Request\.question"):
        assert request.prompt == "Hi"
    with pytest.raises(TypeError, match="needs a question"):
        Request(image="a.png")
    assert Request(None).question is None  # refused where it is asked, with the request's id
