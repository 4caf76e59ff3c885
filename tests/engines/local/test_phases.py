"""Where the time of a run of the model goes: each phase, made slower, is the one that takes longer."""

from __future__ import annotations

import time

import pytest

import vlmprobe
from vlmprobe.demo import sample_images

SLOW, NEW = 0.15, 4


@pytest.fixture(scope="module")
def probe():
    return vlmprobe.load("demo")


def phases(probe, images, **options):
    questions = [("Describe the picture.", image) for image in images]
    results = list(probe.generate_many(questions, max_new_tokens=NEW, min_new_tokens=NEW, progress=False, **options))
    for result in results:
        parts = {name: round(seconds, 3) for name, seconds in result.meta["phases"].items()}
        assert sum(result.meta["phases"].values()) == pytest.approx(result.meta["timings"]["generate_s"]), parts
        assert all(seconds >= 0 for seconds in parts.values())
    return results[0].meta["phases"]


def test_the_vision_tower(probe):
    owner, _ = probe.engine.adapter.image_encoder
    tower = next(module for path, module in owner.named_modules() if "vision" in path)
    handle = tower.register_forward_pre_hook(lambda *_: time.sleep(SLOW))
    try:
        slow = phases(probe, sample_images()[:2])
        assert SLOW <= slow["vision_s"] < 2 * SLOW
        assert max(slow["prefill_s"], slow["decode_s"]) < SLOW
        alone = phases(probe, sample_images()[:1])  # nothing stands between prompt and encoder there
        assert set(alone) == {"vision_and_prefill_s", "decode_s"}
        assert alone["vision_and_prefill_s"] >= SLOW
    finally:
        handle.remove()


def test_the_prompt(probe):
    runs = []

    def slow_first(*_):
        runs.append(None)
        time.sleep(SLOW if len(runs) == 1 else 0)

    handle = probe.engine.adapter.backbone.register_forward_pre_hook(slow_first)
    try:
        slow = phases(probe, [None, None])
    finally:
        handle.remove()
    assert set(slow) == {"prefill_s", "decode_s"}
    assert slow["prefill_s"] >= SLOW > slow["decode_s"]


def test_the_answer(probe):
    def slow(ids, rows):
        time.sleep(SLOW / NEW)
        return rows

    result = probe.generate("Describe the picture.", max_new_tokens=NEW, min_new_tokens=NEW, logits_processor=[slow])
    assert result.meta["phases"]["decode_s"] >= SLOW > result.meta["phases"]["prefill_s"]
