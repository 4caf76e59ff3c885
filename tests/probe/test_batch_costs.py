"""What many requests cost, by counting: hashes, calls of the head, checks of options, looks at the model's state."""

from __future__ import annotations

import os
import signal
import threading
import time
from itertools import islice

import numpy as np
import pytest
import torch
from common import picture

import vlmprobe
from vlmprobe import Failure, Request
from vlmprobe.engines import batching
from vlmprobe.engines.local import beginnings, capture, engine, feature_cache
from vlmprobe.errors import ImageError
from vlmprobe.inputs import messages
from vlmprobe.inputs.ahead import Decoder, Job

GREEDY = {"max_new_tokens": 2, "do_sample": False}
TOLERANCE = 1e-4


def counted(monkeypatch, owner, name):
    """A list that gets the arguments of every call of a function."""
    calls = []
    plain = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **named: calls.append(given) or plain(*given, **named))
    return calls


def asked(images, question="Question"):
    return [Request(f"{question} {place}" + "?" * place, image) for place, image in enumerate(images)]


def assert_as_alone(probe, requests, results):
    for request, result in zip(requests, results, strict=True):
        alone = probe.generate(request.question, request.image, **GREEDY)
        for one, other in ((result.prompt, alone.prompt), (result.output, alone.output)):
            assert np.array_equal(one.ids, other.ids)
            assert np.nanmax(np.abs(one.logprobs - other.logprobs)) < TOLERANCE
            assert np.nanmax(np.abs(one.entropy - other.entropy)) < TOLERANCE


# -- one hash an image -----------------------------------------------------------------------------


@pytest.mark.parametrize("session", [False, True], ids=["probe", "session"])
def test_an_image_of_a_call_is_hashed_once(session, probe_of, monkeypatch):
    probe = probe_of("internvl").session() if session else probe_of("internvl")
    hashes = counted(monkeypatch, messages, "digest")
    requests = asked([picture(seed % 3) for seed in range(6)])
    results = list(probe.generate_many(requests, **GREEDY))
    assert len(hashes) == 6
    assert len({each.meta["image_digests"][0] for each in results}) == 3


def test_a_conversation_whose_image_was_edited_in_place(probe_of):
    """Its digest was kept with the part, and would be that of the former image."""
    probe = probe_of("internvl")
    conversation = probe.conversation("What is this?", picture(1))
    with probe.session() as session:
        first = session.generate(conversation, **GREEDY)
        conversation.images[0].paste((255, 0, 0), (0, 0, 20, 20))
        second = session.generate(conversation, **GREEDY)
    assert first.meta["image_digests"] != second.meta["image_digests"]
    wanted = probe.generate("What is this?", conversation.images[0], **GREEDY)
    assert second.meta["image_digests"] == wanted.meta["image_digests"]
    np.testing.assert_allclose(second.prompt.logprobs, wanted.prompt.logprobs, atol=TOLERANCE)


# -- the head, and the options ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["internvl", "qwen2_vl", "gemma3", "mllama"])
def test_the_head_runs_over_the_prompts_of_a_batch_together(name, probe_of, monkeypatch):
    probe = probe_of(name)
    requests = asked([picture(seed, 40 + 20 * seed, 50) for seed in range(6)])
    calls = counted(monkeypatch, capture.Head, "__call__")
    results = list(probe.generate_many(requests, batch_size=6, **GREEDY))
    assert len(calls) == 2, "one row to learn how many logits it has, then all others"
    assert sum(len(rows) for _, rows in calls) == sum(int(each.prompt.scored.sum()) for each in results)
    assert_as_alone(probe, requests, results)


def test_the_head_is_given_no_more_rows_than_fit_a_chunk(probe_of, monkeypatch):
    probe = probe_of("internvl")
    requests = asked([picture(seed) for seed in range(6)])
    width = probe.engine.adapter.head.weight.shape[0]
    monkeypatch.setattr(capture, "CHUNK_BYTES", 4 * width * 5)
    calls = counted(monkeypatch, capture.Head, "__call__")
    results = list(probe.generate_many(requests, batch_size=6, **GREEDY))
    assert {len(rows) for _, rows in calls} <= {1, 2, 3, 4, 5}
    assert len(calls) < sum(int(each.prompt.scored.sum()) for each in results) / 4
    assert_as_alone(probe, requests, results)


@pytest.mark.parametrize("keep", ["logits", ("logits", "hidden"), "hidden"])
def test_full_rows_and_states_of_a_batch_are_those_of_each_prompt(keep, probe_of, tmp_path):
    probe = probe_of("internvl")
    requests = asked([picture(seed, 40 + 30 * seed, 50) for seed in range(3)])
    results = list(probe.generate_many(requests, batch_size=3, keep=keep, **GREEDY))
    kept = [each for each in ("logits", "hidden") if each in keep]
    stored = list(probe.generate_many(requests, batch_size=3, keep=tmp_path, **GREEDY))
    for request, result, other in zip(requests, results, stored, strict=True):
        alone = probe.generate(request.question, request.image, keep=("logits", "hidden"), **GREEDY)
        for column in kept:
            for side in ("prompt", "output"):
                got, wanted = (getattr(getattr(each, side), column) for each in (result, alone))
                np.testing.assert_allclose(got, wanted, atol=TOLERANCE)
        np.testing.assert_allclose(other.prompt.logits, alone.prompt.logits, atol=TOLERANCE)


