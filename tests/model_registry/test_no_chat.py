"""Families from before chat templates: asked by their processor's plain call, with the numbers of their forward."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from common import picture
from reference import columns

import vlmprobe
from vlmprobe.analysis.image_contrast import contrast
from vlmprobe.analysis.logit_lens import lens
from vlmprobe.errors import CapabilityError, MessageError
from vlmprobe.probe import load_checks
from vlmprobe.testing import tiny
from vlmprobe.testing.tiny.checkpoint import write

FAMILIES = ("chameleon", "blip_2", "instructblip", "kosmos_2", "git")
QUESTION = "What animal is this?"
NEW = 4
GREEDY = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}
CLOSE = 1e-4


def plain(own, question, *images):
    """The processor's own call; only Chameleon's wants to be told where an image is."""
    mark = own.processor.image_token if own.name == "chameleon" else ""
    given = {"images": list(images)} if images else {}
    return dict(own.processor(text=mark * len(images) + question, return_tensors="pt", **given))


@torch.no_grad()
def rows(own, question, *images, answer=()):
    """[S + T, V] of the model's own forward of the prompt and an answer, without a cache, at the places of the ids."""
    inputs = plain(own, question, *images)
    for key in ("input_ids", "attention_mask", "image_embeds_position_mask"):
        if key in inputs and len(answer):
            new = {"input_ids": torch.tensor([list(answer)]), "attention_mask": torch.ones(1, len(answer))}
            tail = new.get(key, torch.zeros(1, len(answer)))
            inputs[key] = torch.cat([inputs[key], tail.to(inputs[key].dtype)], dim=1)
    return own.model(**inputs, use_cache=False).logits[0].float().numpy()


def assert_rows(result, expected):
    """The prompt's text rows and the first generated one, where the forward has them."""
    text = np.flatnonzero(result.prompt.scored)
    assert len(text) >= 6
    assert np.abs(result.prompt.logits[text] - expected[result.prompt.positions[text] - 1]).max() < CLOSE
    length = len(result.input_ids)
    assert np.abs(result.output.logits[0] - expected[length - 1]).max() < CLOSE


def variant(name, folder, **config):
    """A tiny checkpoint of the family ``name`` with another language model."""
    entry = tiny.family(name)

    def make():
        parts = entry.make()
        settings = {**parts.config.to_dict(), **config}
        return replace(parts, config=type(parts.config).from_dict(settings))

    return write(replace(entry, make=make), folder)


def loaded(name, folder):
    from types import SimpleNamespace

    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="float32").eval()
    return SimpleNamespace(name=name, model=model, processor=transformers.AutoProcessor.from_pretrained(folder))


@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_are_those_of_the_processors_plain_call_and_the_models_own_forward(name, probe_of, own):
    image = picture()
    result = probe_of(name).generate(QUESTION, image, keep="logits", **GREEDY)
    assert_rows(result, rows(own(name), QUESTION, image))
    with torch.no_grad():
        made = own(name).model.generate(**plain(own(name), QUESTION, image), **GREEDY)[0, -NEW:].tolist()
    assert result.output.ids.tolist() == made
    forced = rows(own(name), QUESTION, image, answer=made)[-NEW - 1 : -1]
    assert np.abs(result.output.logits - forced).max() < CLOSE
    wanted = columns(forced, np.array(made))
    assert np.abs(result.output.logprobs - wanted["logprobs"]).max() < CLOSE
    asked = plain(own(name), QUESTION, image)["input_ids"][0].tolist()
    assert result.input_ids.tolist()[-len(asked) :] == asked
    assert probe_of(name).meta["chat_template"] is None
    assert result.meta["chat_template"] is None
    assert "chat_template" not in vlmprobe.load("demo", device="cpu").meta


