"""Numbers follow the model as it is when a call runs, whatever was done to it since the probe was made."""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
import types
import warnings
from contextlib import suppress

import numpy as np
import pytest
import torch
from common import QUESTION, picture

import vlmprobe
from vlmprobe.engines.local.capture import Head
from vlmprobe.engines.local.encoder_state import _digests
from vlmprobe.engines.local.model_state import STATE
from vlmprobe.errors import CapabilityError, GenerationOptionError
from vlmprobe.inputs.messages import Conversation
from vlmprobe.testing import tiny

ONE = {"max_new_tokens": 1, "do_sample": False}
CLOSE = 1e-4
ANSWER = "It is a red ball"
# PEFT asks transformers for a property that is about to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def loaded(checkpoint):
    """Name of a family -> a model and a processor that no other test uses, loaded by transformers."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    def load(name, **options):
        folder = checkpoint(name)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32", **options).eval()
        return model, AutoProcessor.from_pretrained(folder)

    return load


@torch.no_grad()
def forward(model, processor, image=None, answer=()):
    """float64 log-probabilities [S + T, V] of the model's own forward over prompt and answer."""
    shown = [] if image is None else [{"type": "image", "image": image}]
    chat = [{"role": "user", "content": [*shown, {"type": "text", "text": QUESTION}]}]
    inputs = dict(
        processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
    )
    if len(answer):
        new = torch.tensor([[int(each) for each in answer]])
        for key, value in inputs.items():
            if value.shape == inputs["input_ids"].shape and key != "input_ids":
                inputs[key] = torch.cat([value, torch.full_like(new, int(key.endswith("mask")))], 1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], new], 1)
    return torch.log_softmax(model(**inputs, use_cache=False).logits[0].double(), -1).numpy()


def assert_follows(probe, model, processor, image=None):
    """Prompt rows, answer rows and scores are those of the model's own forward."""
    result = probe.generate(QUESTION, image, max_new_tokens=3, do_sample=False)
    rows = forward(model, processor, image, result.output.ids)
    start = len(rows) - len(result.output)
    picked = rows[np.arange(start - 1, len(rows) - 1), result.output.ids]
    np.testing.assert_allclose(result.output.logprobs, picked, atol=CLOSE)
    at = np.flatnonzero(result.prompt.scored)
    before = result.prompt.positions[at] - 1
    np.testing.assert_allclose(result.prompt.logprobs[at], rows[before, result.prompt.ids[at]], atol=CLOSE)
    table = probe.score(QUESTION, [ANSWER], image).tables[0]
    rows = forward(model, processor, image, table.ids)
    start = len(rows) - len(table)
    picked = rows[np.arange(start - 1, len(rows) - 1), table.ids]
    np.testing.assert_allclose(table.logprobs, picked, atol=CLOSE)
    return result


# The head, hooks and wrappers


def other_head(model):
    old = model.get_output_embeddings()
    new = torch.nn.Linear(old.in_features, old.out_features, bias=False)
    model.set_output_embeddings(new.eval())


def patched_forward(model):
    @functools.wraps(type(model).forward)  # whose signature generate reads
    def forward(self, *args, **kwargs):
        output = type(self).forward(self, *args, **kwargs)
        output.logits = output.logits + torch.linspace(0, 1, output.logits.shape[-1])
        return output

    model.forward = types.MethodType(forward, model)


def closed_over(model):
    inner = model.forward

    @functools.wraps(inner)
    def forward(*args, **kwargs):
        output = inner(*args, **kwargs)
        output.logits = output.logits / 3
        return output

    model.forward = forward


def hook_on_the_head(model):
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: logits * 0.5)


def hook_on_the_backbone(model):
    def shifted(_, __, output):
        output.last_hidden_state = output.last_hidden_state * 0.9
        return output

    model.base_model.register_forward_hook(shifted)


def smaller_vocabulary(model):
    model.resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + 7)