def test_options_are_validated_once_a_call_and_once_a_batch(probe_of, monkeypatch):
    probe = probe_of("internvl")
    calls = counted(monkeypatch, engine, "generation_config")
    list(probe.generate_many([f"Question {place}?" for place in range(8)], batch_size=4, **GREEDY))
    assert len(calls) <= 2 + 2, "before anything is read, for the size of a batch, and in each batch"


def test_rows_of_a_few_steps_of_a_batch_are_reduced_together(probe_of, monkeypatch):
    probe = probe_of("internvl")
    reductions = counted(monkeypatch, capture, "row_stats")
    requests = ["Question one?", "Question two, a longer one?"]
    results = list(probe.generate_many(requests, batch_size=2, prompt=False, max_new_tokens=8, do_sample=False))
    assert len(reductions) == 2
    assert [len(rows) for rows, *_ in reductions] == [2 * capture.WAITING] * 2
    for request, result in zip(requests, results, strict=True):
        alone = probe.generate(request, max_new_tokens=8, do_sample=False)
        np.testing.assert_allclose(result.output.logprobs, alone.output.logprobs, atol=TOLERANCE)
        assert np.array_equal(result.output.ranks, alone.output.ranks)


# -- features between batches ----------------------------------------------------------------------


def test_images_that_do_not_come_again_cost_no_look_at_the_model(probe_of, monkeypatch):
    probe = probe_of("internvl")
    states = counted(monkeypatch, feature_cache, "encoder_state")
    requests = asked([picture(seed) for seed in (0, 1, 2, 0, 3, 4, 5, 6)])
    results = list(probe.generate_many(requests, batch_size=4, **GREEDY))
    assert states == [], "one image comes again in its own batch, in which the model cannot change"
    assert_as_alone(probe, requests, results)


def test_an_image_of_several_batches_is_remembered(probe_of, monkeypatch):
    probe = probe_of("internvl")
    states = counted(monkeypatch, feature_cache, "encoder_state")
    requests = asked([picture(0)] * 40)
    results = list(probe.generate_many(requests, **GREEDY))
    told = [each.meta["image_features"] for each in results]
    assert 2 <= len(states) == len({each.meta["timings"]["encode_s"] for each in results})
    assert told.count("reused in part") == 16, "of the first batch; the others look its features up"
    assert told.count("reused") == 24
    assert_as_alone(probe, requests[::13], results[::13])


def test_questions_about_one_image_need_one_prefill_in_several_windows(probe_of, monkeypatch):
    probe, image = probe_of("internvl"), picture(0)
    list(probe.score_many([(f"Is it {place}?", image) for place in range(3)], ["yes", "no"]))  # which tries what it may
    prefills = counted(monkeypatch, beginnings, "prefill")
    results = list(probe.score_many([(f"Is it {place}?", image) for place in range(130)], ["yes", "no"]))
    assert len(prefills) == 1
    due = probe.score("Is it 129?", ["yes", "no"], image).logprobs
    np.testing.assert_allclose(results[-1].logprobs, due, atol=1e-4)


def test_weights_that_change_between_two_results_are_in_the_next_batch(checkpoint):
    probe = vlmprobe.load(checkpoint("internvl"), device="cpu", dtype="float32")
    requests = asked([picture(0)] * 8)
    results = probe.generate_many(requests, batch_size=2, **GREEDY)
    first = list(islice(results, 4))
    with torch.no_grad():
        for weight in probe.engine.adapter.backbone.vision_tower.parameters():
            weight.mul_(1.2)
    rest = list(results)
    assert_as_alone(probe, requests[4:], rest)
    same = probe.generate(requests[0].question, requests[0].image, **GREEDY)
    assert np.nanmax(np.abs(first[0].prompt.logprobs - same.prompt.logprobs)) > TOLERANCE, "the change is seen at all"


# -- images read by threads ------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Paths of many pictures."""
    paths = []
    for seed in range(24):
        paths.append(str(tmp_path / f"{seed}.png"))
        picture(seed).save(paths[-1])
    return paths


def threads():
    return [each for each in threading.enumerate() if each.name == "vlmprobe images"]


def ended(seconds=10):
    end = time.monotonic() + seconds
    while threads() and time.monotonic() < end:
        time.sleep(0.005)
    return not threads()


