"""A transformers to come: no ``past_key_values``, neither among what a forward takes nor in what it returns.

Both names of the cache are taken until 5.40. Here the old one is gone already: outputs do not answer to it, and every
module refuses it as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pytest
import torch
from common import GOLDEN, QUESTION, picture
from reference import chat, columns, encode, extended, forward
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

import vlmprobe
from vlmprobe.adapter.kv_cache import cache_name, cache_of
from vlmprobe.analysis import contrast, lens
from vlmprobe.analysis.decoding import ImageContrast

OLD = "past_key_values"
RENAMED = "cache" in {field.name for field in fields(BaseModelOutputWithPast)}
OPTIONS = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
next_release = pytest.mark.skipif(not RENAMED, reason="this transformers knows the old name alone")


@pytest.fixture
def without_the_old_name(monkeypatch):
    """Take the old name away from every output; returns what takes it away from the forwards of a model."""

    def renamed(self, key):
        assert key != OLD, f"{type(self).__name__} was asked for {OLD}"
        return key

    def refuse(module, args, kwargs):
        if OLD in kwargs:
            raise TypeError(f"{type(module).__name__}.forward() got an unexpected keyword argument '{OLD}'")

    monkeypatch.delattr(ModelOutput, OLD)
    monkeypatch.setattr(ModelOutput, "_replace_old_cache_name", renamed)
    return lambda model: [each.register_forward_pre_hook(refuse, with_kwargs=True) for each in model.modules()]


@next_release
@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama", "gemma3"])
def test_numbers_without_the_old_name_of_the_cache(checkpoint, own, without_the_old_name, name):
    # Loaded anew, for the hooks stay on it.
    model = AutoModelForImageTextToText.from_pretrained(checkpoint(name), dtype="float32").eval()
    probe = vlmprobe.wrap(model, AutoProcessor.from_pretrained(checkpoint(name)))
    without_the_old_name(model)
    with pytest.raises(TypeError, match=OLD):
        model(**encode(own(name), chat(QUESTION, picture())), **{OLD: None})

    answer = probe.generate(QUESTION, picture(), **OPTIONS)
    ids = answer.output.ids
    inputs = encode(own(name), chat(QUESTION, picture()))
    start = inputs["input_ids"].shape[1]
    expected = columns(forward(own(name), extended(own(name), inputs, ids.tolist()))[start - 1 : start + 4], ids)
    for each in ("logprobs", "entropy", "ranks", "logsumexp"):
        np.testing.assert_allclose(getattr(answer.output, each), expected[each], atol=1e-4)
    layers = lens(probe, QUESTION, picture(), answer=answer)
    streamed = list(probe.stream(QUESTION, picture(), **OPTIONS))
    np.testing.assert_allclose([float(row.logprobs[0]) for row in streamed], expected["logprobs"], atol=1e-4)
    np.testing.assert_allclose(layers.logprobs[-1], expected["logprobs"], atol=1e-4)
    gained = contrast(probe, QUESTION, picture(), against=["noise"], **OPTIONS)
    np.testing.assert_allclose(gained.answer.logprobs, expected["logprobs"], atol=1e-4)

    asked = "no", "yes, a cat"
    scores = probe.score(QUESTION, asked, image=picture())
    with probe.session(picture()) as session:
        again = session.score(QUESTION, asked)
    np.testing.assert_allclose(again.logprobs, scores.logprobs, atol=1e-5)
    for table, total in zip(scores.tables, scores.logprobs, strict=True):
        rows = forward(own(name), extended(own(name), inputs, table.ids.tolist()))[start - 1 : -1]
        assert total == pytest.approx(columns(rows, table.ids)["logprobs"].sum(), abs=1e-4)


@next_release
def test_a_second_prompt_without_the_old_name_of_the_cache(checkpoint, without_the_old_name):
    """What contrastive decoding asks at each step, against the same decoding with both names in place."""
    probe = vlmprobe.load(checkpoint("llava"), device="cpu", dtype="float32")

    def decoded():
        strategy = ImageContrast(probe, QUESTION, picture(), against="blank")
        return probe.generate(QUESTION, picture(), logits_processor=[strategy], **OPTIONS)

    before = decoded()
    without_the_old_name(probe.engine.adapter.model)
    after = decoded()
    assert after.output.ids.tolist() == before.output.ids.tolist()
    np.testing.assert_array_equal(after.output.scores, before.output.scores)


@next_release
@pytest.mark.parametrize("case", ["internvl2-qwen2", "minicpmv-2.6", "omnilmm"])
def test_original_formats_without_the_old_name_of_the_cache(without_the_old_name, case):
    probe = vlmprobe.load(GOLDEN / case, device="cpu", dtype="float32")
    image = picture(2, 120, 90)
    before = probe.generate(QUESTION, image, **OPTIONS), probe.score(QUESTION, ["yes", "no"], image=image)
    without_the_old_name(probe.engine.adapter.model)
    after = probe.generate(QUESTION, image, **OPTIONS), probe.score(QUESTION, ["yes", "no"], image=image)
    np.testing.assert_array_equal(after[0].output.logprobs, before[0].output.logprobs)
    np.testing.assert_array_equal(after[1].logprobs, before[1].logprobs)


@dataclass
class OldOutput(ModelOutput):
    """Of a model that came with its own output class."""

    last_hidden_state: torch.Tensor | None = None


def test_the_name_is_read_off_what_is_called_and_off_what_it_returned():
    def new(input_ids, cache=None, **kwargs): ...

    def old(input_ids, past_key_values=None, **kwargs): ...

    def silent(*args, **kwargs): ...

    assert (cache_name(new), cache_name(old)) == ("cache", OLD)
    assert cache_name(silent) == ("cache" if RENAMED else OLD)
    assert cache_of({"logits": 1, "cache": "c"}) == cache_of({OLD: "c"}) == "c"
    assert cache_of({"logits": 1}) is None
    assert cache_of(OldOutput(last_hidden_state=torch.ones(1))) is None