CHANGES = (other_head, patched_forward, closed_over, hook_on_the_head, hook_on_the_backbone, smaller_vocabulary)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", ["llava", "gemma3"])
def test_what_was_done_after_wrap_is_in_every_row(name, change, loaded):
    model, processor = loaded(name)
    probe = vlmprobe.wrap(model, processor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        change(model)
    assert_follows(probe, model, processor)


def test_a_hook_on_the_model_acts_on_every_row(loaded):
    model, processor = loaded("qwen2_vl")
    probe = vlmprobe.wrap(model, processor)

    def tempered(_, __, output):
        output.logits = output.logits / 2
        return output

    model.register_forward_hook(tempered)
    assert_follows(probe, model, processor, picture())


CALLS = {
    "generate": lambda probe: probe.generate(QUESTION, **ONE),
    "score": lambda probe: probe.score(QUESTION, ["yes"]),
    "beams": lambda probe: probe.generate(QUESTION, max_new_tokens=2, do_sample=False, num_beams=2, prompt=False),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("place", ["model", "head"])
def test_a_hook_that_asks_where_a_row_stands_is_refused(place, call, loaded):
    model, processor = loaded("llava")

    def last_row_alone(_, __, output):
        logits = output.logits if place == "model" else output
        logits[:, -1, 7] += 0.5
        return output

    (model if place == "model" else model.lm_head).register_forward_hook(last_row_alone)
    with pytest.raises(CapabilityError, match="by where it stands"):
        call(vlmprobe.wrap(model, processor))


def test_a_hook_on_a_model_around_the_one_that_has_the_head_is_refused(loaded):
    model, processor = loaded("nemotron_h_omni")
    probe = vlmprobe.wrap(model, processor)
    model.register_forward_hook(lambda _, __, output: output)
    with pytest.raises(CapabilityError, match="in answer rows only"):
        probe.generate(QUESTION, picture(), **ONE)


def test_beams_and_branches_use_the_head_that_is_there(loaded):
    model, processor = loaded("llava")
    probe = vlmprobe.wrap(model, processor)
    other_head(model)
    beams = probe.generate(QUESTION, max_new_tokens=2, do_sample=False, num_beams=2)
    rows = forward(model, processor, answer=beams.output.ids)
    picked = rows[np.arange(len(rows) - 3, len(rows) - 1), beams.output.ids]
    np.testing.assert_allclose(beams.output.logprobs, picked, atol=CLOSE)


def test_a_compiled_model_gives_the_numbers_of_the_model(loaded):
    model, processor = loaded("llava")
    probe = vlmprobe.wrap(torch.compile(model, backend="eager"), processor)
    assert_follows(probe, model, processor)


def test_another_dtype_is_in_the_meta_of_results(loaded):
    model, processor = loaded("llava")
    probe = vlmprobe.wrap(model, processor)
    assert probe.generate(QUESTION, **ONE).meta["dtype"] == "float32"
    model.to(torch.bfloat16)
    assert probe.generate(QUESTION, **ONE).meta["dtype"] == "bfloat16"
    assert probe.score(QUESTION, ["yes"]).meta["dtype"] == "bfloat16"


def test_the_backbone_is_in_its_place_again_after_an_error(loaded):
    model, processor = loaded("llava")
    probe = vlmprobe.wrap(model, processor)
    backbone = model.model
    with pytest.raises(RuntimeError):
        Head(model, backbone)(torch.zeros(2, 3))  # of another width than the head takes
    assert model.model is backbone
    assert_follows(probe, model, processor)


# PEFT


def expert_of(model):
    """The folder of a saved LoRA adapter, for X-LoRA."""
    import peft

    folder = tempfile.mkdtemp()
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4, init_lora_weights=False)
    peft.get_peft_model(copy.deepcopy(model), config).save_pretrained(folder)
    return folder


def peft_of(kind, model):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    experts = expert_of(model) if kind == "x-lora" else None
    configs = {
        "lora on the head": lambda: peft.LoraConfig(target_modules=["lm_head"], r=4, init_lora_weights=False),
        "dora": lambda: peft.LoraConfig(target_modules=["q_proj"], r=4, use_dora=True, init_lora_weights=False),
        "ia3": lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
        ),
        "loha": lambda: peft.LoHaConfig(target_modules=["v_proj"], r=4, init_weights=False),
        "prompt tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        "p-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "x-lora": lambda: peft.XLoraConfig(
            task_type="CAUSAL_LM",
            hidden_size=model.config.text_config.hidden_size,
            adapters={"0": experts, "1": experts},
        ),
        "prefix tuning": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "alora": lambda: peft.LoraConfig(
            task_type="CAUSAL_LM", target_modules=["q_proj"], r=4, alora_invocation_tokens=[5, 6]
        ),
    }
    tuned = peft.get_peft_model(model, configs[kind]()).eval()
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if "prompt_encoder" in name:
                weight.normal_()
    return tuned


