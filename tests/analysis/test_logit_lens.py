"""What every layer says, against the hidden states that transformers itself returns, and the model's own logits."""

from __future__ import annotations

import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from common import QUESTION, picture
from counting import counting
from reference import chat, columns, encode, extended, forward

import vlmprobe
from vlmprobe.analysis.logit_lens import lens
from vlmprobe.errors import CapabilityError, GenerationOptionError, MessageError, ResultError

FEW = ("llava", "qwen2_vl", "mllama", "gemma3", "internvl", "cohere2_vision", "gemma4")
OPTIONS = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
NUMBERS = ("logprobs", "entropy", "ranks", "logsumexp")


def own_layers(own, inputs) -> np.ndarray:
    """Logits [L, S, V] of every layer: its output through the norm and the model's own ``forward`` from there on."""
    model = own.model
    decoder = model.get_decoder()
    outputs = []
    handles = [
        layer.register_forward_hook(
            lambda _, __, output: outputs.append(output[0] if isinstance(output, tuple) else output)
        )
        for layer in decoder.layers
    ]
    with torch.no_grad():
        model(**inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    rows = []
    for states in outputs:
        normed = decoder.norm(states)

        def put(_, __, output, normed=normed):
            output.last_hidden_state = normed
            return output

        handle = model.model.register_forward_hook(put)  # soft-capping and scaling after it stay the model's own
        rows.append(forward(own, inputs))
        handle.remove()
    return np.stack(rows)


@pytest.mark.parametrize("name", FEW)
def test_layers_of_an_answer_are_those_of_a_forward(probe_of, own, name):
    found = lens(probe_of(name), QUESTION, picture(), alternatives=4, **OPTIONS)
    model, ids = own(name), found.table.ids
    inputs = encode(model, chat(QUESTION, picture()))
    start = inputs["input_ids"].shape[1]
    logits = own_layers(model, extended(model, inputs, ids.tolist()))[:, start - 1 : start + 4]
    assert found.logprobs.shape == logits.shape[:2]
    assert found.layers.tolist() == list(range(len(logits)))
    for layer, rows in enumerate(logits):
        expected = columns(rows, ids)
        for column in ("logprobs", "entropy", "logsumexp"):
            np.testing.assert_allclose(getattr(found, column)[layer], expected[column], atol=1e-4, err_msg=column)
        np.testing.assert_allclose(found.top_logprobs[layer], expected["sorted"][:, :4], atol=1e-4)
        said = np.take_along_axis(rows, found.top_ids[layer], axis=-1) - expected["logsumexp"][:, None]
        np.testing.assert_allclose(said, found.top_logprobs[layer], atol=1e-4)
    np.testing.assert_array_equal(found.ranks[-1], found.table.ranks)
    np.testing.assert_allclose(found.logprobs[-1], found.table.logprobs, atol=1e-5)  # C12


@pytest.mark.parametrize("name", FEW)
def test_the_answer_is_that_of_generate_and_a_given_one_has_the_same_layers(probe_of, name):
    probe = probe_of(name)
    plain = probe.generate(QUESTION, picture(), **OPTIONS)
    found = lens(probe, QUESTION, picture(), **OPTIONS)
    np.testing.assert_array_equal(found.result.output.logprobs, plain.output.logprobs)
    assert found.result.text == plain.text
    for answer in (plain, plain.output.ids):
        given = lens(probe, QUESTION, picture(), answer=answer)
        assert given.result is None
        for column in ("logprobs", "entropy", "logsumexp"):
            np.testing.assert_allclose(getattr(given, column), getattr(found, column), atol=1e-4)


@pytest.mark.parametrize("name", FEW)
def test_layers_of_a_prompt(probe_of, own, name):
    probe = probe_of(name)
    found = lens(probe, QUESTION, picture(), of="prompt")
    whole = probe.generate(QUESTION, picture(), **OPTIONS).prompt
    np.testing.assert_array_equal(found.rows, np.flatnonzero(whole.scored))
    np.testing.assert_array_equal(found.table.ids, whole.ids)
    np.testing.assert_allclose(found.logprobs[-1], whole.logprobs[found.rows], atol=1e-5)
    logits = own_layers(own(name), encode(own(name), chat(QUESTION, picture())))
    places = whole.positions[found.rows] - 1
    for layer, rows in enumerate(logits):
        expected = columns(rows[places], whole.ids[found.rows])
        np.testing.assert_allclose(found.logprobs[layer], expected["logprobs"], atol=1e-4)


def test_original_format(tmp_path):
    from common import GOLDEN

    probe = vlmprobe.load(GOLDEN / "internvl2-internlm2", device="cpu", dtype="float32")
    found = lens(probe, QUESTION, picture(), **OPTIONS)
    np.testing.assert_allclose(found.logprobs[-1], found.table.logprobs, atol=1e-5)
    assert np.abs(found.logprobs[0] - found.logprobs[-1]).max() > 1e-3
    given = lens(probe, QUESTION, picture(), answer=found.result)
    np.testing.assert_allclose(given.logprobs, found.logprobs, atol=1e-4)


def test_chosen_layers_and_rows(probe_of):
    probe = probe_of("llava")
    whole = lens(probe, QUESTION, picture(), **OPTIONS)
    some = lens(probe, QUESTION, picture(), layers=[-1, 0], rows=[1, -1], **OPTIONS)
    assert some.layers.tolist() == [0, 2]
    assert some.rows.tolist() == [1, 4]
    for column in NUMBERS:
        np.testing.assert_array_equal(getattr(some, column), getattr(whole, column)[[0, 2]][:, [1, 4]])
    assert some.tokens == [whole.tokens[1], whole.tokens[4]]
    first = lens(probe, QUESTION, picture(), layers=[1], rows=slice(2), **OPTIONS)
    np.testing.assert_array_equal(first.top_ids, whole.top_ids[[1]][:, :2])
    assert first.top_tokens[0] == whole.top_tokens[1][:2]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "internvl"])
