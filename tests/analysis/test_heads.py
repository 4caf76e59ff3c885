"""Heads on captured states, against the model's own head, scikit-learn, and trl's way of keeping a value head."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from common import QUESTION, families, picture
from counting import counting
from reference import chat, encode, extended
from safetensors.numpy import save_file

import vlmprobe
from vlmprobe.analysis import heads
from vlmprobe.analysis.heads import LinearHead
from vlmprobe.errors import CapabilityError, CheckpointError, MessageError, ResultError

OPTIONS = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
# Their forward does more than the head, or the head's input is no single state: see C12 of the conformance suite.
MORE_THAN_A_HEAD = {
    "gemma3n",
    "gemma4",
    "paligemma",
    "cohere2_vision",
    "aya_vision",
    "cohere_compass",
    "granite4_vision",
}


@pytest.mark.parametrize("name", [each for each in families() if each not in MORE_THAN_A_HEAD])
def test_states_times_the_models_own_head_are_the_logits(probe_of, own, name):
    result = probe_of(name).generate(QUESTION, picture(), keep={"hidden", "logits"}, **OPTIONS)
    head = own(name).model.get_output_embeddings()
    bias = np.zeros(len(head.weight)) if head.bias is None else head.bias.detach().numpy()
    applied = LinearHead(head.weight.detach().numpy(), bias)
    for table in (result.prompt, result.output):
        rows = table.scored
        np.testing.assert_allclose(applied(table.hidden)[rows], table.logits[rows], atol=1e-4)
        assert np.isnan(applied(table.hidden)[~rows]).all()


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "mllama"])
def test_states_of_a_whole_answer_are_the_backbones(probe_of, own, name):
    """The reference is the last hidden state of the model's own backbone over prompt and answer."""
    probe, model = probe_of(name), own(name)
    result = probe.generate(QUESTION, picture(), keep="hidden", **OPTIONS)
    ids = result.output.ids.tolist()
    found = heads.answer_states(probe, QUESTION, picture(), answer=result)
    inputs = extended(model, encode(model, chat(QUESTION, picture())), ids)
    with torch.no_grad():
        seen = []
        hook = model.model.base_model.register_forward_hook(lambda _, __, out: seen.append(out.last_hidden_state))
        model.model(**inputs)
        hook.remove()
    expected = seen[0][0, len(result.input_ids) - 1 :].numpy()
    assert found.shape == expected.shape == (len(ids) + 1, expected.shape[1])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found[:-1], result.output.hidden, atol=1e-4)
    np.testing.assert_allclose(found, heads.answer_states(probe, QUESTION, picture(), answer=ids), atol=1e-5)


def test_one_forward_for_an_answer(probe_of):
    probe = probe_of("llava")
    adapter = probe.engine.adapter
    with counting(adapter.model, adapter.layers) as count:
        heads.answer_states(probe, QUESTION, picture(), answer="a tiger in the grass")
    assert count.prefills == 1
    assert len(count.pictures) == 1


@pytest.fixture(scope="module")
def scenes():
    from vlmprobe.demo.scenes import held_out

    return list(held_out(160))


@pytest.fixture(scope="module")
def asked(scenes):
    probe = vlmprobe.load("demo", device="cpu")
    requests = [vlmprobe.Request("Which digit is on the left?", scene.picture) for scene in scenes]
    return list(probe.generate_many(requests, keep="hidden", prompt=False, max_new_tokens=2, progress=False))


def test_a_linear_probe_reads_the_left_digit_off_the_state(scenes, asked):
    states, labels = heads.states(asked), [scene.digits[0] for scene in scenes]
    probe = heads.fit_probe(states[:100], labels[:100], strength=10.0)
    right = (probe.predict(states[100:]) == np.array(labels[100:], dtype=str)).mean()
    shuffled = np.random.default_rng(0).permutation(labels[:100])
    chance = (heads.fit_probe(states[:100], shuffled).predict(states[100:]) == np.array(labels[100:], dtype=str)).mean()
    assert right > 0.8
    assert chance < 0.35