@pytest.mark.parametrize("kind", ["lora on the head", "dora", "ia3", "loha"])
@pytest.mark.parametrize("handed", ["peft", "base"])
def test_adapters_that_change_layers(kind, handed, loaded):
    model, processor = loaded("qwen2_vl")
    probe = vlmprobe.wrap(model, processor) if handed == "base" else None
    tuned = peft_of(kind, model)
    probe = probe or vlmprobe.wrap(tuned, processor)
    result = assert_follows(probe, model, processor, picture())
    assert result.meta["peft"] == ["default"]
    with tuned.disable_adapter():
        assert "peft" not in assert_follows(probe, model, processor, picture()).meta


def test_adapters_stacked_switched_and_merged(loaded):
    peft = pytest.importorskip("peft")
    model, processor = loaded("llava")
    tuned = peft_of("dora", model)
    torch.manual_seed(1)
    tuned.add_adapter("other", peft.LoraConfig(target_modules=["v_proj"], r=2, init_lora_weights=False))
    probe = vlmprobe.wrap(tuned, processor)
    for names in ("default", "other", ["default", "other"]):
        tuned.base_model.set_adapter(names)
        result = assert_follows(probe, model, processor)
        assert result.meta["peft"] == ([names] if isinstance(names, str) else names)
    tuned.merge_adapter(["other"])
    assert_follows(probe, model, processor)
    tuned.unmerge_adapter()
    assert_follows(probe, model, processor)


@pytest.mark.parametrize("kind", ["prompt tuning", "p-tuning"])
@pytest.mark.parametrize("shown", [False, True])
def test_virtual_tokens_are_those_of_pefts_own_forward(kind, shown, loaded):
    model, processor = loaded("llava")
    tuned = peft_of(kind, model)
    probe, image = vlmprobe.wrap(tuned, processor), picture() if shown else None
    result = probe.generate(QUESTION, image, max_new_tokens=3, do_sample=False)
    rows = forward(tuned, processor, image, result.output.ids)  # virtual tokens first
    wanted = rows[np.arange(len(rows) - 4, len(rows) - 1), result.output.ids]
    np.testing.assert_allclose(result.output.logprobs, wanted, atol=CLOSE)
    virtual = len(rows) - len(result.input_ids) - 3
    at = np.flatnonzero(result.prompt.scored)
    before = virtual + result.prompt.positions[at] - 1
    np.testing.assert_allclose(result.prompt.logprobs[at], rows[before, result.prompt.ids[at]], atol=CLOSE)
    scores = probe.score(QUESTION, [ANSWER, "yes"], image)
    assert "virtual tokens" in scores.meta["prefix"]
    for table in scores.tables:
        rows = forward(tuned, processor, image, table.ids)
        wanted = rows[np.arange(len(rows) - 1 - len(table), len(rows) - 1), table.ids]
        np.testing.assert_allclose(table.logprobs, wanted, atol=CLOSE)
    assert result.meta["peft"] == ["default"]
    with tuned.disable_adapter():
        assert "peft" not in assert_follows(probe, model, processor, image).meta
    again = probe.generate(QUESTION, image, max_new_tokens=3, do_sample=False)
    np.testing.assert_array_equal(again.output.logprobs, result.output.logprobs)
    without = probe.generate(QUESTION, image, max_new_tokens=3, do_sample=False, use_cache=False)
    np.testing.assert_allclose(without.output.logprobs, result.output.logprobs, atol=CLOSE)
    with pytest.raises(CapabilityError, match="virtual tokens"):
        probe.generate(QUESTION, image, cache_implementation="static", **ONE)


