"""Many threads on one probe, and on several probes of one model: the results of serial calls."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from common import QUESTION, picture

import vlmprobe

THREADS = 8


def jobs(probe):
    """Calls of every kind, with pictures of several sizes and without, sampled and not."""
    sampled = {"max_new_tokens": 5, "do_sample": True, "temperature": 1.5}
    made = []
    for place in range(THREADS):
        image = picture(place, 40 + 12 * place, 90 - 7 * place)
        made += [
            lambda image=image: probe.generate(QUESTION, image=image, max_new_tokens=4, do_sample=False),
            lambda image=image, place=place: probe.generate("Hi", image=image, seed=place, **sampled),
            lambda place=place: probe.generate(f"Which of the {place} images?", max_new_tokens=3, num_beams=2),
            lambda image=image: probe.score(QUESTION, ["yes", "no", "a tiger"], image=image),
        ]
    return made


def numbers(made):
    tables = made.tables if isinstance(made, vlmprobe.Scores) else (made.prompt, made.output)
    return [(table.ids.tolist(), table.logprobs.tolist(), table.entropy.tolist(), table.tokens) for table in tables]


def same(one, other):
    return all(
        ids == more[0]
        and np.array_equal(logprobs, more[1], equal_nan=True)
        and np.array_equal(entropy, more[2], equal_nan=True)
        and tokens == more[3]
        for (ids, logprobs, entropy, tokens), more in zip(numbers(one), numbers(other), strict=True)
    )


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "mllama", "internvl", "gemma3"])
def test_eight_threads_give_what_one_gives(name, probe_of):
    work = jobs(probe_of(name))
    serial = [job() for job in work]
    with ThreadPoolExecutor(THREADS) as pool:
        for one, other in zip(serial, pool.map(lambda job: job(), work), strict=True):
            assert same(one, other)


def test_probes_of_one_model_take_turns(probe_of):
    adapter = probe_of("qwen2_vl").engine.adapter
    work = jobs(probe_of("qwen2_vl"))
    serial = [job() for job in work]
    others = [job for _ in range(2) for job in jobs(vlmprobe.wrap(adapter.model, adapter.processor))]
    with ThreadPoolExecutor(THREADS) as pool:
        for place, other in enumerate(pool.map(lambda job: job(), others)):
            assert same(serial[place % len(serial)], other)


def test_seeded_calls_on_two_models_do_not_share_draws(probe_of):
    probes = [probe_of("internvl"), probe_of("llava")]
    call = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5}
    serial = [[probe.generate(QUESTION, seed=seed, **call) for seed in range(4)] for probe in probes]
    work = [(place, seed) for seed in range(4) for place in (0, 1)] * 2
    with ThreadPoolExecutor(THREADS) as pool:
        made = pool.map(lambda each: probes[each[0]].generate(QUESTION, seed=each[1], **call), work)
        for (place, seed), other in zip(work, made, strict=True):
            assert same(serial[place][seed], other)


def test_an_error_in_one_thread_leaves_the_others_alone(probe_of):
    probe = probe_of("internvl")
    calm = probe.generate(QUESTION, image=picture(), max_new_tokens=4, do_sample=False)
    owner = threading.local()

    def fail(*_):
        if getattr(owner, "fails", False):
            raise RuntimeError("this thread only")

    def call(fails):
        owner.fails = fails
        try:
            return probe.generate(QUESTION, image=picture(), max_new_tokens=4, do_sample=False)
        except RuntimeError as error:
            return error

    handle = probe.engine.adapter.model.get_decoder().register_forward_pre_hook(fail)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            made = list(pool.map(call, [place % 3 == 0 for place in range(24)]))
    finally:
        handle.remove()
    for place, each in enumerate(made):
        assert isinstance(each, RuntimeError) if place % 3 == 0 else same(each, calm)


def test_generate_many_in_two_threads(probe_of):
    probe = probe_of("qwen2_5_vl")
    requests = [vlmprobe.Request(QUESTION, picture(seed, 50 + 9 * seed, 60), id=seed) for seed in range(6)]
    options = {"batch_size": 2, "max_new_tokens": 3, "do_sample": False}
    serial = list(probe.generate_many(requests, **options))
    with ThreadPoolExecutor(2) as pool:
        for made in pool.map(lambda _: list(probe.generate_many(requests, **options)), range(2)):
            assert [each.meta["id"] for each in made] == list(range(6))
            assert all(same(one, other) for one, other in zip(made, serial, strict=True))