@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_is_scikit_learns_regression(classes):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(0)
    states = (random.normal(size=(120, 6)) * [1, 10, 0.1, 3, 1, 0] + 5).astype(np.float32)  # one column is constant
    labels = [f"c{each}" for each in (random.normal(size=(120, classes)) + states[:, :classes]).argmax(1)]
    head = heads.fit_probe(states, labels, strength=2.0)
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=5000)).fit(states, labels)
    np.testing.assert_allclose(head.probabilities(states), reference.predict_proba(states), atol=1e-5)
    assert head.predict(states).tolist() == reference.predict(states).tolist()
    assert head.classes == tuple(reference.classes_)
    assert head.probabilities(states[0]).shape == (classes,)


def test_values_are_ridge_regression():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    random = np.random.default_rng(1)
    states = (random.normal(size=(50, 5)) * 3 + 1).astype(np.float32)
    wanted = np.stack([states @ [1, 2, 0, 0, 1], states[:, 2] - 4], axis=1) + 0.1 * random.normal(size=(50, 2))
    head = heads.fit_values(states, wanted, strength=0.5)
    scaled = StandardScaler().fit_transform(states.astype(np.float64))
    np.testing.assert_allclose(head(states), Ridge(alpha=0.5).fit(scaled, wanted).predict(scaled), atol=1e-8)
    single = heads.fit_values(states, wanted[:, 0].tolist(), strength=0.5)
    np.testing.assert_allclose(single(states)[:, 0], head(states)[:, 0], atol=1e-8)
    assert single(states).shape == (50, 1)
    with pytest.raises(ResultError, match="values, not classes"):
        single.predict(states)


def test_saved_and_loaded(tmp_path):
    random = np.random.default_rng(2)
    head = LinearHead(random.normal(size=(3, 8)), random.normal(size=3), ("a", "b", "ü"), {"layer": "last"})
    path = head.save(tmp_path / "heads" / "digit.safetensors")
    again = LinearHead.load(path)
    np.testing.assert_array_equal(again.weight, head.weight)
    np.testing.assert_array_equal(again.bias, head.bias)
    assert again.classes == head.classes
    assert again.meta == head.meta
    states = random.normal(size=(4, 8))
    np.testing.assert_array_equal(again(states), states @ head.weight.T + head.bias)
    with pytest.raises(ValueError, match="read-only"):
        again.weight[0, 0] = 1


def test_what_is_no_saved_head_is_refused(tmp_path):
    with pytest.raises(ResultError, match=r"\.safetensors"):
        LinearHead(np.ones((1, 2)), np.zeros(1)).save(tmp_path / "head.pkl")
    arrays = {"weight": np.ones((2, 3)), "bias": np.zeros(2)}
    good = {"format": 1, "classes": [], "meta": {}}
    bad = [
        (arrays, None),
        (arrays, "{"),
        (arrays, json.dumps({key: good[key] for key in ("classes", "meta")})),
        (arrays, json.dumps({**good, "classes": ["only one"]})),
        (arrays, json.dumps({**good, "meta": 3})),
        ({"weight": np.ones((2, 3))}, json.dumps(good)),
        ({"weight": np.ones((2, 3)), "bias": np.zeros(3)}, json.dumps(good)),
        ({"weight": np.full((2, 3), np.nan), "bias": np.zeros(2)}, json.dumps(good)),
    ]
    for place, (tensors, text) in enumerate(bad):
        path = tmp_path / f"{place}.safetensors"
        save_file(tensors, path, metadata=None if text is None else {"vlmprobe_head": text})
        with pytest.raises(ResultError, match="not a head that vlmprobe saved"):
            LinearHead.load(path)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(ResultError, match="not a head that vlmprobe saved"):
        LinearHead.load(tmp_path / "text.safetensors")
    with pytest.raises(ResultError, match=r"^No file at .*missing\.safetensors\.$"):
        LinearHead.load(tmp_path / "missing.safetensors")
    save_file(arrays, tmp_path / "later.safetensors", metadata={"vlmprobe_head": json.dumps({**good, "format": 2})})
    with pytest.raises(ResultError, match=r"layout 2, .*a later vlmprobe saved it"):
        LinearHead.load(tmp_path / "later.safetensors")