def test_virtual_tokens_beside_token_types(loaded):
    model, processor = loaded("gemma3")
    tuned = peft_of("prompt tuning", model)
    result = vlmprobe.wrap(tuned, processor).generate(QUESTION, **ONE)
    rows = forward(tuned, processor)
    assert abs(rows[-1, result.output.ids[0]] - result.output.logprobs[0]) < CLOSE


@pytest.mark.parametrize("kind", ["prefix tuning", "alora", "x-lora"])
def test_adapters_that_act_in_pefts_forward_alone_are_refused(kind, loaded):
    model, processor = loaded("llava")
    tuned = peft_of(kind, model)
    probe = vlmprobe.wrap(tuned, processor)
    for call in (lambda: probe.generate(QUESTION, **ONE), lambda: probe.score(QUESTION, ["yes"])):
        with pytest.raises(CapabilityError, match=r"PEFT adapter 'default' \(.*\) cannot be probed: "):
            call()
    if kind != "x-lora":  # which cannot be disabled
        with tuned.disable_adapter():
            assert_follows(probe, model, processor)
        with pytest.raises(CapabilityError, match="cannot be probed"):
            probe.generate(QUESTION, **ONE)


# What a session remembers


def weights_in_place(model):
    with torch.no_grad():
        for weight in model.model.vision_tower.parameters():
            weight.mul_(1.5)


def weights_behind_autograd(model):
    for weight in model.model.vision_tower.parameters():
        weight.data.neg_()


def one_column_negated(model):
    model.model.multi_modal_projector.linear_1.weight.data[:, 3].neg_()


def one_number_negated(model):
    model.model.multi_modal_projector.linear_1.weight.data[2, 7].neg_()


def projector_replaced(model):
    for module in model.model.multi_modal_projector.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(torch.randn_like(module.weight))


def one_training_step(model):
    for weight in model.parameters():
        weight.requires_grad_(True)
    optimizer = torch.optim.SGD(model.model.parameters(), lr=0.5)
    sum(weight.square().sum() for weight in model.model.parameters()).backward()
    optimizer.step()
    optimizer.zero_grad()


SEEN = (
    weights_in_place,
    weights_behind_autograd,
    one_column_negated,
    one_number_negated,
    projector_replaced,
    one_training_step,
)


@pytest.mark.parametrize("change", SEEN, ids=lambda change: change.__name__)
def test_a_session_encodes_anew_after(change, loaded):
    model, processor = loaded("llava")
    with vlmprobe.wrap(model, processor).session(picture()) as session:
        assert session.generate(QUESTION, **ONE).meta["image_features"] == "encoded"
        assert session.generate(QUESTION, **ONE).meta["image_features"] == "reused"
        change(model)
        result = session.generate(QUESTION, **ONE)
        assert result.meta["image_features"] == "encoded"
        rows = forward(model, processor, picture())
        assert abs(rows[-1, result.output.ids[0]] - result.output.logprobs[0]) < CLOSE
        assert session.generate(QUESTION, **ONE).meta["image_features"] == "reused"


def columns(weight, *places):
    weight[:, places] = -weight[:, places]


def swapped(weight):
    weight[[2, 6]] = weight[[6, 2]]