@pytest.mark.parametrize("name", FAMILIES)
def test_the_quick_checks_at_load_find_nothing(name, probe_of):
    assert load_checks.run(probe_of(name).engine) == []


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which PEFT reads
@pytest.mark.parametrize("name", FAMILIES)
def test_a_lora_is_followed(name, own):
    peft = pytest.importorskip("peft")
    model = copy.deepcopy(own(name).model)
    plain_row = rows(own(name), QUESTION, picture())[-1]
    targets = ["query", "value"] if name == "git" else ["q_proj", "v_proj"]
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, init_lora_weights=False)).eval()
    result = vlmprobe.wrap(tuned, own(name).processor).generate(QUESTION, picture(), keep="logits", max_new_tokens=1)
    with torch.no_grad():
        expected = tuned(**plain(own(name), QUESTION, picture())).logits[0].numpy()
    assert np.abs(expected[-1] - plain_row)[expected[-1] > -1e30].max() > 0.01
    assert_rows(result, expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # which PEFT reads
@pytest.mark.parametrize("name", ["blip_2", "instructblip", "git"])
def test_virtual_tokens_that_do_not_reach_the_language_model_are_refused(name, own):
    peft = pytest.importorskip("peft")
    model = copy.deepcopy(own(name).model)
    tuned = peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with pytest.raises(CapabilityError, match=r"virtual tokens cannot be followed.*disable_adapter"):
        vlmprobe.wrap(tuned, own(name).processor).generate(QUESTION, picture(), max_new_tokens=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_candidates_are_scored_as_in_a_forward_of_each(name, probe_of, own):
    image = picture(2)
    scores = probe_of(name).score(QUESTION, [" yes", " no, a small cat"], image=image)
    assert scores.boundaries == [None, None]
    for table in scores.tables:
        forced = rows(own(name), QUESTION, image, answer=table.ids)[-len(table) - 1 : -1]
        assert np.abs(table.logprobs - columns(forced, table.ids)["logprobs"]).max() < CLOSE
    assert "".join(scores.tables[1].tokens) == " no, a small cat"


@pytest.mark.parametrize("name", FAMILIES)
def test_lens_contrast_and_session(name, probe_of, own):
    """The last layer of the lens, and what the image adds, against forwards; a session reuses features."""
    probe, one, other = probe_of(name), picture(1), picture(2)
    read = lens(probe, QUESTION, one, max_new_tokens=2, do_sample=False)
    ids = read.table.ids
    forced = rows(own(name), QUESTION, one, answer=ids)[-len(ids) - 1 : -1]
    assert np.abs(read.logprobs[-1] - columns(forced, ids)["logprobs"]).max() < CLOSE
    against = contrast(probe, QUESTION, one, against={"other": other}, max_new_tokens=2, do_sample=False)
    ids = against.answer.ids
    with_image, without = (
        columns(rows(own(name), QUESTION, each, answer=ids)[-len(ids) - 1 : -1], ids)["logprobs"]
        for each in (one, other)
    )
    assert np.abs(against.gain[0] - (with_image - without)).max() < CLOSE
    with probe.session(one) as session:
        first, second = (session.generate(QUESTION, keep="logits", **GREEDY) for _ in range(2))
        assert np.array_equal(first.output.logits, second.output.logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_needs_a_chat_template(name, probe_of):
    turns = [
        {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": QUESTION},
    ]
    for messages in (turns, turns[:2], [{"role": "system", "content": "Be brief."}, turns[0]]):
        with pytest.raises(CapabilityError, match=r"has no chat template.*one user message.*chat_template"):
            probe_of(name).generate(messages, max_new_tokens=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_requests_of_several_lengths_are_answered_as_each_alone(name, probe_of):
    asked = [{"question": question, "image": picture(seed)} for seed, question in enumerate((QUESTION, "Hi"), 1)]
    together = list(probe_of(name).generate_many(asked, batch_size=2, keep="logits", **GREEDY))
    for each, result in zip(asked, together, strict=True):
        alone = probe_of(name).generate(each["question"], each["image"], keep="logits", **GREEDY)
        assert result.output.ids.tolist() == alone.output.ids.tolist()
        assert np.abs(result.output.logits - alone.output.logits).max() < CLOSE


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("blip_2", {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}),
        ("instructblip", {"model_type": "opt", "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2}),
        ("blip_2", {"model_type": "opt", "hidden_size": 64, "ffn_dim": 96, "word_embed_proj_dim": 32}),
    ],
    ids=["blip-2 on Llama", "InstructBLIP on OPT", "OPT with a projection"],
)
def test_other_language_models(name, text, tmp_path):
    held = tiny.family(name).make().config.text_config
    shared = {key: getattr(held, key) for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"num_attention_heads": 4, "num_hidden_layers": 2, "max_position_embeddings": 512}
    folder = variant(name, tmp_path / name, text_config={**sizes, **shared, "word_embed_proj_dim": 64, **text})
    own, probe = loaded(name, folder), vlmprobe.load(folder, device="cpu", dtype="float32")
    assert_rows(probe.generate(QUESTION, picture(), keep="logits", **GREEDY), rows(own, QUESTION, picture()))
    read = lens(probe, QUESTION, picture(), max_new_tokens=2, do_sample=False)
    ids = read.table.ids
    forced = rows(own, QUESTION, picture(), answer=ids)[-len(ids) - 1 : -1]
    assert np.abs(read.logprobs[-1] - columns(forced, ids)["logprobs"]).max() < CLOSE


@pytest.mark.parametrize("name", ["blip_2", "instructblip"])
def test_an_encoder_decoder_is_refused_by_name_before_weights_are_read(name, tmp_path):
    kind = type(tiny.family(name).make().config)
    kind(text_config={"model_type": "t5", "d_model": 32}).save_pretrained(tmp_path)
    with pytest.raises(CapabilityError, match=rf"{kind.model_type} has t5 .*encoder-decoder.*with a decoder"):
        vlmprobe.load(tmp_path, device="cpu")


# Chameleon


def test_chameleons_vocabulary_mapping_is_the_backbones_own(probe_of, own):
    """The forward forbids image tokens by an attribute of its backbone, which stands in for it must have too."""
    result = probe_of("chameleon").generate(QUESTION, picture(), keep="logits", max_new_tokens=1)
    forbidden = own("chameleon").model.model.vocabulary_mapping.image_tokens
    assert len(forbidden) == 32
    for table in (result.prompt[-2:], result.output):
        assert (table.logits[:, forbidden] == np.finfo(np.float32).min).all()


def test_chameleon_with_no_image_and_with_two(probe_of, own):
    none = probe_of("chameleon").generate(QUESTION, keep="logits", max_new_tokens=1)
    assert_rows(none, rows(own("chameleon"), QUESTION))
    pair = (picture(1), picture(2))
    two = probe_of("chameleon").generate(QUESTION, list(pair), keep="logits", max_new_tokens=1)
    assert_rows(two, rows(own("chameleon"), QUESTION, *pair))
    assert [(span.image, span.stop - span.start) for span in two.prompt.image_spans] == [(0, 16), (1, 16)]
    with pytest.raises(MessageError, match="<image>"):
        probe_of("chameleon").generate("What is <image>?", max_new_tokens=1)


def test_a_chat_template_put_on_the_processor_is_used(own):
    model, processor = own("chameleon").model, copy.deepcopy(own("chameleon").processor)
    processor.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endfor %} assistant:"
    )
    result = vlmprobe.wrap(model, processor).generate(QUESTION, picture(), keep="logits", max_new_tokens=1)
    assert "chat_template" not in result.meta
    inputs = processor(text=f"user: <image>{QUESTION} assistant:", images=[picture()], return_tensors="pt")
    with torch.no_grad():
        assert_rows(result, model(**inputs).logits[0].numpy())


# Kosmos-2


def test_the_ids_of_kosmos_2s_image_are_text_elsewhere(probe_of, own):
    """Its image stands at the ids that follow the unknown token's, which its vocabulary gives to words."""
    probe = probe_of("kosmos_2")
    question = "Is it <query_05>?"
    assert own("kosmos_2").processor.tokenizer.convert_tokens_to_ids("<query_05>") in range(384, 448)
    result = probe.generate(question, picture(), keep="logits", max_new_tokens=1)
    assert_rows(result, rows(own("kosmos_2"), question, picture()))
    assert [span.stop - span.start for span in result.prompt.image_spans] == [64]
    with pytest.raises(MessageError, match="<image>"):
        probe.generate("What is <image>?", picture(), max_new_tokens=1)


# GIT


def test_git_is_refused_where_transformers_moves_its_generated_tokens(own, monkeypatch):
    from vlmprobe.model_registry import git

    family = own("git")
    for version in ("5.18.0", "6.0.0.dev0"):
        monkeypatch.setattr(git, "__version__", version)
        git.Git(family.model, family.processor)
    monkeypatch.setattr(git, "__version__", "5.17.0")
    for call in (lambda: git.Git(family.model, family.processor), lambda: git.Git.load("x", config={})):
        with pytest.raises(CapabilityError, match=r"5\.17\.0 cannot continue a GIT prompt.*Install transformers 5\.18"):
            call()


def test_git_without_an_image(probe_of, own):
    result = probe_of("git").generate(QUESTION, keep="logits", **GREEDY)
    assert result.prompt.image_spans == ()
    assert_rows(result, rows(own("git"), QUESTION))
    forced = rows(own("git"), QUESTION, answer=result.output.ids)[-NEW - 1 : -1]
    assert np.abs(result.output.logits - forced).max() < CLOSE


def test_gits_image_is_one_row_at_the_positions_that_the_model_adds(probe_of, own):
    result = probe_of("git").generate(QUESTION, picture(), max_new_tokens=1)
    asked = plain(own("git"), QUESTION, picture())
    with torch.no_grad():
        added = own("git").model(**asked).logits.shape[1] - asked["input_ids"].shape[1]
    assert [(span.start, span.stop) for span in result.prompt.image_spans] == [(0, added)]
    assert result.prompt.kinds[0] == "image"
    assert np.isnan(result.prompt.logprobs[0])


def test_a_penalty_on_gits_prompt_is_that_of_its_own_generate(probe_of, own):
    penalty = {**GREEDY, "repetition_penalty": 1.5}
    result = probe_of("git").generate(QUESTION, picture(), **penalty)
    with torch.no_grad():
        made = own("git").model.generate(**plain(own("git"), QUESTION, picture()), **penalty)
    assert result.output.ids.tolist() == made[0, -NEW:].tolist()


def test_git_is_read_as_it_is_at_the_time_of_the_call_and_not_changed(own):
    given = copy.deepcopy(own("git").model)
    before = given.config.to_dict()
    probe = vlmprobe.wrap(given, own("git").processor)
    assert given.config.to_dict() == before
    assert probe.engine.adapter.model is vlmprobe.wrap(given, own("git").processor).engine.adapter.model
    given.output.weight.data.mul_(0.5)
    given.generation_config = transformers.GenerationConfig(max_new_tokens=3, eos_token_id=None, pad_token_id=0)
    result = probe.generate(QUESTION, picture(), keep="logits")
    assert len(result.output) == 3
    with torch.no_grad():
        expected = given(**plain(own("git"), QUESTION, picture())).logits[0].numpy()
    assert_rows(result, expected)
