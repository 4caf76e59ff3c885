"""Questions that share the beginning of their prompts: the numbers are those of a forward of each, in any order."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from common import QUESTION, picture
from layer_runs import counted
from torch.nn.modules.module import register_module_forward_hook
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import vlmprobe
from vlmprobe.engines.local import resumed
from vlmprobe.engines.local.encoder_state import _sample
from vlmprobe.engines.local.model_state import alone, to_model
from vlmprobe.engines.local.shared_prefix import SharedPrefix
from vlmprobe.errors import GenerationOptionError
from vlmprobe.testing import tiny

QUESTIONS = [
    "Is there a cat?",
    "What number is shown in this picture, and in which colour is it drawn?",
    "Is it red? Answer yes or no.",
    "Who?",
]
CANDIDATES = ["yes", "no", "red nine 9"]
CLOSE = 1e-4
# PEFT asks transformers for a property that is about to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
FAMILIES = ("internvl", "qwen2_vl", "qwen3_vl", "gemma3", "gemma4", "mllama", "paligemma", "lfm2_vl", "git")


@torch.no_grad()
def own(probe, question, candidates, image):
    """Log-probabilities of the candidates from a forward of the model over prompt and candidate."""
    adapter = probe.engine.adapter
    encoding = adapter.encode([probe.conversation(question, image)])
    prompt, found = encoding.prompts[0], []
    for text in candidates:
        each = adapter.continuation(prompt, text)
        inputs = adapter.extend(encoding.inputs, torch.tensor([each.ids]), len(prompt.ids) - each.shared)
        with alone(adapter):
            logits = adapter.model(**to_model(adapter.model, inputs)).logits[0].double().log_softmax(-1)
        rows = logits[-len(each.ids) - 1 : -1]
        found.append(sum(float(row[token]) for row, token in zip(rows, each.ids, strict=True)))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_scores_together_are_those_of_a_forward_of_each(name, probe_of):
    probe = probe_of(name)
    asked = [(question, picture()) for question in QUESTIONS] + [("What is it?", picture(3))]
    found = list(probe.score_many(asked, CANDIDATES, progress=False))
    for (question, image), scores in zip(asked, found, strict=True):
        np.testing.assert_allclose(scores.logprobs, own(probe, question, CANDIDATES, image), atol=CLOSE)


def test_the_beginning_runs_once(probe_of, monkeypatch):
    probe = probe_of("internvl")
    runs = counted(probe, monkeypatch)
    found = list(probe.score_many([(each, picture()) for each in QUESTIONS], ["yes", "no"], progress=False))
    common = found[0].meta["prefix_in_common"]
    own_tokens = [len(probe.engine.prompt_ids(probe.conversation(each, picture()))) - common for each in QUESTIONS]
    assert common >= 10
    assert runs[0] == (1, common)
    assert sum(rows * length for rows, length in runs[1:]) <= 1.4 * sum(own_tokens)


def test_a_hook_sees_whole_prompts(probe_of):
    probe = probe_of("internvl")
    asked = [(each, picture()) for each in QUESTIONS]
    seen = []
    hook = probe.layers[0].register_forward_hook(lambda _, __, output: seen.append(output[0].shape[-2]))
    try:
        scored = list(probe.score_many(asked, ["yes", "no"], progress=False))
        answered = list(probe.generate_many(asked, max_new_tokens=2, progress=False))
    finally:
        hook.remove()
    assert [each.meta["prefix_in_common"] for each in scored] == [0] * len(asked)
    assert all("prefix_in_common" not in each.meta for each in answered)
    assert seen[0] == max(len(each.input_ids) for each in answered)


def test_a_hook_on_the_vision_tower_sees_what_it_always_sees(probe_of):
    probe = probe_of("internvl")
    seen = []
    tower = probe.engine.adapter.model.model.vision_tower
    hook = tower.register_forward_hook(lambda *_: seen.append(True))
    try:
        scored = list(probe.score_many([(each, picture()) for each in QUESTIONS], ["yes", "no"], progress=False))
    finally:
        hook.remove()
    assert all(each.meta["prefix_in_common"] for each in scored)
    assert seen == [True]


# -- answers of one call ---------------------------------------------------------------------------

ASKED = [(question, picture(seed)) for seed in (1, 3) for question in QUESTIONS]
# hy_v4_vl keeps more than keys and values; in gemma3 and mllama prompts run whole.
ANSWERED = ("internvl", "qwen3_vl", "llava", "ernie4_5_vl_moe", "mistral3", "hy_v4_vl", "gemma3", "mllama")
FEW = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


@pytest.mark.parametrize(
    "name", [*ANSWERED, *(pytest.param(each, marks=pytest.mark.long) for each in tiny.names() if each not in ANSWERED)]
)
def test_answers_together_are_those_of_each_alone(name, probe_of, monkeypatch):
    monkeypatch.setattr(resumed, "SHARE", 0.01)
    probe = probe_of(name)
    due = [probe.generate(*each, **FEW) for each in ASKED]
    close = 5e-4 if name.startswith("qwen3_5") else CLOSE  # linear attention rounds otherwise in a batch
    shared = set()
    for asked in (ASKED[:4], ASKED, ASKED):  # of two images once it is known that a question changes only ids
        for found, each in zip(probe.generate_many(asked, progress=False, **FEW), due[: len(asked)], strict=True):
            np.testing.assert_array_equal(found.output.ids, each.output.ids)
            np.testing.assert_allclose(found.output.logprobs, each.output.logprobs, atol=close)
            np.testing.assert_allclose(found.prompt.logprobs, each.prompt.logprobs, atol=close)
            shared.add(found.meta.get("prefix_in_common"))
    if name in ("internvl", "qwen3_vl", "llava", "ernie4_5_vl_moe", "mistral3"):
        assert None not in shared


def test_questions_of_one_length_prove_nothing_of_padding(checkpoint, monkeypatch):
    """This model's generate goes on from the caches of a batch, but not from those of a padded one."""
    monkeypatch.setattr(resumed, "SHARE", 0.01)
    probe = vlmprobe.load(checkpoint("hyperclovax_vision_v2"), device="cpu", dtype="float32")
    alike = [(each, picture()) for each in ("Is it 8?", "Is it 9?")]
    for asked in (alike, ASKED[:4], alike):
        found = list(probe.generate_many(asked, progress=False, **FEW))
        for each, one in zip(asked, found, strict=True):
            due = probe.generate(*each, **FEW)
            np.testing.assert_array_equal(one.output.ids, due.output.ids)
            np.testing.assert_allclose(one.output.logprobs, due.output.logprobs, atol=CLOSE)
        assert (len({len(each.input_ids) for each in found}) == 1) == (asked is alike)


