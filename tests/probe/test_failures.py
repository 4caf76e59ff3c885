"""Errors of many requests name the request, and ``on_error="keep"`` keeps those of the model too."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch
from common import picture

import vlmprobe
from vlmprobe import Failure, Request
from vlmprobe.errors import (
    EngineError,
    GenerationOptionError,
    ImageError,
    MissingExtraError,
    NonFiniteLogitsError,
    VlmprobeError,
)
from vlmprobe.inputs.images import ImageNotFoundError
from vlmprobe.probe.failure import named, naming

OPTIONS = {"max_new_tokens": 2, "do_sample": False, "prompt": False, "progress": False}
NINE = [f"question {place}" for place in range(9)]


@pytest.fixture
def failing(probe_of, monkeypatch):
    """A probe whose model raises an error whenever a given question is in the batch; the batches that ran."""
    probe = probe_of("llava")
    plain = probe.engine.generate
    ran: list[list[str]] = []

    def set_up(errors):
        def generate(conversations, options):
            asked = [each.question for each in conversations]
            ran.append(asked)
            big = torch.zeros(1000)
            for question, error in errors.items():
                if question in asked:
                    generate.held = weakref.ref(big)
                    raise error
            return plain(conversations, options)

        monkeypatch.setattr(probe.engine, "generate", generate)
        monkeypatch.setattr(type(probe.engine), "remembering", lambda self, images, **_: self)
        return probe, ran, generate

    return set_up


@pytest.mark.parametrize("batch_size", ["auto", 1, 4])
@pytest.mark.parametrize("error", [RuntimeError("shapes"), KeyError("key"), NonFiniteLogitsError("NaN")], ids=repr)
def test_an_error_inside_the_model_is_kept_in_its_place(failing, batch_size, error):
    probe, _, _ = failing({"question 3": error})
    found = list(probe.generate_many(NINE, batch_size=batch_size, on_error="keep", **OPTIONS))
    assert [place for place, each in enumerate(found) if isinstance(each, Failure)] == [3]
    failure = found[3]
    assert type(failure.error) is type(error)
    assert (failure.row, failure.id, failure.question) == (3, None, "question 3")
    said = [str(failure.error), *getattr(failure.error, "__notes__", [])]
    assert any("request 3" in each for each in said)
    assert "request 3" in repr(failure)
    assert bool(failure)


@pytest.mark.parametrize("batch_size", ["auto", 1, 4])
def test_an_error_inside_the_model_is_raised_after_the_results_before_it(failing, batch_size):
    probe, ran, _ = failing({"question 3": RuntimeError("shapes")})
    seen = []
    with pytest.raises(RuntimeError, match="shapes") as caught:
        seen.extend(probe.generate_many(NINE, batch_size=batch_size, **OPTIONS))
    assert caught.value.__notes__ == ["This was raised by request 3."]
    assert [each.meta["question"] for each in seen] == NINE[:3]
    if batch_size != "auto":
        assert ["question 8"] not in ran, "nothing runs after an error that is raised"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupts_are_never_kept(failing, stop):
    probe, _, _ = failing({"question 1": stop()})
    with pytest.raises(stop):
        list(probe.generate_many(NINE, batch_size=1, on_error="keep", **OPTIONS))


def test_out_of_memory_halves_the_batch_and_is_kept_only_of_a_single_request(failing):
    probe, ran, _ = failing({"question 2": torch.OutOfMemoryError("CUDA out of memory")})
    found = list(probe.generate_many(NINE[:4], batch_size=4, on_error="keep", **OPTIONS))
    assert [isinstance(each, Failure) for each in found] == [False, False, True, False]
    assert [len(batch) for batch in ran] == [4, 2, 2, 1, 1]
    with pytest.raises(torch.OutOfMemoryError) as caught:
        list(probe.generate_many(NINE[:4], batch_size=4, **OPTIONS))
    assert "request 2" in caught.value.__notes__[-1]


def test_a_kept_error_holds_no_tensor_of_the_model(failing):
    probe, _, generate = failing({"question 1": RuntimeError("shapes")})
    found = list(probe.generate_many(NINE[:2], batch_size=1, on_error="keep", **OPTIONS))
    gc.collect()
    assert isinstance(found[1].error, RuntimeError)
    assert found[1].error.__traceback__ is not None
    assert generate.held() is None


def test_errors_of_reading_are_kept_whatever_they_are(probe_of):
    class Broken:
        def __array__(self, *args, **kwargs):
            raise ZeroDivisionError("broken")

    requests = [Request("Hi", Broken(), "a"), ("Hi", None), {"question": None, "id": np.int64(5)}, {"id": 6}, ("Hi",)]
    found = list(probe_of("llava").generate_many(requests, on_error="keep", **OPTIONS))
    assert [type(each).__name__ for each in found] == ["Failure", "Result", "Failure", "Failure", "Failure"]
    assert isinstance(found[0].error, ZeroDivisionError)
    assert [each.id for each in found if isinstance(each, Failure)] == ["a", 5, 6, None]
    assert str(found[2].error).startswith("request 2 (id 5): the question is missing")
    assert [each.row for each in found if isinstance(each, Failure)] == [0, 2, 3, 4]


def test_an_error_of_the_iterator_is_no_request(probe_of):
    def broken():
        yield "Hi"
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match=r"^the disk is gone$"):
        list(probe_of("llava").generate_many(broken(), on_error="keep", batch_size=1, **OPTIONS))


def test_a_failure_has_what_a_result_would_have(probe_of):
    request = Request("Hi", "none.png", "x", carry={"label": "cat"})
    (failure,) = probe_of("llava").generate_many([request], on_error="keep", **OPTIONS)
    assert vlmprobe.Failure is Failure
    assert (failure.question, failure.id, failure.row) == ("Hi", "x", 0)
    assert failure.meta["label"] == "cat"
    assert failure.meta["id"] == "x"
    assert failure.meta["model"] == probe_of("llava").meta["model"]
    assert repr(failure).startswith("Failure(ImageNotFoundError: request 0 (id 'x'): ")


@pytest.mark.parametrize("batch_size", ["auto", 1])
def test_a_raised_error_keeps_its_type_and_names_the_request(probe_of, batch_size):
    requests = ["Hi", Request("Hi", "none.png", "x")]
    with pytest.raises(ImageNotFoundError, match=r"^request 1 \(id 'x'\): image=: There is no file"):
        list(probe_of("llava").generate_many(requests, batch_size=batch_size, **OPTIONS))


def test_named_errors_are_copies_of_the_same_type():
    shared = EngineError("busy", status=503)
    one, other = named(shared, "request 1"), named(shared, "request 2")
    assert (str(one), str(other), str(shared)) == ("request 1: busy", "request 2: busy", "busy")
    assert type(one) is EngineError
    assert one.status == 503
    extra = named(MissingExtraError("pandas", "pandas"), "request 1")
    assert type(extra) is MissingExtraError
    assert str(extra).startswith("request 1: pandas is needed")
    cause = ValueError("why")
    with pytest.raises(ImageError, match="document 4: no") as caught, naming(4, what="document"):
        raise ImageError("no") from cause
    assert caught.value.__cause__ is cause


def test_rank_names_the_document(probe_of, monkeypatch):
    probe = probe_of("qwen2_vl")

    def generate(conversations, options):
        raise NonFiniteLogitsError("NaN")

    monkeypatch.setattr(probe.engine, "generate", generate)
    monkeypatch.setattr(type(probe.engine), "remembering", lambda self, images, **_: self)
    with pytest.raises(NonFiniteLogitsError, match=r"^document 0: NaN"):
        probe.rank("query", ["one", "two"], yes="a", no="b", progress=False)


# -- a seed draws the same for a request, whatever runs beside it ----------------------------------


@pytest.fixture(scope="module")
def drawn(probe_of):
    requests = [Request(f"Question {place}?", picture(place) if place % 2 else None, place) for place in range(5)]
    options = {"max_new_tokens": 4, "do_sample": True, "temperature": 1.5, "top_k": 0, "seed": 11, "prompt": False}
    probe = probe_of("llava")
    alone = {each.id: probe.generate(each.question, each.image, **options).output.ids.tolist() for each in requests}
    assert len({tuple(each) for each in alone.values()}) > 1
    return probe, requests, options, alone


@pytest.mark.parametrize("batch_size", ["auto", 1, 2, 5])
@pytest.mark.parametrize("order", [1, -1], ids=["in order", "reversed"])
def test_a_seed_draws_the_same_in_any_batch_and_order(drawn, batch_size, order):
    probe, requests, options, alone = drawn
    found = probe.generate_many(requests[::order], batch_size=batch_size, progress=False, **options)
    assert {each.meta["id"]: each.output.ids.tolist() for each in found} == alone


@pytest.mark.parametrize("batch_size", ["auto", 3])
def test_a_seed_draws_the_same_beside_failures(drawn, batch_size, monkeypatch):
    probe, requests, options, alone = drawn
    plain = type(probe.engine).generate

    def generate(self, conversations, options, *rest):
        if any(each.question == "fails" for each in conversations):
            torch.rand(3)  # what it has drawn by then
            raise RuntimeError("inside the model")
        return plain(self, conversations, options, *rest)

    monkeypatch.setattr(type(probe.engine), "generate", generate)
    mixed = [Request("fails", id="bad"), *requests[:2], Request("Hi", "none.png", "worse"), *requests[2:]]
    found = list(probe.generate_many(mixed, batch_size=batch_size, on_error="keep", progress=False, **options))
    assert [each.id for each in found if isinstance(each, Failure)] == ["bad", "worse"]
    good = [each for each in found if not isinstance(each, Failure)]
    assert {each.meta["id"]: each.output.ids.tolist() for each in good} == alone
    assert all(isinstance(each.error, (RuntimeError, VlmprobeError)) for each in found if isinstance(each, Failure))


@pytest.mark.parametrize("name", ["images", "img", "image_path", "picture"])
def test_an_image_under_another_keyword_says_which_one_is_read(name, probe_of):
    for ask in (probe_of("internvl").generate, probe_of("internvl").stream, probe_of("internvl").sample):
        with pytest.raises(GenerationOptionError, match=f"no option '{name}': .* as image="):
            ask("Hi", **{name: picture()})


def test_one_image_for_many_requests_says_where_images_go(probe_of):
    with pytest.raises(GenerationOptionError, match=r"in a tuple \(question, image\)"):
        probe_of("internvl").generate_many(["Hi"], image=picture())


def test_an_error_of_many_requests_says_how_to_go_on(probe_of):
    with pytest.raises(ImageNotFoundError) as told:
        list(probe_of("internvl").generate_many(["Hi", ("Hi", "none.png")], max_new_tokens=1, progress=False))
    assert "on_error='keep'" in told.value.__notes__[0]
    (failed,) = probe_of("internvl").generate_many([("Hi", "none.png")], on_error="keep", progress=False)
    assert not hasattr(failed.error, "__notes__")