def test_one_encoding_and_one_prefill(probe_of, name):
    probe = probe_of(name)
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as plain:
        probe.generate(QUESTION, picture(), **OPTIONS)
    for more in ({**OPTIONS}, {"answer": "It is a cat."}, {"of": "prompt"}):
        with counting(adapter.model, adapter.layers) as count:
            lens(probe, QUESTION, picture(), **more)
        assert sum(count.pictures) == sum(plain.pictures) > 0, more
        assert count.prefills == 1, more
    assert len(count.positions) == 1, "nothing is decoded where nothing is generated"


def test_a_long_prompt_is_read_in_chunks(probe_of, monkeypatch):
    """No more than one chunk of logits is alive at a time, and of no layer do the states stay."""
    probe = probe_of("llava")
    head = type(probe.engine.head)
    original = head.__call__
    logits: list[weakref.ref] = []
    states: list[weakref.ref] = []
    alive: list[tuple[int, int]] = []

    def spy(self, hidden):
        alive.append((sum(each() is not None for each in logits), sum(each() is not None for each in states)))
        made = original(self, hidden)
        assert len(made) <= 8
        logits.append(weakref.ref(made))
        states.append(weakref.ref(hidden))
        return made

    monkeypatch.setattr(head, "__call__", spy)
    vocabulary = probe.engine.adapter.head.weight.shape[0]
    monkeypatch.setattr("vlmprobe.engines.local.capture.CHUNK_BYTES", 4 * vocabulary * 8)
    found = lens(probe, QUESTION * 12, picture(), of="prompt")
    assert found.logprobs.shape[1] > 100
    assert len(alive) > 3 * 12
    assert max(count for count, _ in alive) <= 1
    assert max(count for _, count in alive) <= 1


def test_a_layer_that_does_not_run_is_nan(probe_of):
    """Without a picture Mllama skips its cross-attention layers."""
    probe = probe_of("mllama")
    found = lens(probe, QUESTION, **OPTIONS)
    skipped = np.isnan(found.logprobs).all(axis=1)
    cross = probe.engine.adapter.model.config.text_config.cross_attention_layers
    assert np.flatnonzero(skipped).tolist() == cross
    assert (found.ranks[skipped] == -1).all()
    assert (found.top_ids[skipped] == -1).all()
    assert not np.isin(found.leads, cross).any()
    assert not np.isin(found.settles, cross).any()


def test_leads_and_settles_by_hand(probe_of):
    found = lens(probe_of("llava"), QUESTION, picture(), **OPTIONS)
    ranks = np.array([[0, 3, 0, 1, -1], [2, 0, 0, 5, 0], [0, 0, 0, 1, 0]])
    made = replace(found, ranks=ranks, layers=np.array([0, 4, 9]))
    assert made.leads.tolist() == [0, 4, 0, -1, 4]
    assert made.settles.tolist() == [9, 4, 0, -1, 4]