def forms(path):
    """A request about a file, in every form in which it may be given."""
    chat = [{"role": "user", "content": [{"type": "image", "path": path}, {"type": "text", "text": "Hi"}]}]
    link = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": path}}, {"type": "text", "text": "Hi"}]}
    ]
    with open(path, "rb") as file:
        data = file.read()
    return [("Hi", path), Request("Hi", [path]), {"question": "Hi", "image": {"bytes": data, "path": None}}, chat, link]


def test_files_give_the_same_as_images(files, probe_of, monkeypatch):
    read = []
    run = Job.run
    monkeypatch.setattr(Job, "run", lambda self: read.append(self.source) or run(self))
    probe = probe_of("internvl")
    requests = [form for path in files[:4] for form in forms(path)]
    results = list(probe.generate_many(requests, batch_size=5, **GREEDY))
    wanted = [probe.generate("Hi", picture(seed), **GREEDY) for seed in range(4)]
    assert len(results) == 20
    for place, result in enumerate(results):
        assert result.meta["image_digests"] == wanted[place // 5].meta["image_digests"]
        np.testing.assert_allclose(result.output.logprobs, wanted[place // 5].output.logprobs, atol=TOLERANCE)
    assert len(read) == 20, "each by a job"
    assert ended()


def test_images_and_texts_start_no_thread(probe_of, monkeypatch):
    started = counted(monkeypatch, Decoder, "_work")
    requests = [*asked([picture(seed) for seed in range(4)]), "and a text"]
    list(probe_of("internvl").generate_many(requests, batch_size=2, **GREEDY))
    assert started == []


def test_the_iterator_is_advanced_in_one_thread_and_one_window_ahead(files, probe_of):
    seen = []

    def requests():
        for place, path in enumerate(files):
            seen.append(threading.current_thread())
            yield Request("Hi", path, id=place)

    results = probe_of("internvl").generate_many(requests(), batch_size=4, **GREEDY)
    assert not seen
    for place in range(8):
        assert next(results).meta["id"] == place
        assert len(seen) == 4 * (place // 4 + 2)
    results.close()
    assert set(seen) == {threading.current_thread()}
    assert ended()


def test_texts_among_files_are_read_ahead_with_them(files, probe_of, monkeypatch):
    names = []
    run = Job.run
    monkeypatch.setattr(Job, "run", lambda self: names.append(self.source) or run(self))
    requests = [("Hi", files[0]), "a text", ("Hi", files[1]), "another", ("Hi", files[2])]
    results = list(probe_of("internvl").generate_many(requests, **GREEDY))
    assert sorted(names) == sorted(files[:3])
    assert [len(each.images) for each in results] == [1, 0, 1, 0, 1]


def test_errors_keep_their_places(files, probe_of, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    paths = [*files[:3], str(broken), *files[3:6], str(tmp_path / "none.png"), files[6]]
    probe = probe_of("internvl")
    found = list(probe.generate_many([("Hi", each) for each in paths], batch_size=2, on_error="keep", **GREEDY))
    assert [place for place, each in enumerate(found) if isinstance(each, Failure)] == [3, 7]
    assert all(isinstance(found[place].error, ImageError) for place in (3, 7))
    assert "broken.png" in str(found[3].error)
    assert "request 7" in str(found[7].error)
    results = probe.generate_many([("Hi", each) for each in paths], batch_size=2, **GREEDY)
    assert len(list(islice(results, 3))) == 3
    with pytest.raises(ImageError, match="request 3"):
        next(results)
    assert ended()


def test_an_error_of_the_iterator_comes_after_the_results_before_it(files, probe_of):
    def requests():
        yield from (("Hi", each) for each in files[:5])
        raise KeyError("of the caller")

    results = probe_of("internvl").generate_many(requests(), batch_size=2, **GREEDY)
    assert len(list(islice(results, 4))) == 4
    with pytest.raises(KeyError, match="of the caller"):
        list(results)
    assert ended()


def test_what_is_decoded_ahead_is_bounded_in_bytes(files, probe_of, monkeypatch):
    most = []
    finish = Decoder.finish
    monkeypatch.setattr(Decoder, "finish", lambda self, job: (most.append(self.held), finish(self, job))[1])
    one = 3 * 48 * 40
    monkeypatch.setattr(batching, "WINDOW_BYTES", 4 * one)
    results = list(probe_of("internvl").generate_many([("Hi", each) for each in files], **GREEDY))
    assert len(results) == len(files)
    assert 0 < max(most) < 2 * (4 + 5) * one, "the limit, and one of each thread, with their files"


def test_ctrl_c_ends_the_threads(files, probe_of, monkeypatch):
    probe = probe_of("internvl")
    plain = type(probe.engine).generate

    def interrupted(self, conversations, options, *more):
        results = plain(self, conversations, options, *more)
        os.kill(os.getpid(), signal.SIGINT)
        return results

    monkeypatch.setattr(type(probe.engine), "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(probe.generate_many([("Hi", each) for each in files], batch_size=4, **GREEDY))
    assert ended()
