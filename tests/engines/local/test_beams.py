"""Beams of one prompt see the same pictures, or are refused: older transformers repeat tiles and mix them."""

from __future__ import annotations

import pytest
import torch
from common import picture

from vlmprobe.errors import CapabilityError


@pytest.fixture
def apart(probe_of):
    """Let each further row that enters the head at the prompt's end differ by this share of its size."""
    backbone, handles = probe_of("internvl").engine.adapter.backbone, []

    def give(share):
        def change(_, __, output):
            states = output.last_hidden_state
            if len(states) > 1 and states.shape[1] > 1:
                noise = torch.randn(states[1:].shape, generator=torch.Generator().manual_seed(0))
                scale = share * states[:1].norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
                output.last_hidden_state = torch.cat([states[:1], states[:1] + scale * noise])
            return output

        handles.append(backbone.register_forward_hook(change))

    yield give
    for handle in handles:
        handle.remove()


def beams(probe):
    return probe.generate("What is it?", image=picture(), max_new_tokens=2, num_beams=3, do_sample=False)


def test_beams_that_saw_other_tiles_are_refused(probe_of, apart):
    probe = probe_of("internvl")
    before = beams(probe).output.logprobs
    apart(0.05)
    with pytest.raises(CapabilityError, match=r"different tiles of its image.*num_beams=1"):
        beams(probe)
    assert len(before) == 2


def test_rounding_between_beams_is_no_difference(probe_of, apart):
    apart(1e-6)
    assert len(beams(probe_of("internvl")).output) == 2


def test_after_a_refusal_the_next_call_is_right(probe_of):
    probe = probe_of("internvl")
    expected = beams(probe)
    handle = probe.engine.adapter.backbone.register_forward_hook(
        lambda _, __, output: setattr(output, "last_hidden_state", torch.randn_like(output.last_hidden_state))
    )
    try:
        with pytest.raises(CapabilityError):
            beams(probe)
    finally:
        handle.remove()
    assert beams(probe).output.logprobs.tolist() == expected.output.logprobs.tolist()