def test_the_beginning_of_answers_runs_once(probe_of, monkeypatch):
    monkeypatch.setattr(resumed, "SHARE", 0.01)
    probe = probe_of("internvl")
    for asked in (ASKED[:4], ASKED):  # what a model can do is tried out
        list(probe.generate_many(asked, progress=False, **FEW))
    runs = counted(probe, monkeypatch)
    found = list(probe.generate_many(ASKED, progress=False, **FEW))
    common = found[0].meta["prefix_in_common"]
    longest = max(len(each.input_ids) for each in found)
    assert runs == [(2, common), (8, longest - 1 - common), *[(8, 1)] * 5]


def test_little_in_common_runs_whole(probe_of, monkeypatch):
    monkeypatch.setattr(resumed, "SHARE", 2.0)
    found = list(probe_of("internvl").generate_many(ASKED, progress=False, **FEW))
    assert all("prefix_in_common" not in each.meta for each in found)


def test_a_long_text_that_answers_have_in_common_runs_once(probe_of):
    probe, text = probe_of("internvl"), "A story of a tiger in the grass, and of a bird. " * 4
    asked = [text + question for question in QUESTIONS]
    found = list(probe.generate_many(asked, progress=False, **FEW))
    for result, question in zip(found, asked, strict=True):
        due = probe.generate(question, **FEW)
        np.testing.assert_array_equal(result.output.ids, due.output.ids)
        np.testing.assert_allclose(result.output.logprobs, due.output.logprobs, atol=CLOSE)
        assert result.meta["prefix_in_common"] > 40
    assert all("prefix_in_common" not in each.meta for each in probe.generate_many(QUESTIONS, progress=False, **FEW))


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 2}, {"logits_processor": [lambda _, scores: scores]}, {"use_cache": False}],
    ids=lambda each: next(iter(each)),
)
def test_decoding_that_needs_more_than_a_cache_runs_whole(options, probe_of, monkeypatch):
    monkeypatch.setattr(resumed, "SHARE", 0.01)
    found = list(probe_of("internvl").generate_many(ASKED[:4], progress=False, max_new_tokens=2, **options))
    assert all("prefix_in_common" not in each.meta for each in found)