@pytest.mark.parametrize("way", ["safetensors", "bin", "sharded", "trl", "score", "beside"])
def test_the_head_of_a_reward_model_is_read_from_its_checkpoint(tmp_path, way):
    torch.manual_seed(0)
    layer = torch.nn.Linear(12, 1, bias=way == "trl").to(torch.bfloat16)
    module = {"trl": "v_head.summary", "score": "score"}.get(way, "v_head")
    tensors = {f"{module}.{key}": value.detach() for key, value in layer.state_dict().items()}
    tensors["model.layers.0.mlp.weight"] = torch.ones(3, 3)
    from safetensors.torch import save_file as save_torch

    if way == "bin":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        (tmp_path / "training_args.bin").write_bytes(b"no tensors: not looked into")
    elif way == "beside":  # the language model in safetensors, its value head in a file of its own
        save_torch({"model.embed.weight": torch.ones(2, 12)}, tmp_path / "model.safetensors")
        torch.save(tensors, tmp_path / "value_head.bin")
    elif way == "sharded":
        save_torch({"model.embed.weight": torch.ones(2, 12)}, tmp_path / "model-00001-of-00002.safetensors")
        save_torch(tensors, tmp_path / "model-00002-of-00002.safetensors")
    else:
        save_torch(tensors, tmp_path / "model.safetensors")
    head = heads.load_head(tmp_path, "score" if way == "score" else "v_head")
    states = torch.randn(5, 12).to(torch.bfloat16)
    expected = (states.double() @ layer.weight.detach().double().T).numpy()
    expected = expected + (layer.bias.detach().double().numpy() if way == "trl" else 0)
    np.testing.assert_allclose(head(states.float().numpy()), expected, atol=1e-12)
    assert head.meta["module"] == module


def test_a_value_of_every_token_of_an_answer(probe_of, tmp_path):
    probe = probe_of("internvl")
    result = probe.generate(QUESTION, picture(), keep="hidden", **OPTIONS)
    width = result.output.hidden.shape[1]
    weight = np.random.default_rng(3).normal(size=(1, width)).astype(np.float32)
    save_file({"v_head.weight": weight}, tmp_path / "model.safetensors")
    head = heads.load_head(tmp_path)
    np.testing.assert_allclose(head(result.output.hidden)[:, 0], result.output.hidden @ weight[0], rtol=1e-4, atol=1e-5)
    values = head(heads.answer_states(probe, QUESTION, picture(), answer=result))
    assert values.shape == (5, 1)
    np.testing.assert_allclose(values[:4], head(result.output.hidden), atol=1e-4)


