"""A server's result says how large its images became, if the client has the model's processor."""

from __future__ import annotations

import numpy as np
import wire_engines as wire
from PIL import Image
from wire_server import WireServer

import vlmprobe


def test_the_sizes_of_the_local_model_are_recorded_of_a_served_one(probe_of, checkpoint):
    local = probe_of("qwen2_5_vl")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 61, 3), dtype=np.uint8))
    served = {**wire.facts("sglang", "facts"), "/generate": wire.sglang(wire.Model(local, "Where?"))}
    here = local.generate("Where?", image, max_new_tokens=2)
    with WireServer(served) as server:
        known = vlmprobe.connect(server.url, processor=str(checkpoint("qwen2_5_vl")))
        there = known.generate("Where?", image, max_new_tokens=2)
    assert there.meta["resized_sizes"] == here.meta["resized_sizes"] == [[56, 84]]
    assert there.meta["box_format"] == here.meta["box_format"] == "qwen2.5-vl"