def test_a_prompt_in_which_images_see_the_question_is_not_divided(probe_of):
    """PaliGemma attends in both directions over its whole prompt."""
    found = list(probe_of("paligemma").score_many([(each, picture()) for each in QUESTIONS], ["yes"], progress=False))
    assert [each.meta["prefix_in_common"] for each in found] == [0] * len(QUESTIONS)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_session_in_any_order(name, probe_of):
    probe = probe_of(name)
    shuffled = random.Random(0)
    images = [picture(), picture(3), *([] if name == "paligemma" else [None])]  # which needs an image
    asked = [(question, place) for question in QUESTIONS for place in range(len(images))]
    due = {(question, place): own(probe, question, CANDIDATES, images[place]) for question, place in asked}
    with probe.session() as session:
        for _ in range(2):
            shuffled.shuffle(asked)
            for question, place in asked:
                scores = session.score(question, CANDIDATES, image=images[place])
                np.testing.assert_allclose(scores.logprobs, due[question, place], atol=CLOSE)


def test_a_session_keeps_what_comes_up_to_the_images(probe_of):
    with probe_of("internvl").session(picture()) as session:
        first, second = (session.score(each, CANDIDATES) for each in QUESTIONS[:2])
        assert first.meta["prefix_in_common"] == second.meta["prefix_in_common"] >= 10
        assert len(session.engine.prefixes._entries) == 1
        session.forget()
        assert not session.engine.prefixes._entries