def test_checkpoints_without_a_head_one_can_read(tmp_path):
    def checkpoint(name, tensors):
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        return folder

    ones = np.ones((1, 4), np.float32)
    with pytest.raises(CheckpointError, match=r"no module 'v_head'.*Did you mean v_heads"):
        heads.load_head(checkpoint("near", {"v_heads.weight": ones}))
    two_layers = {"v_head.0.weight": np.ones((4, 4), np.float32), "v_head.2.weight": ones}
    with pytest.raises(CheckpointError, match="not one linear layer"):
        heads.load_head(checkpoint("mlp", two_layers))
    with pytest.raises(CheckpointError, match="not one linear layer"):
        heads.load_head(checkpoint("two", {"a.v_head.weight": ones, "b.v_head.weight": ones}))
    with pytest.raises(CheckpointError, match="not one linear layer"):
        heads.load_head(checkpoint("deep", {"v_head.0.weight": ones}))
    with pytest.raises(CheckpointError, match="weights"):
        heads.load_head(checkpoint("shape", {"v_head.weight": np.ones((1, 2, 3), np.float32)}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a weight file"):
        heads.load_head(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="not a weight file"):
        heads.load_head(tmp_path / "missing.safetensors")


def test_a_hostile_pickle_is_not_run(tmp_path):
    import pickle

    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    (tmp_path / "model.bin").write_bytes(pickle.dumps({"v_head.weight": Hostile()}))
    with pytest.raises(CheckpointError, match="not a weight file"):
        heads.load_head(tmp_path / "model.bin")
    torch.save({"v_head.weight": Hostile()}, tmp_path / "zip.bin")
    with pytest.raises(CheckpointError, match="not a weight file"):
        heads.load_head(tmp_path / "zip.bin")
    assert not (tmp_path / "ran").exists()


def test_wrong_states(probe_of, asked):
    head = LinearHead(np.ones((1, 7)), np.zeros(1))
    for wrong in (np.ones((3, 8)), np.ones(6), np.float32(1)):
        with pytest.raises(ResultError, match="width 7"):
            head(wrong)
    result = probe_of("llava").generate(QUESTION, picture(), **OPTIONS)
    with pytest.raises(ResultError, match="keep='hidden'"):
        head(result.output.hidden)
    with pytest.raises(ResultError, match="Result 0 has no states of its output: pass keep='hidden'"):
        heads.states([result])
    with pytest.raises(ResultError, match="no states of its prompt"):
        heads.states(asked, side="prompt")
    with pytest.raises(ResultError, match="no row 9"):
        heads.states(asked, 9)
    with pytest.raises(ResultError, match="no results"):
        heads.states([])
    full = probe_of("llava").generate(QUESTION, picture(), keep="hidden", **OPTIONS)
    with pytest.raises(ResultError, match="image or the first token"):
        heads.states([full], 0, side="prompt")
    with pytest.raises(ResultError, match="different widths"):
        heads.states([full, asked[0]])
    last = heads.states([full], lambda each: len(each.output) - 1)
    np.testing.assert_array_equal(last, full.output.hidden[-1:])
    classifier = LinearHead(np.ones((2, 7)), np.zeros(2), ("a", "b"))
    with pytest.raises(ResultError, match="NaN"):
        classifier.predict(np.full((1, 7), np.nan))


def test_wrong_fits():
    states = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    with pytest.raises(ResultError, match="one class"):
        heads.fit_probe(states, [1] * 6)
    with pytest.raises(ResultError, match="the same length"):
        heads.fit_probe(states, [1, 2])
    with pytest.raises(ResultError, match="the same length"):
        heads.fit_values(states, [1.0, 2.0])
    with pytest.raises(ResultError, match="finite numbers"):
        heads.fit_values(states, [np.nan] * 6)
    with pytest.raises(ResultError, match="finite numbers"):
        heads.fit_values(states, ["a"] * 6)
    for wrong in (states[0], states.astype(int), states[:0], "x"):
        with pytest.raises(ResultError, match="real numbers"):
            heads.fit_probe(wrong, [0, 1])
    holed = states.copy()
    holed[2] = np.nan
    with pytest.raises(ResultError, match="NaN or infinite"):
        heads.fit_probe(holed, [0, 1] * 3)
    for wrong in (0, -1, True, "1"):
        with pytest.raises(ResultError, match="strength"):
            heads.fit_values(states, [1.0] * 6, strength=wrong)


def test_an_engine_without_states_is_told(probe_of):
    from dataclasses import replace

    class Server:
        def check(self, conversations, options): ...

    with pytest.raises(CapabilityError, match="Server"):
        heads.answer_states(replace(probe_of("llava"), engine=Server()), QUESTION, answer="x")
    with pytest.raises(MessageError, match="no tokens"):
        heads.answer_states(probe_of("llava"), QUESTION, picture(), answer=[])
