"""The temperature decides whether an answer is sampled, in Python as on the command line."""

from __future__ import annotations

import numpy as np
import pytest

import vlmprobe
from vlmprobe.engines.option_checks import greedy_by_default, with_temperature
from vlmprobe.errors import GenerationOptionError

SHORT = {"max_new_tokens": 6, "top_k": 0, "prompt": False}


@pytest.mark.parametrize("given", [{}, {"do_sample": True}, {"do_sample": False}, {"temperature": None, "top_p": 0.5}])
def test_without_a_temperature_nothing_changes(given):
    assert with_temperature(given) == given


@pytest.mark.parametrize("zero", [0, 0.0, np.float32(0)])
@pytest.mark.parametrize("do_sample", [{}, {"do_sample": None}, {"do_sample": False}])
def test_zero_is_greedy(zero, do_sample):
    assert with_temperature({"temperature": zero, **do_sample}) == {"do_sample": False}


@pytest.mark.parametrize("do_sample", [{}, {"do_sample": None}, {"do_sample": True}])
def test_above_zero_samples(do_sample):
    given = {"temperature": 0.7, **do_sample}
    assert with_temperature(given) == {"temperature": 0.7, "do_sample": True}
    assert given == {"temperature": 0.7, **do_sample}


@pytest.mark.parametrize(("temperature", "do_sample"), [(0, True), (0.7, False)])
def test_what_contradicts_itself_is_told(temperature, do_sample):
    with pytest.raises(GenerationOptionError, match=f"do_sample={do_sample} contradicts temperature={temperature}"):
        with_temperature({"temperature": temperature, "do_sample": do_sample})


@pytest.mark.parametrize("by_default", [False, True], ids=["greedy by default", "sampling by default"])
def test_a_model_does_so_whatever_its_checkpoint_says(by_default, checkpoint):
    probe = vlmprobe.load(checkpoint("llava"), device="cpu", check=False)
    probe.engine.adapter.model.generation_config.update(do_sample=by_default, temperature=0.6 if by_default else None)
    greedy = probe.generate("Hi", temperature=0, **SHORT)
    assert greedy.output.ranks.tolist() == [0] * 6
    assert not greedy.meta["generation_config"].get("do_sample")
    drawn = probe.generate("Hi", temperature=3.0, seed=1, **SHORT)
    assert drawn.meta["generation_config"]["do_sample"] is True
    assert drawn.meta["generation_config"]["temperature"] == 3.0
    same = probe.generate("Hi", temperature=3.0, do_sample=True, seed=1, **SHORT)
    assert drawn.output.ids.tolist() == same.output.ids.tolist()
    assert max(drawn.output.ranks) > 0


def test_sample_refuses_to_be_greedy(probe_of):
    with pytest.raises(GenerationOptionError, match="temperature"):
        probe_of("llava").sample("Hi", n=2, temperature=0, max_new_tokens=1)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, {"do_sample": False}),
        ({"max_new_tokens": 3}, {"do_sample": False, "max_new_tokens": 3}),
        ({"do_sample": True}, {"do_sample": True}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
    ],
)
def test_greedy_unless_the_options_say_otherwise(options, wanted):
    assert greedy_by_default(options) == wanted