def test_memory_is_bounded(probe_of):
    with probe_of("internvl").session() as session:
        session.engine.prefixes.limit = 1
        for seed in range(4):
            session.score(QUESTION, CANDIDATES, image=picture(seed))
        assert len(session.engine.prefixes._entries) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_of_a_session_are_those_without(name, probe_of):
    probe, options = probe_of(name), {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    with probe.session(picture()) as session:
        for question in (*QUESTIONS, QUESTIONS[0]):
            found, due = session.generate(question, **options), probe.generate(question, picture(), **options)
            np.testing.assert_array_equal(found.output.ids, due.output.ids)
            np.testing.assert_allclose(found.output.logprobs, due.output.logprobs, atol=CLOSE)
            np.testing.assert_allclose(found.prompt.logprobs, due.prompt.logprobs, atol=CLOSE)


def test_an_answer_of_a_session_runs_the_beginning_once(probe_of, monkeypatch):
    probe = probe_of("internvl")
    runs = counted(probe, monkeypatch)
    with probe.session(picture()) as session:
        session.generate("Is it a cat?", max_new_tokens=1)
        runs.clear()
        found = session.generate("Is it a dog?", max_new_tokens=1)
    assert found.meta["prefix_in_common"] >= 10
    assert sum(map(math.prod, runs)) == len(found.input_ids) - found.meta["prefix_in_common"]


def test_a_long_text_that_questions_have_in_common_is_kept_too(probe_of):
    probe = probe_of("internvl")
    text = "A story of a tiger in the grass, and of a bird. " * 4
    with probe.session() as session:
        found = [session.score(text + question, CANDIDATES) for question in QUESTIONS[:3]]
        for question, scores in zip(QUESTIONS, found, strict=False):
            np.testing.assert_allclose(scores.logprobs, own(probe, text + question, CANDIDATES, None), atol=CLOSE)
    assert [each.meta.get("prefix_in_common", 0) > 40 for each in found] == [False, True, True]


def test_a_model_whose_generate_does_not_go_on_from_a_cache_runs_whole(probe_of):
    probe, options = probe_of("blip_2"), {"max_new_tokens": 3, "do_sample": False}
    with probe.session(picture()) as session:
        for _ in range(2):
            found = session.generate(QUESTION, **options)
            assert "prefix_in_common" not in found.meta
            np.testing.assert_allclose(
                found.output.logprobs, probe.generate(QUESTION, picture(), **options).output.logprobs, atol=CLOSE
            )


def test_a_session_keeps_no_beginning_if_told_so(probe_of):
    with probe_of("internvl").session(picture(), prefix_cache_gb=0) as session:
        assert all("prefix_in_common" not in session.score(each, CANDIDATES).meta for each in QUESTIONS[:2])
    for wrong in (-1, True, "1", float("nan")):
        with pytest.raises(GenerationOptionError, match="prefix_cache_gb"):
            probe_of("internvl").session(prefix_cache_gb=wrong)


# -- what changes between two calls of one session ------------------------------------------------------


@pytest.fixture
def loaded(checkpoint):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = checkpoint("internvl")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    return model, AutoProcessor.from_pretrained(folder)


def follows(model, processor, change, image=None):
    image = picture() if image is None else image
    with vlmprobe.wrap(model, processor).session(image) as session:
        before = session.score(QUESTION, CANDIDATES).logprobs
        session.score(QUESTIONS[0], CANDIDATES)
        change()
        after = session.score(QUESTION, CANDIDATES).logprobs
        np.testing.assert_allclose(after, own(session, QUESTION, CANDIDATES, image), atol=CLOSE)
        assert np.abs(after - before).max() > 1e-3


def test_another_peft_adapter_is_switched_on(loaded):
    peft = pytest.importorskip("peft")
    model, processor = loaded
    settings = {"target_modules": r".*language_model.*\.(q|v)_proj", "init_lora_weights": False}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tuned = peft.get_peft_model(model, peft.LoraConfig(**settings))
        tuned.add_adapter("other", peft.LoraConfig(**settings))
    for name, weight in tuned.named_parameters():
        if "lora_" in name:
            weight.data.mul_(8)  # enough to be seen; with more, float32 itself rounds by 1e-4
    follows(tuned, processor, lambda: tuned.set_adapter("other"))


def test_the_head_is_replaced(loaded):
    model, processor = loaded
    other = torch.nn.Linear(*reversed(model.lm_head.weight.shape), bias=False)
    follows(model, processor, lambda: setattr(model, "lm_head", other))


def one_step(model):
    weights = list(model.model.language_model.layers.parameters())
    sum(weight.square().sum() for weight in weights).backward()
    torch.optim.SGD(weights, lr=0.3).step()
    model.zero_grad()


def through_data(model):
    for weight in model.model.language_model.layers[0].parameters():
        weight.data += 0.1


@pytest.mark.parametrize("change", [one_step, through_data])
def test_the_weights_are_trained_on(change, loaded):
    model, processor = loaded
    follows(model, processor, lambda: change(model))


def test_the_image_is_edited_in_place(probe_of):
    probe, image = probe_of("internvl"), picture()
    with probe.session() as session:
        before = session.score(QUESTION, CANDIDATES, image=image).logprobs
        image.paste((255, 0, 0), (0, 0, image.width // 2, image.height))
        after = session.score(QUESTION, CANDIDATES, image=image).logprobs
    np.testing.assert_allclose(after, own(probe, QUESTION, CANDIDATES, image), atol=CLOSE)
    assert np.abs(after - before).max() > 1e-3


def another_attention(model):
    """Each head sees sharper: only the name of the function changes in the config."""
    AttentionInterface.register("sharper", sharper)
    AttentionMaskInterface.register("sharper", sdpa_mask)
    model.set_attn_implementation("sharper")


def sharper(module, query, key, value, attention_mask, **options):
    return sdpa_attention_forward(module, 3 * query, key, value, attention_mask, **options)


def another_function(model):
    """An activation that is a function, not a module, is replaced by another function."""
    for layer in model.model.language_model.layers:
        layer.mlp.act_fn = torch.relu


def another_tensor(model):
    model.model.language_model.layers[0].mlp.scale.mul_(3)


@pytest.mark.parametrize("change", [another_attention, another_function, another_tensor])
def test_what_the_decoder_computes_with_is_changed(change, loaded):
    model, processor = loaded
    for layer in model.model.language_model.layers:
        del layer.mlp.act_fn
        layer.mlp.act_fn = functools.partial(torch.nn.functional.silu)
    scaled(model.model.language_model.layers[0].mlp)
    follows(model, processor, lambda: change(model))


def scaled(mlp):
    """Of a class that multiplies by a tensor which is no buffer."""
    kind = type(mlp)
    mlp.scale = torch.ones(1)
    mlp.__class__ = type("Scaled", (kind,), {"forward": lambda self, states: kind.forward(self, states) * self.scale})


def test_the_class_of_a_module_gets_another_forward(loaded, monkeypatch):
    model, processor = loaded
    kind = type(model.model.language_model.layers[0].mlp)
    forward = kind.forward
    follows(
        model,
        processor,
        lambda: monkeypatch.setattr(kind, "forward", lambda self, states: 1.5 * forward(self, states)),
    )


def test_one_row_of_a_weight_is_zeroed_through_data():
    """However wide a weight is, some element of each row and each column is compared."""
    for shape in ((18944, 896), (1000, 64), (64, 1000), (4096, 512), (70000, 7), (1, 40000), (300,), (20, 3, 14, 14)):
        places = torch.arange(math.prod(shape)).reshape(shape)
        seen = _sample(places)
        assert len(torch.unique(seen // shape[-1])) == places.numel() // shape[-1]
        assert len(torch.unique(seen % shape[-1])) == shape[-1]


def test_a_hook_changes_what_it_does(loaded):
    """Before a layer, on the decoder, and on all modules: a hook may do something else in every call."""
    model, processor = loaded
    factor = [1.0]
    decoder = model.model.language_model
    mlp = decoder.layers[1].mlp

    def of_all(module, _, output):
        return output * factor[0] if module is mlp else None

    for register, hook in (
        (mlp.register_forward_pre_hook, lambda _, given: (given[0] * factor[0],)),
        (decoder.norm.register_forward_pre_hook, lambda _, given: (given[0] + factor[0],)),
        (register_module_forward_hook, of_all),
    ):
        handle = register(hook)
        factor[0] = 1.0
        try:
            follows(model, processor, lambda: factor.__setitem__(0, 1.5))
        finally:
            handle.remove()


def test_numbers_under_autocast_are_not_those_without(loaded):
    model, processor = loaded
    with vlmprobe.wrap(model, processor).session(picture()) as session:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            session.score(QUESTIONS[0], CANDIDATES)
            session.score(QUESTION, CANDIDATES)
        found = session.score(QUESTION, CANDIDATES).logprobs
        np.testing.assert_allclose(found, own(session, QUESTION, CANDIDATES, picture()), atol=CLOSE)


def test_a_model_loaded_in_inference_mode(checkpoint):
    """Its weights do not count how often they were written to."""
    with torch.inference_mode():
        probe = vlmprobe.load(checkpoint("internvl"), device="cpu", dtype="float32")
    with probe.session(picture()) as session:
        for question in QUESTIONS[:3]:
            found = session.score(question, CANDIDATES)
            np.testing.assert_allclose(found.logprobs, own(probe, question, CANDIDATES, picture()), atol=CLOSE)


# -- what a cache is continued from -----------------------------------------------------------------------


def test_linear_attention_runs_every_prompt_whole(probe_of):
    """Its states of many positions, run one by one, round otherwise: up to 1e-4 on the tiny checkpoint."""
    probe = probe_of("qwen3_5")
    turns = [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "A cat?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "text", "text": "Which colour is that cat?"}]},
    ]
    with probe.session() as session:
        session.generate(turns[:1], max_new_tokens=1)
        found, due = (each.generate(turns, max_new_tokens=2, do_sample=False) for each in (session, probe))
        assert not session.engine.prefixes._entries
    np.testing.assert_allclose(found.prompt.logprobs, due.prompt.logprobs, atol=1e-6)


def test_a_kept_beginning_is_not_continued_across_a_switch_of_rope(probe_of, monkeypatch):
    """A prompt beyond it shares a beginning with those beyond it, and none of the kept ones that are shorter."""
    probe = probe_of("internvl")
    adapter, limit = probe.engine.adapter, 60
    monkeypatch.setattr(adapter, "capabilities", replace(adapter.capabilities, prefix_limit=limit), raising=False)
    lengths = []  # of what is continued, and of what comes after it
    after = SharedPrefix.after

    def seen(self, path):
        lengths.append((self.inputs["input_ids"].shape[1], len(path)))
        return after(self, path)

    monkeypatch.setattr(SharedPrefix, "after", seen)
    text = "A story of a tiger in the grass. "
    with probe.session() as session:
        for question in ("Is it?", "Was it?", "Who?"):
            session.score(text + question, CANDIDATES)
        assert 0 < len(session.engine.prefixes._entries[-1].ids) < limit
        for question in QUESTIONS[:3]:
            session.score(text * 10 + question, CANDIDATES)
        assert len(session.engine.prefixes._entries[-1].ids) > limit
        session.score(text * 10 + QUESTIONS[3], CANDIDATES)
    assert lengths
    assert all(before + new <= limit or before > limit for before, new in lengths)


def test_a_mask_of_pixels_that_is_as_long_as_the_prompt(probe_of):
    """LFM2-VL: 64 patches, 64 tokens. The mask of the patches is not continued with the text."""
    probe = probe_of("lfm2_vl")
    adapter = probe.engine.adapter
    for words in range(60):
        question = "a " * words + "cat?"
        inputs = adapter.encode([probe.conversation(question, picture())]).inputs
        if inputs["pixel_attention_mask"].shape == inputs["input_ids"].shape:
            break
    else:
        pytest.fail("no prompt is as long as the mask")
    assert adapter.extend(inputs, torch.tensor([[5, 6]]))["pixel_attention_mask"].shape == inputs["input_ids"].shape
    with probe.session(picture()) as session:
        for asked in (question, "Is it?", question):
            found = session.score(asked, CANDIDATES).logprobs
            np.testing.assert_allclose(found, own(probe, asked, CANDIDATES, picture()), atol=CLOSE)