CHANGES = {
    "a number negated": lambda weight: weight[2, 7].neg_(),
    "a number doubled": lambda weight: weight[4, 3].mul_(2),
    "a column negated": lambda weight: columns(weight, 7),
    "two columns negated": lambda weight: columns(weight, 3, 7),
    "a row negated": lambda weight: weight[5].neg_(),
    "a row zeroed": lambda weight: weight[5].zero_(),
    "two rows swapped": swapped,
    "all negated": lambda weight: weight.neg_(),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(512, 512), (64, 8), (513, 515)], ids=str)
@pytest.mark.parametrize("same", [False, True], ids=["drawn", "ones"])
def test_the_digest_of_a_weight_tells(dtype, shape, same):
    """Several numbers are summed as one integer, of whose uppermost bits a sum keeps little."""
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight = (torch.ones(shape) if same else drawn).to(dtype)
    for name, change in CHANGES.items():
        changed = weight.clone()
        change(changed)
        assert torch.equal(weight, changed) or _digests([weight]) != _digests([changed]), name


def hooked(model, strength):
    model.model.multi_modal_projector.register_forward_hook(lambda _, __, features: features * strength[0])


def patched(model, strength):
    projector = model.model.multi_modal_projector
    forward = projector.forward
    projector.forward = lambda features: forward(features) * strength[0]


def method_patched(model, strength):
    features = model.model.get_image_features

    @functools.wraps(features)
    def weaker(*args, **kwargs):
        output = features(*args, **kwargs)
        output.pooler_output = [each * strength[0] for each in output.pooler_output]
        return output

    model.model.get_image_features = weaker


@pytest.mark.parametrize("change", [hooked, patched, method_patched], ids=lambda change: change.__name__)
def test_a_session_follows_a_hook_whose_strength_changes(change, loaded):
    model, processor = loaded("llava")
    strength = [0.5]
    with vlmprobe.wrap(model, processor).session(picture()) as session:
        session.generate(QUESTION, **ONE)
        change(model, strength)
        for strength[0] in (0.5, 2.0):
            result = session.generate(QUESTION, **ONE)
            assert result.meta["image_features"].startswith("encoded: a hook or a patched forward")
            rows = forward(model, processor, picture())
            assert abs(rows[-1, result.output.ids[0]] - result.output.logprobs[0]) < CLOSE


@pytest.mark.parametrize("place", ["multi_modal_projector", "vision_tower", "language_model"])
def test_an_error_of_a_hook_is_not_blamed_on_the_options(place, loaded):
    model, processor = loaded("llava")

    def broken(*_):
        raise TypeError("the hook's own error")

    model.model.get_submodule(place).register_forward_hook(broken)
    with pytest.raises(TypeError, match=r"^the hook's own error$"):
        vlmprobe.wrap(model, processor).generate(QUESTION, image=picture(), **ONE)


@pytest.mark.parametrize("place", ["lm_head", "model", "model.language_model", "model.language_model.layers.1"])
def test_a_hook_after_the_image_encoder_keeps_what_it_gave(place, loaded):
    model, processor = loaded("llava")
    model.get_submodule(place).register_forward_hook(lambda *_: None)
    with vlmprobe.wrap(model, processor).session(picture()) as session:
        told = [session.generate(QUESTION, **ONE).meta["image_features"] for _ in range(2)]
    assert told == ["encoded", "reused"]


# State that a forward leaves on the model


WRITERS = ("qwen3_5", "minicpmv4_7", "ernie4_5_vl_moe", "gemma3n", "mllama", "janus", "inkling2", "lfm2_vl")
INTERNAL = "_output_capturing_hooks_installed"  # transformers notes that its hooks are there, once


def attributes_of(model):
    """What stands on every module beside its weights and children, told by identity, and by version if a buffer."""
    kept = {}
    for name, module in model.named_modules():
        inner = set(vars(torch.nn.Module())) | {INTERNAL}
        kept |= {(name, key): id(value) for key, value in vars(module).items() if key not in inner}
        kept |= {(name, key): value._version for key, value in module.named_buffers(recurse=False)}
    return kept