def test_hooks_are_gone_also_after_an_error(probe_of):
    probe = probe_of("llava")
    model = probe.engine.adapter.model

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in model.modules())

    probe.generate(QUESTION, picture(), **OPTIONS)  # transformers leaves hooks of its own at the first run
    before = hooks()
    with pytest.raises(GenerationOptionError):
        lens(probe, QUESTION, picture(), max_new_tokens=0)

    def fail(*_):
        raise KeyboardInterrupt

    handle = probe.engine.adapter.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        lens(probe, QUESTION, picture(), **OPTIONS)
    handle.remove()
    assert hooks() == before
    lens(probe, QUESTION, picture(), **OPTIONS)
    assert hooks() == before


def test_threads_do_not_see_each_other(probe_of):
    probe = probe_of("llava")
    images = [picture(seed) for seed in range(4)]
    serial = [lens(probe, QUESTION, image, **OPTIONS).logprobs for image in images]
    found: dict[int, np.ndarray] = {}

    def work(place: int) -> None:
        found[place] = lens(probe, QUESTION, images[place], **OPTIONS).logprobs

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, expected in enumerate(serial):
        np.testing.assert_array_equal(found[place], expected)


def test_errors_name_the_remedy(probe_of):
    probe = probe_of("llava")
    for wrong in ([3], [-4], ["last"], [True]):
        with pytest.raises(CapabilityError, match=r"no decoder layer.*has 3, 0 to 2"):
            lens(probe, QUESTION, picture(), layers=wrong, **OPTIONS)
    with pytest.raises(CapabilityError, match="empty"):
        lens(probe, QUESTION, picture(), layers=[], **OPTIONS)
    with pytest.raises(MessageError, match="no row 5"):
        lens(probe, QUESTION, picture(), rows=[5], **OPTIONS)
    with pytest.raises(MessageError, match="first token"):
        lens(probe, QUESTION, picture(), of="prompt", rows=[0])
    with pytest.raises(CapabilityError, match="num_beams=1"):
        lens(probe, QUESTION, picture(), num_beams=2, **OPTIONS)
    with pytest.raises(MessageError, match="do_sample would do nothing"):
        lens(probe, QUESTION, picture(), answer="yes", do_sample=True)
    with pytest.raises(MessageError, match="of must be"):
        lens(probe, QUESTION, picture(), of="image")

    class Server:
        def check(self, conversations, options): ...

    with pytest.raises(CapabilityError, match=r"every decoder layer.*vlmprobe\.load"):
        lens(replace(probe, engine=Server()), QUESTION)


def test_a_model_whose_last_layer_is_not_its_answer_is_refused(probe_of, monkeypatch):
    """Something between the last layer and the head: the numbers of the other layers would mean nothing."""
    probe = probe_of("llava")
    norm = probe.engine.adapter.final_norm
    handle = norm.register_forward_hook(lambda _, __, output: output * 1.5)
    monkeypatch.setattr(type(probe.engine.adapter), "final_norm", property(lambda self: torch.nn.Identity()))
    try:
        with pytest.raises(CapabilityError, match=r"final_norm.*C12"):
            lens(probe, QUESTION, picture(), **OPTIONS)
    finally:
        handle.remove()


def test_a_model_with_layers_of_another_shape_is_refused(probe_of):
    pytest.importorskip("timm")
    with pytest.raises(CapabilityError, match="no hidden states"):
        lens(probe_of("gemma3n"), QUESTION, picture(), **OPTIONS)


@pytest.mark.parametrize("style", ["default", "dark_background", "grayscale"])
def test_plot_says_every_layers_word(probe_of, style):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    found = lens(probe_of("llava"), QUESTION, picture(), **OPTIONS)
    with pyplot.style.context(style):
        ax = found.plot()
        assert len(ax.texts) == 15
        assert len(ax.patches) == (found.leads >= 0).sum()
        assert ax.xaxis.label.get_color() == pyplot.rcParams["axes.labelcolor"]
        pyplot.close(ax.figure)
    with pytest.raises(ResultError, match="rows="):
        lens(probe_of("llava"), QUESTION * 12, picture(), of="prompt").plot()


def test_table_for_pandas(probe_of):
    pytest.importorskip("pandas")
    found = lens(probe_of("llava"), QUESTION, picture(), **OPTIONS)
    frame = found.to_pandas()
    assert len(frame) == 15
    row = frame[(frame.layer == 1) & (frame.row == 3)].iloc[0]
    assert row.logprob == found.logprobs[1, 3]
    assert row.says == found.top_tokens[1][3][0]


def test_analysis_has_a_door_for_the_function():
    from vlmprobe import analysis
    from vlmprobe.analysis.image_contrast import contrast

    assert analysis.lens is lens
    assert analysis.contrast is contrast
    assert {"contrast", "lens"} <= set(dir(analysis))
    with pytest.raises(AttributeError, match="Did you mean lens"):
        _ = analysis.lense