@pytest.mark.parametrize(
    "name", [each if each in WRITERS else pytest.param(each, marks=pytest.mark.matrix) for each in tiny.names()]
)
def test_a_forward_writes_no_other_state_than_is_isolated(name, checkpoint):
    """With an image and without: attributes that a run of the model itself leaves changed must be in ``STATE``."""
    adapter = vlmprobe.load(checkpoint(name), device="cpu", dtype="float32", check=False).engine.adapter
    asked = [adapter.encode([Conversation.build(QUESTION, picture())])]
    with suppress(CapabilityError):  # some need an image
        asked.append(adapter.encode([Conversation.build("Hi")]))
    before = attributes_of(adapter.model)
    for encoding in asked:
        with torch.no_grad():
            adapter.model.generate(**encoding.inputs, max_new_tokens=2, do_sample=False)
    after = attributes_of(adapter.model)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert {key for _, key in changed} <= set(STATE), changed


@pytest.mark.parametrize("name", ["qwen2_5_vl", "glm4v", "minicpmv4_7"])
def test_state_of_an_earlier_image_stays_out(name, loaded):
    model, processor = loaded(name)
    probe = vlmprobe.wrap(model, processor)
    kept = torch.tensor([[-11]])
    model.model.rope_deltas = kept  # as a call of the model itself leaves it
    assert_follows(probe, model, processor)
    model.model.rope_deltas = kept
    probe.generate(QUESTION, picture(), **ONE)
    assert model.model.rope_deltas is kept, "a call leaves the model as it found it"


def dynamic_llava(checkpoint):
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    folder = checkpoint("llava")
    config = AutoConfig.from_pretrained(folder)
    text = config.text_config
    text.rope_parameters = {**text.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
    text.max_position_embeddings = 12  # shorter than the prompt, so that the frequencies grow with it
    model = AutoModelForImageTextToText.from_pretrained(folder, config=config, dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(folder)
    return vlmprobe.wrap(model, processor)


@pytest.mark.filterwarnings("ignore:The prompt has 21 tokens and the model's context 12")
def test_the_longest_sequence_so_far_has_no_say_in_dynamic_frequencies(checkpoint):
    probe = dynamic_llava(checkpoint)
    short = probe.generate("Hi", **ONE)
    with torch.no_grad():
        probe.engine.adapter.model(input_ids=torch.randint(5, 50, (1, 200)))
    again = probe.generate("Hi", **ONE)
    np.testing.assert_array_equal(short.prompt.logprobs, again.prompt.logprobs)


@pytest.mark.filterwarnings("ignore:The prompt has 21 tokens and the model's context 12")
def test_a_long_candidate_has_no_say_in_the_frequencies_of_another(checkpoint):
    probe = dynamic_llava(checkpoint)
    adapter = probe.engine.adapter
    adapter.capabilities = dataclasses.replace(adapter.capabilities, prefix_reuse=False)  # a forward for each
    alone = probe.score("Hi", ["no"])
    beside = probe.score("Hi", ["yes " * 60, "no"])
    assert np.abs(alone.tables[0].logprobs - beside.tables[1].logprobs).max() < 2e-6


# Caches


CACHES = ("static", "sliding_window", "hybrid", None)


@pytest.mark.parametrize("option", [{"use_cache": False}, *({"cache_implementation": each} for each in CACHES)])
@pytest.mark.parametrize("name", ["gemma3", "mistral3", "qwen2_vl"])
def test_every_cache_of_the_generation_config(name, option, loaded):
    model, processor = loaded(name)
    for key, value in option.items():
        setattr(model.generation_config, key, value)
    probe = vlmprobe.wrap(model, processor)
    assert_follows(probe, model, processor, picture())
    with probe.session(picture()) as session:
        assert_follows(session, model, processor, picture())


@pytest.mark.parametrize("error", [ValueError, RuntimeError, NotImplementedError])
def test_an_error_of_a_cache_names_the_option(error, loaded, monkeypatch):
    from transformers import StaticCache

    def update(self, *_, **__):
        raise error("Group size (64) must be a divisor of (1312)\nfurther lines")

    monkeypatch.setattr(StaticCache, "update", update)
    probe = vlmprobe.wrap(*loaded("llava"))
    with pytest.raises(GenerationOptionError, match=r"cache_implementation='static': Group size .* of \(1312\)\. Pass"):
        probe.generate(QUESTION, cache_implementation="static", **ONE)


def test_branch_and_lens_with_a_static_cache(loaded):
    from vlmprobe.analysis.logit_lens import lens

    model, processor = loaded("llava")
    model.generation_config.cache_implementation = "static"
    probe = vlmprobe.wrap(model, processor)
    result = probe.generate(QUESTION, max_new_tokens=3, do_sample=False)
    other = probe.branch(result, 1, int(result.output.top_ids[1, 1]), max_new_tokens=3, do_sample=False)
    rows = forward(model, processor, answer=other.output.ids)
    wanted = rows[np.arange(len(rows) - 1 - len(other.output), len(rows) - 1), other.output.ids]
    np.testing.assert_allclose(other.output.logprobs, wanted, atol=CLOSE)
    found = lens(probe, QUESTION, answer=result)
    np.testing.assert_allclose(found.logprobs[-1], result.output.logprobs, atol=CLOSE)


# A generate of the model's own


class Ban:
    """A logits processor that forbids one token."""

    def __init__(self, token):
        self.token = token

    def __call__(self, ids, scores):
        scores = scores.clone()
        scores[:, self.token] = -float("inf")
        return scores


@pytest.mark.parametrize("name", ["janus", "llava"])
def test_processors_of_the_caller_act_whatever_generate_hands_on(name, loaded):
    model, processor = loaded(name)
    probe = vlmprobe.wrap(model, processor)
    rows = forward(model, processor, picture())[-1]
    best = np.argsort(-rows)
    result = probe.generate(QUESTION, picture(), logits_processor=[Ban(int(best[0]))], **ONE)
    assert result.output.ids.tolist() == [best[1]]
    allowed = np.delete(rows, best[0])
    assert abs(result.output.scores[0] - (rows[best[1]] - np.logaddexp.reduce(allowed))) < CLOSE
    sampled = probe.generate(
        QUESTION, picture(), logits_processor=[Ban(int(best[0]))], max_new_tokens=1, do_sample=True, top_k=1
    )
    assert sampled.output.ids.tolist() == [best[1]], "processors come before sampling filters"


def test_stop_strings_and_streams_of_a_model_that_hands_on_nothing(loaded):
    model, processor = loaded("janus")
    probe = vlmprobe.wrap(model, processor)
    with probe.stream(QUESTION, picture(), max_new_tokens=4, do_sample=False) as tokens:
        seen = [int(each.ids[0]) for each in tokens]
    plain = probe.generate(QUESTION, picture(), max_new_tokens=4, do_sample=False)
    assert seen == plain.output.ids.tolist()


# Placement


def test_any_module_may_be_offloaded_to_disk(checkpoint, tmp_path, own):
    pytest.importorskip("accelerate")
    from transformers import AutoModelForImageTextToText

    model, processor = own("llava").model, own("llava").processor
    for number, away in enumerate(["model.vision_tower", "model.language_model", "lm_head"]):
        parts = ("model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head")
        where = {part: "disk" if part == away else "cpu" for part in parts}
        placed = AutoModelForImageTextToText.from_pretrained(
            checkpoint("llava"), dtype="float32", device_map=where, offload_folder=tmp_path / str(number)
        ).eval()
        probe = vlmprobe.wrap(placed, processor)
        assert probe.meta["device"] == "cpu"
        assert_follows(probe, model, processor, picture())
